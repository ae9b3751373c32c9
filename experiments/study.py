r"""Why do latents die, what is specialization worth, and what would chance give?

The whole study of docs/dictionary_scaling.md. It needs the activations of all layers and thoughts
of a model, and those of the same model with random weights:

    template='<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n'
    python experiments/extract_activations.py --problems=train.jsonl --prompt_template="$template" \
        --output=runs/study/activations
    python experiments/extract_activations.py --problems=train.jsonl --prompt_template="$template" \
        --untrained_seed=0 --layers=25 --positions=3 --output=runs/study/untrained
    python experiments/study.py --activations=runs/study/activations \
        --untrained_activations=runs/study/untrained --prompt_template="$template" \
        --output=runs/study/run

Each stage writes one table to the folder `tables` of --output. Stages whose table is there are not
run again, and one that was stopped goes on from its last checkpoint, so that the same command
continues the study. `experiments/study_report.py` makes the document's tables and figures.

Cost: on 2 CPU cores beside other work, 25 minutes for the first extraction and 26 for the grid.
"""

import csv
import dataclasses
import io
import json
import time
from pathlib import Path

import command
import model_flags
from absl import flags, logging
from stages import (
    almost_dead,
    baselines,
    causality,
    dose,
    grid,
    initial,
    loss_recovered,
    map,
    pca,
    size,
    slices,
    stability,
    synthetic,
)
from stages.study import Study

import sae_jax
from sae_jax.activations.durable import write_text
from sae_jax.activations.locks import lock_beside
from sae_jax.report.statistics import Rows
from sae_jax.sweep.cache import use_compilation_cache

STAGES = {
    "grid": grid,
    "pca": pca,
    "initial": initial,
    "almost_dead": almost_dead,
    "dose": dose,
    "size": size,
    "synthetic": synthetic,
    "baselines": baselines,
    "stability": stability,
    "loss_recovered": loss_recovered,
    "causality": causality,
    "slices": slices,
    "map": map,
}
"""Stages in their order, each by the name of its table."""

_ACTIVATIONS = flags.DEFINE_string("activations", None, "A finished store.", required=True)
_UNTRAINED = flags.DEFINE_string(
    "untrained_activations", None, "A finished store of the same model with random weights."
)
flags.adopt_module_key_flags(model_flags)  # Of the model that the activations come from.
_LAYER = flags.DEFINE_integer("layer", 25, "0-based decoder layer of the published grid.")
_POSITION = flags.DEFINE_string("position", "3", "Its continuous thought.")
_MAP_LAYERS = flags.DEFINE_list("map_layers", ["5", "10", "15", "20", "25", "29"], "Of the map.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds of each setting.", lower_bound=2)
_EPOCHS = flags.DEFINE_integer("epochs", 25, "Passes over the training samples.", lower_bound=1)
_MAP_EPOCHS = flags.DEFINE_integer("map_epochs", 8, "The same for the map.", lower_bound=1)
_STAGES = flags.DEFINE_list("stages", list(STAGES), "Which to run.")
_OUTPUT = flags.DEFINE_string("output", "runs/study/run", "Folder for everything.")

# Flags that must not change when a study continues.
_SETTINGS = (_ACTIVATIONS, _LAYER, _POSITION, _MAP_LAYERS, _SEEDS, _EPOCHS, _MAP_EPOCHS)


def work() -> None:
    """Runs the stages whose tables are not there yet."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports each checkpoint
    if unknown := [name for name in _STAGES.value if name not in STAGES]:
        raise ValueError(f"--stages has {unknown}; allowed are {list(STAGES)}")
    use_compilation_cache()
    output = Path(_OUTPUT.value)
    with lock_beside(output):
        output.mkdir(parents=True, exist_ok=True)
        check_settings(output / "run.json")
        study = opened(output)
        for name in STAGES:
            path = output / "tables" / f"{name}.csv"
            if name not in _STAGES.value or path.exists():
                continue
            print(f"\n{name}: {STAGES[name].__doc__.partition(chr(10))[0]}", flush=True)
            began = time.perf_counter()
            rows = STAGES[name].rows(study)
            write_table(shortened(rows), path)
            print(f"{path}: {len(rows)} rows, {time.perf_counter() - began:.0f} s", flush=True)


def check_settings(path: Path) -> None:
    """Keeps the settings, or refuses those that are not the ones of the study in the folder.

    Raises:
      ValueError: if they differ.
    """
    settings = {flag.name: flag.value for flag in _SETTINGS}
    if not path.exists():
        path.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    if changed := [name for name in settings if there.get(name) != settings[name]]:
        details = "; ".join(f"{n} was {there.get(n)!r}, is {settings[n]!r}" for n in changed)
        raise ValueError(f"{path.parent} holds another study: {details}")


def opened(output: Path) -> Study:
    """The study that the flags describe.

    Raises:
      ValueError: if a store has no such layer or position, or a stage lacks its store.
    """
    store = sae_jax.ActivationStore.open(_ACTIVATIONS.value)
    untrained = sae_jax.ActivationStore.open(_UNTRAINED.value) if _UNTRAINED.value else None
    study = Study(
        store=store,
        untrained_store=untrained,
        load_model=model_flags.load,
        layer=_LAYER.value,
        position=store.parse_position(_POSITION.value),
        map_layers=tuple(command.numbers(_MAP_LAYERS)),
        seeds=_SEEDS.value,
        epochs=_EPOCHS.value,
        map_epochs=_MAP_EPOCHS.value,
        output=output,
    )
    for layer in (*study.map_layers, study.layer):
        study.split((layer, study.position))
    if untrained is None and {"baselines", "stability"} & set(_STAGES.value):
        raise ValueError("the stages baselines and stability need --untrained_activations")
    return study


def shortened(rows: Rows) -> Rows:
    """Rows without the fields of a config that all members leave at their default."""
    defaults = {f.name: f.default for f in dataclasses.fields(sae_jax.SAEConfig)}
    unused = {
        name
        for name, default in defaults.items()
        if all(row.get(name, default) == default for row in rows)
    }
    return [{name: row[name] for name in row if name not in unused} for row in rows]


def write_table(rows: Rows, path: Path) -> None:
    """Writes a table with six digits, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({n: f"{v:.6g}" if isinstance(v, float) else v for n, v in row.items()})
    path.parent.mkdir(exist_ok=True)
    write_text(path, text.getvalue())


if __name__ == "__main__":
    command.start(work)
