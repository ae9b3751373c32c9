r"""How do dictionary size d and sparsity K shape what a TopK SAE finds in continuous thoughts?

The published experiment from start to end, with its open questions and error bars: K = 50
with d from 100 to 1000, and K = 25, 75, 100 and 200. On GSM8K:

    python experiments/dictionary_scaling.py --problems=train.jsonl --layer=25 --position=3 \
        --prompt_template='<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n' \
        --output=runs/gsm8k

Without flags: the packaged SmolLM2-135M on generated problems. For the published model,
first run extract_activations.py with --codi_checkpoint, then this with --activations.

Writes `results.csv` (one row for each member), `results.md` (beside the published table, with
its claims), three figures, `page.html` (the sweep and its latents, to open in a browser), the
activations and the sweep into --output.

Cost: 20 to 25 minutes to extract and less than ten to train 70 members on 2 CPU cores.
Expected with the command above: 95.3 % explained variance and about a quarter of the
latents dead at d = 250, K = 50; no death at K = 200.
"""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import command
from absl import flags, logging

import sae_jax
from sae_jax.activations.locks import lock_beside
from sae_jax.features.scoring import score_features
from sae_jax.ops.matmul import COMPUTE_DTYPES
from sae_jax.report import page, reference
from sae_jax.report.figures import plot_firing_rates, plot_panels
from sae_jax.report.tables import summary_table, write_csv, write_markdown
from sae_jax.sweep.cache import use_compilation_cache
from sae_jax.sweep.loop import plan_for
from sae_jax.sweep.result import check_free, holds_sweep
from sae_jax.sweep.tensorboard import log_to

TRAIN_FRACTION, SPLIT_SEED = 0.8, 42
RUN_NAME = "run.json"

_ACTIVATIONS = flags.DEFINE_string("activations", None, "A finished store; else extract one.")
_PROBLEMS = flags.DEFINE_string(
    "problems", "generated", "JSONL file, openai/gsm8k (from the hub), or generated."
)
_NUM_PROBLEMS = flags.DEFINE_integer("num_problems", None, "How many, from the first; or all.")
_MODEL = flags.DEFINE_string("model", "packaged", "packaged (SmolLM2), hub id, folder or GGUF.")
_PROMPT_TEMPLATE = flags.DEFINE_string(
    "prompt_template", None, r"Text with {question} in it, \n for a new line."
)
_LAYER = flags.DEFINE_integer("layer", 25, "0-based decoder layer.")
_POSITION = flags.DEFINE_string("position", "3", "Continuous thought, or what the store has.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds of each config.", lower_bound=1)
_NORMALIZE = flags.DEFINE_list(
    "normalize", ["none"], "Arms as SAEConfig.normalize, comma-separated: none is as published."
)
_VARY_ORDER = flags.DEFINE_bool(
    "vary_order", False, "Give each seed its own order of the data too."
)
_EPOCHS = flags.DEFINE_integer("epochs", 25, "Passes over the training samples.")
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "float32", COMPUTE_DTYPES, "Of the training's matrix products."
)
_MESH = flags.DEFINE_string(
    "mesh", None, "Devices along each axis, as members:4,data:2; all of them by default."
)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every",
    None,
    "Epochs between checkpoints; by default as few as keep them below 5 % of the time.",
    lower_bound=1,
)
_OUTPUT = flags.DEFINE_string("output", "runs/dictionary_scaling", "Folder for everything.")
_LOG_DIR = flags.DEFINE_string(
    "log_dir",
    None,
    "Also keep losses and scores there, for `tensorboard --logdir`.",
    allow_override=True,  # absl's own, for files that nothing here writes.
)
_RESUME = flags.DEFINE_bool("resume", False, "Continue a run that was stopped.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a run that is there.")

# Flags that must not change when a run continues.
_SETTINGS = (
    _ACTIVATIONS,
    _PROBLEMS,
    _NUM_PROBLEMS,
    _MODEL,
    _PROMPT_TEMPLATE,
    _LAYER,
    _POSITION,
    _SEEDS,
    _NORMALIZE,
    _VARY_ORDER,
    _EPOCHS,
    _COMPUTE_DTYPE,
)


