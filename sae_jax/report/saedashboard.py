"""What SAEDashboard starts from: an SAE as SAELens saves it, and the prompts.

SAEDashboard runs the model itself, through TransformerLens, so it can show SAEs of token states
alone (https://github.com/jbloomAus/SAEDashboard, `NeuronpediaRunnerConfig` and `SaeVisRunner`).
"""

import json
from pathlib import Path

from sae_jax.activations.selection import Selection
from sae_jax.formats import saelens
from sae_jax.sweep.result import Member, check_free

SAE_NAME, PROMPTS_NAME = "sae", "prompts.jsonl"


def write_saedashboard(
    member: Member, val: Selection, folder: str | Path, *, model_name: str
) -> list[Path]:
    """Writes `sae`, for `SAE.load_from_disk`, and `prompts.jsonl`, a data set of texts.

    Args:
      member: a member that did not diverge, trained on states of tokens.
      val: validation samples of its data slice; their problems are the prompts.
      folder: a new or empty folder.
      model_name: TransformerLens' name of the model.

    Returns:
      The folder of the SAE, and the file of prompts, one JSON object with a `text` a line.

    Raises:
      ValueError: if the samples are continuous thoughts, which SAEDashboard cannot make; the
        member diverged; or `folder` holds something.
    """
    folder = Path(folder)
    check_free(folder, overwrite=False)
    if member.diverged_at is not None:
        raise ValueError(f"{member.config} diverged at step {member.diverged_at}")
    feedback = val.store.manifest.get("settings", {}).get("feedback")
    if feedback not in (None, "none"):
        raise ValueError(
            f"the activations are of continuous thoughts (feedback {feedback!r}), which"
            " SAEDashboard cannot make; allowed are activations of tokens"
        )
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"model_name": model_name, "hook_name": f"blocks.{val.layer}.hook_resid_post"}
    sae = saelens.save(member.sae(), folder / SAE_NAME, metadata)
    questions = dict.fromkeys(problem.question for problem in val.problems)
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in questions]
    prompts = folder / PROMPTS_NAME
    prompts.write_text("".join(lines), encoding="utf-8")
    return [sae, prompts]
