"""What did a sweep find, and what does each latent respond to? A page to look at.

    python experiments/report.py --sweep=runs/sweep --output=page.html

One HTML file that needs neither server nor network: table, plots and, for the chosen members,
every latent with its problems, labels and matches in other seeds and sizes. --activations names
the store if it is no longer where the sweep says. --model shows which tokens a latent speaks
for. Cost: about a second a member with 6,000 samples of width 576 on 2 CPU cores.
"""

from pathlib import Path

import command
from absl import flags

import sae_jax
from sae_jax.features.logit_lens import Vocabulary
from sae_jax.features.scoring import score_features
from sae_jax.report import page
from sae_jax.sweep.cache import use_compilation_cache
from sae_jax.sweep.provenance import samples_of

ALL_TOKENS = "all"

_SWEEP = flags.DEFINE_string("sweep", None, "Folder of a saved sweep.", required=True)
_ACTIVATIONS = flags.DEFINE_string(
    "activations", None, "Folder of the store, if it is not where the sweep says."
)
_TRAIN_FRACTION = flags.DEFINE_float(
    "train_fraction", None, "Share of the problems trained on, if the sweep does not say."
)
_SPLIT_SEED = flags.DEFINE_integer("split_seed", None, "The split's, if the sweep does not say.")
_MEMBERS = flags.DEFINE_list(
    "members", None, "Indices of the members whose latents to show; by default the first settings."
)
_MODEL = flags.DEFINE_string(
    "model", None, "Also show tokens, of this model: packaged (SmolLM2), hub id, folder or GGUF."
)
_TITLE = flags.DEFINE_string("title", None, "Heading of the page; the sweep's folder by default.")
_OUTPUT = flags.DEFINE_string("output", None, "HTML file to write.", required=True)


def work() -> None:
    """Scores the sweep and writes its page."""
    use_compilation_cache()
    output = Path(_OUTPUT.value)
    if output.suffix not in (".html", ".htm"):
        raise ValueError(f"--output={output}; allowed is a file that ends in .html")
    members = None if _MEMBERS.value is None else command.numbers(_MEMBERS)
    model = None
    if _MODEL.value:
        # Imported here, since a page without tokens needs no PyTorch.
        from sae_jax.extraction.models import load_model
        from sae_jax.extraction.vocabulary import tokens_and_unembedding, tokens_of_problems

        model = load_model(_MODEL.value)
    result = sae_jax.SweepResult.load(_SWEEP.value)
    val = [
        samples_of(
            result.data,
            _SWEEP.value,
            data_slice,
            activations=_ACTIVATIONS.value,
            train_fraction=_TRAIN_FRACTION.value,
            split_seed=_SPLIT_SEED.value,
        ).val
        for data_slice in dict.fromkeys(config.data_slice for config in result.configs)
    ]
    of_tokens = [p for part in val if part.position == ALL_TOKENS for p in part.problems]
    output.parent.mkdir(parents=True, exist_ok=True)
    written = page(
        result,
        output,
        val=val,
        rows=score_features(result, val),
        members=members,
        vocabulary=model and Vocabulary(*tokens_and_unembedding(model)),
        tokens=model and of_tokens and tokens_of_problems(model, of_tokens),
        title=_TITLE.value or Path(_SWEEP.value).resolve().name,
    )
    print(f"Open in a browser: {written.resolve()}")


if __name__ == "__main__":
    command.start(work)
