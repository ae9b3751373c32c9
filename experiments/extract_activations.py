r"""What does a language model hold in mind while it thinks without words?

Writes the hidden states of continuous thoughts to a store of activations:

    python experiments/extract_activations.py --problems=train.jsonl --layers=25 --positions=3 \
        --prompt_template='<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n' \
        --output=runs/gsm8k

A CODI model's, as in the published experiment (all layers, all six positions):

    python experiments/extract_activations.py --problems=openai/gsm8k \
        --model=meta-llama/Llama-3.2-1B-Instruct \
        --codi_checkpoint=zen-E/CODI-llama3.2-1b-Instruct --output=runs/codi

With --untrained_seed it gives the same from random weights, the checkpoint's too: a baseline.

Without thoughts, `--positions=last` (or indices with `--feedback=none`) gives hidden states at
tokens of the prompt, `--positions=all` at every token of the question; the scripts that read
the store take the same words for their `--position`. Many GPUs: put
`torchrun --nproc_per_node=8` in the place of `python`.

With --window=8 nothing has to fit the disk: `train_sweep.py --live` trains on the store meanwhile,
and removes what it is done with. Shards come in windows of so many, and three windows are there at
most: the first, the one that is trained on, and the next.

A stopped run continues with --resume, if weights, tokenizer, prompts and settings are the same:
the store keeps their sha256. A store that was begun before it kept them is not continued, but a
finished one can still be read. A chat template that prints today's date prints 26 Jul 2024
instead, and a prompt has one begin-of-sequence token, however many its template and the
tokenizer would give it. Prompts of unknown tokens, or of none, are refused before any work.

Cost: SmolLM2-135M on the 7,473 GSM8K problems takes 20 to 25 minutes on 2 CPU cores.
Expected: with the first command, the supplied activations to a relative error under 2e-3.
"""

import logging
import sys

import command
import model_flags
from absl import app, flags

from sae_jax.activations.selection import Position
from sae_jax.activations.store import LAST
from sae_jax.activations.writer import STORAGE_DTYPES
from sae_jax.extraction.answers import evaluate
from sae_jax.extraction.continuous_thoughts import FEEDBACK_MODES, NUM_POSITIONS
from sae_jax.extraction.extract import ALL_TOKENS, BATCH_SIZE, NO_FEEDBACK, extract
from sae_jax.extraction.language_model import LanguageModel
from sae_jax.extraction.problems import GENERATED, load_problems

_PROBLEMS = flags.DEFINE_string(
    "problems", GENERATED, "JSONL or JSON file, openai/gsm8k (from the hub), or generated."
)
_NUM_PROBLEMS = flags.DEFINE_integer(
    "num_problems", None, "How many, from the first; all if unset."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the generated problems.")
flags.adopt_module_key_flags(model_flags)
_UNTRAINED_SEED = flags.DEFINE_integer(
    "untrained_seed", None, "Seed of random weights in place of the trained ones: a baseline."
)
_FEEDBACK = flags.DEFINE_enum(
    "feedback",
    None,
    [*FEEDBACK_MODES, NO_FEEDBACK],
    "What a thought feeds; unset: none for last, negative or all tokens, codi with a checkpoint, "
    "else soft.",
)
_LAYERS = flags.DEFINE_list("layers", None, "0-based decoder layers; all if unset.")
_POSITIONS = flags.DEFINE_list(
    "positions", [str(p) for p in range(NUM_POSITIONS)], "Thoughts, or tokens: indices, last, all."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", BATCH_SIZE, "Problems that the model reads at once, at most."
)
_STORAGE_DTYPE = flags.DEFINE_enum("storage_dtype", "float16", STORAGE_DTYPES, "As stored.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the store.")
_RESUME = flags.DEFINE_bool("resume", False, "Continue a run that was stopped.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a store that is there.")
_WINDOW = flags.DEFINE_integer(
    "window",
    None,
    "Make a live store of windows of so many shards, to train on meanwhile; whole if unset.",
    lower_bound=1,
)
_EVALUATE = flags.DEFINE_bool(
    "evaluate", False, "Instead, answer the problems and print the accuracy."
)


def work() -> None:
    """Extracts, or evaluates, as the flags say."""
    if _OUTPUT.value is None and not _EVALUATE.value:
        raise app.UsageError("--output is needed, or --evaluate")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _run()
    except (OSError, KeyboardInterrupt) as error:
        sys.exit(f"stopped: {error!r}\nwhat is done is kept; run the command again with --resume")


def _run() -> None:
    problems = load_problems(_PROBLEMS.value, _NUM_PROBLEMS.value, _SEED.value)
    positions = _positions()
    model = model_flags.load(untrained_seed=_UNTRAINED_SEED.value)
    feedback = _FEEDBACK.value or _default_feedback(model, positions)
    if _EVALUATE.value:
        result = evaluate(problems, model, feedback=feedback, batch_size=_BATCH_SIZE.value)
        print(f"{result.num_correct} of {result.num_problems} right: {result.accuracy:.2%}")
        return
    layers = (
        range(model.num_layers) if _LAYERS.value is None else _integers("layers", _LAYERS.value)
    )
    store = extract(
        problems,
        model,
        _OUTPUT.value,
        layers=list(layers),
        positions=positions,
        feedback=feedback,
        batch_size=_BATCH_SIZE.value,
        storage_dtype=_STORAGE_DTYPE.value,
        resume=_RESUME.value,
        overwrite=_OVERWRITE.value,
        window=_WINDOW.value,
    )
    print(
        f"{store.path}: {store.num_rows} rows of {store.d_in} values at "
        f"{len(store.layers)} layers and {len(store.positions)} positions"
    )


def _positions() -> list[Position]:
    if _POSITIONS.value == [ALL_TOKENS]:
        return [ALL_TOKENS]
    words = ["-1" if text == LAST else text for text in _POSITIONS.value]
    return list(_integers("positions", words, f", {LAST!r} or {ALL_TOKENS!r} alone"))


def _integers(flag: str, words: list[str], others: str = "") -> list[int]:
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise ValueError(f"--{flag}={','.join(words)}; allowed: integers{others}") from error


def _default_feedback(model: LanguageModel, positions: list[Position]) -> str:
    # Thoughts are counted from the first alone, tokens from the last one too.
    if any(position == ALL_TOKENS or int(position) < 0 for position in positions):
        return NO_FEEDBACK
    return "soft" if model.projection is None else "codi"


if __name__ == "__main__":
    command.start(work)
