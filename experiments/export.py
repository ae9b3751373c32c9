"""How do other tools read this sweep? Its table, or the latents of one member.

    python experiments/export.py --sweep=runs/sweep --format=parquet --output=sweep.parquet
    python experiments/export.py --sweep=runs/sweep --format=neuronpedia --member=3 \
        --model_id=llama3.2-1b --sae_set=codi-thoughts --output=runs/neuronpedia

csv and parquet: one row a member, as `result.table()`, to a file. neuronpedia: the `batch-*.json`
files of which Neuronpedia makes its import, to a folder. saedashboard: the SAE as SAELens saves
it and the prompts, to a folder, for members trained on states of tokens. Takes seconds.
"""

from pathlib import Path

import command
from absl import flags

import sae_jax
from sae_jax.features.logit_lens import Vocabulary
from sae_jax.report.neuronpedia import write_neuronpedia
from sae_jax.report.saedashboard import write_saedashboard
from sae_jax.report.tables import write_csv, write_parquet
from sae_jax.sweep.provenance import samples_of

TABLES = {"csv": write_csv, "parquet": write_parquet}

_SWEEP = flags.DEFINE_string("sweep", None, "Folder of a saved sweep.", required=True)
_FORMAT = flags.DEFINE_enum(
    "format", None, [*TABLES, "neuronpedia", "saedashboard"], "What to write.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "File or folder to write.", required=True)
_MEMBER = flags.DEFINE_integer("member", 0, "Index of the member whose latents to write.")
_ACTIVATIONS = flags.DEFINE_string(
    "activations", None, "Folder of the store, if it is not where the sweep says."
)
_TRAIN_FRACTION = flags.DEFINE_float(
    "train_fraction", None, "Share of the problems trained on, if the sweep does not say."
)
_SPLIT_SEED = flags.DEFINE_integer("split_seed", None, "The split's, if the sweep does not say.")
_MODEL_ID = flags.DEFINE_string("model_id", None, "The model's name at Neuronpedia or there.")
_SAE_SET = flags.DEFINE_string("sae_set", "sae_jax", "Name of the set of SAEs at Neuronpedia.")
_MODEL = flags.DEFINE_string(
    "model", None, "Also write tokens, of this model: packaged (SmolLM2), hub id, folder or GGUF."
)


def work() -> None:
    """Writes what the flags name."""
    output = Path(_OUTPUT.value)
    result = sae_jax.SweepResult.load(_SWEEP.value)
    if _FORMAT.value in TABLES:
        if output.exists():
            raise ValueError(f"{output} exists; it is left as is")
        TABLES[_FORMAT.value](result.table(), output)
        print(output)
        return
    if not 0 <= _MEMBER.value < len(result):
        raise ValueError(f"--member={_MEMBER.value}; allowed are 0 to {len(result) - 1}")
    if _MODEL_ID.value is None:
        raise ValueError("--model_id is missing; name the model as the other tool does")
    member = result.members[_MEMBER.value]
    val = samples_of(
        result.data,
        _SWEEP.value,
        member.config.data_slice,
        activations=_ACTIVATIONS.value,
        train_fraction=_TRAIN_FRACTION.value,
        split_seed=_SPLIT_SEED.value,
    ).val
    if _FORMAT.value == "saedashboard":
        paths = write_saedashboard(member, val, output, model_name=_MODEL_ID.value)
    else:
        vocabulary = tokens = None
        if _MODEL.value:
            # Imported here, since an export without tokens needs no PyTorch.
            from sae_jax.extraction.models import load_model
            from sae_jax.extraction.vocabulary import tokens_and_unembedding, tokens_of_problems

            model = load_model(_MODEL.value)
            vocabulary = Vocabulary(*tokens_and_unembedding(model))
            tokens = tokens_of_problems(model, val.problems) if val.position == "all" else None
        paths = write_neuronpedia(
            member,
            val,
            output,
            model_id=_MODEL_ID.value,
            sae_set=_SAE_SET.value,
            vocabulary=vocabulary,
            tokens=tokens,
        )
    print(f"{len(paths)} files in {output}")


if __name__ == "__main__":
    command.start(work)