def work() -> None:
    """Extracts, trains, scores and reports; no other run may have the same output meanwhile."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports each checkpoint
    use_compilation_cache()
    output = Path(_OUTPUT.value)
    with lock_beside(output):
        run(output)


def run(output: Path) -> None:
    """Does the work of `work` in the folder that it writes to."""
    start_run(output)
    store = (
        sae_jax.ActivationStore.open(_ACTIVATIONS.value)
        if _ACTIVATIONS.value
        else extracted(output / "activations")
    )
    position = store.parse_position(_POSITION.value)
    split = store.select(layer=_LAYER.value, position=position).split(
        train_fraction=TRAIN_FRACTION, seed=SPLIT_SEED
    )
    result = trained(split, output)
    rows = score_features(result, split.val)
    report(rows, result, store, split, output)


def start_run(output: Path) -> None:
    """Claims the output folder, or checks that the run in it is the one to continue."""
    settings = {flag.name: flag.value for flag in _SETTINGS}
    path = output / RUN_NAME
    if _RESUME.value and path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        # As text, since earlier versions took positions for numbers; they had fewer flags, too.
        there = {flag.name: flag.default for flag in _SETTINGS} | there
        changed = [name for name in settings if str(there[name]) != str(settings[name])]
        if changed:
            details = "; ".join(f"{n} was {there[n]!r}, is {settings[n]!r}" for n in changed)
            raise ValueError(f"{output} holds another run: {details}")
        return
    check_free(output, _OVERWRITE.value, marker=RUN_NAME)
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    path.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def extracted(path: Path) -> sae_jax.ActivationStore:
    """Extracts the activations of the continuous thoughts, those that are not there already."""
    # Imported here, since a run on given --activations needs no PyTorch.
    from sae_jax.extraction.extract import extract
    from sae_jax.extraction.models import load_model
    from sae_jax.extraction.problems import load_problems

    try:
        thought = int(_POSITION.value)
    except ValueError as error:
        raise ValueError(f"--position={_POSITION.value}; a thought has a number") from error
    template = _PROMPT_TEMPLATE.value
    model = load_model(
        _MODEL.value, prompt_template=template.replace("\\n", "\n") if template else None
    )
    problems = load_problems(_PROBLEMS.value, _NUM_PROBLEMS.value)
    return extract(
        problems,
        model,
        path,
        layers=(_LAYER.value,),
        positions=(thought,),
        resume=True,
    )


def trained(split: sae_jax.Split, output: Path) -> sae_jax.SweepResult:
    """Trains the published grid with each seed, or reads the sweep if it is there already."""
    folder = output / "sweep"
    if holds_sweep(folder):
        return sae_jax.SweepResult.load(folder)
    configs = reference.grid(_SEEDS.value, _NORMALIZE.value, vary_order=_VARY_ORDER.value)
    train_config = sae_jax.TrainConfig(
        epochs=_EPOCHS.value, compute_dtype=_COMPUTE_DTYPE.value, mesh=_MESH.value
    )
    print(plan_for(configs, split.train, train_config))
    with log_to(_LOG_DIR.value) if _LOG_DIR.value else nullcontext() as log:
        result = sae_jax.train_sweep(
            configs,
            split.train,
            split.val,
            train_config,
            checkpoint_dir=output / "checkpoints",
            output=folder,
            checkpoint_every=_CHECKPOINT_EVERY.value,
            callbacks=[log] if log else (),
        )
    shutil.rmtree(output / "checkpoints")
    return result


def report(rows: list[dict], result: sae_jax.SweepResult, store, split, output: Path) -> None:
    """Writes tables and figures, prints the summary, and lists what was written."""
    description = (
        f"{len(result)} SAEs on layer {_LAYER.value}, position {_POSITION.value} of"
        f" {store.manifest['model']}: {len(split.train)} problems to train on, {len(split.val)} to"
        f" score on, {_SEEDS.value} seeds, {_EPOCHS.value} epochs, {_COMPUTE_DTYPE.value}."
    )
    write_csv(rows, output / "results.csv")
    write_markdown(rows, description, output / "results.md")
    plot_panels(rows, "d_sae", output / "scaling_by_size.png")
    plot_panels(rows, "k", output / "scaling_by_sparsity.png")
    plot_firing_rates(result, output / "firing_rates.png")
    print(f"\n{description}\n\n{summary_table(rows)}\n")
    for claim in reference.claims(rows):
        print(f"- {claim}")
    opened = page(
        result, output / "page.html", val=split.val, rows=rows, title="Dictionary scaling"
    )
    print("\nWritten:")
    for path in sorted(output.iterdir()):
        print(f"  {path}")
    print(f"\nOpen in a browser: {opened.resolve()}")


if __name__ == "__main__":
    command.start(work)
