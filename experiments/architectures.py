r"""Which architecture reconstructs best at a given sparsity, and what do its latents look like?

Every architecture at six sparsities, on raw and on centered activations, all for the same number
of steps. On recorded activations, one row a problem:

    python experiments/architectures.py --slice=layer25_position3.npy --problems=train.jsonl \
        --output=runs/architectures

Writes `results.csv` (one row for each member), `results.md` (means over seeds with intervals,
beside what chance gives), two figures and the sweep into --output; docs/architectures.md shows
them. A run that was stopped continues with --resume. Cost: about 100 minutes on 2 CPU cores.
"""

import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import command
import matplotlib
import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure

import sae_jax
from sae_jax.activations.locks import lock_beside
from sae_jax.extraction.export import import_slice
from sae_jax.features.scoring import score_features
from sae_jax.markdown import markdown_table
from sae_jax.metrics.pca import pca_fvu
from sae_jax.problems import read_file
from sae_jax.report.statistics import Rows, Summary, by_setting, summarize, summarize_pairs
from sae_jax.report.tables import write_csv
from sae_jax.sweep.cache import use_compilation_cache
from sae_jax.sweep.loop import plan_for

KEEP_K = ("abs_topk", "topk", "batch_topk", "matryoshka")
REACH_L0 = ("jumprelu", "gated", "relu")
# Fewer would cost less than what starting a sweep varies by.
_TIMED_STEPS = 64
PREFIXES = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)

_ACTIVATIONS = flags.DEFINE_string("activations", None, "A finished store.")
_SLICE = flags.DEFINE_string("slice", None, "Or a .npy, .npz or .safetensors file of one slice.")
_PROBLEMS = flags.DEFINE_string("problems", None, "JSONL file: the problem of each row of --slice.")
_LAYER = flags.DEFINE_integer("layer", 25, "0-based decoder layer.")
_POSITION = flags.DEFINE_string("position", "3", "Continuous thought, or what the store has.")
_D_SAE = flags.DEFINE_list("d_sae", ["512", "2048"], "Dictionary sizes, comma-separated.")
_SPARSITIES = flags.DEFINE_list(
    "sparsities", ["10", "20", "35", "50", "75", "100"], "k, or the L0 to reach."
)
_NORMALIZE = flags.DEFINE_list("normalize", ["none", "center"], "As SAEConfig.normalize.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds of each config.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 25, "Passes over the training samples.")
_OUTPUT = flags.DEFINE_string("output", "runs/architectures", "Folder for everything.")
_RESUME = flags.DEFINE_bool("resume", False, "Continue a run that was stopped.")


def work() -> None:
    """Trains, scores and draws."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports each checkpoint
    use_compilation_cache()
    output = Path(_OUTPUT.value)
    with lock_beside(output):
        split = data(output)
        configs = members(split.train)
        config = sae_jax.TrainConfig(epochs=_EPOCHS.value)
        print(plan_for(configs, split.train, config))
        checkpoints = output / "checkpoints"
        if not _RESUME.value:
            shutil.rmtree(checkpoints, ignore_errors=True)
        result = sae_jax.train_sweep(
            configs,
            split.train,
            split.val,
            config,
            checkpoint_dir=checkpoints,
            output=output / "sweep",
            overwrite=True,
        )
        rows = score_features(result, split.val)
        add_cost(rows, configs, split)
        write_csv(rows, output / "results.csv")
        floor = pca_fvu(split.train.read(), split.val.read(), command.numbers(_SPARSITIES))
        (output / "results.md").write_text(page(rows, floor), encoding="utf-8")
        draw(rows, floor, output)
        shutil.rmtree(checkpoints)
        print(output / "results.md")


def data(output: Path) -> sae_jax.Split:
    """The samples, split by problem."""
    if (_ACTIVATIONS.value is None) == (_SLICE.value is None):
        raise ValueError("--activations or --slice has to be given, and not both")
    if _SLICE.value is not None:
        problems = read_file(Path(_PROBLEMS.value)) if _PROBLEMS.value else None
        position = int(_POSITION.value)
        store = import_slice(
            _SLICE.value,
            output / "activations",
            layer=_LAYER.value,
            position=position,
            problems=problems,
            overwrite=True,
        )
    else:
        store = sae_jax.ActivationStore.open(_ACTIVATIONS.value)
    position = store.parse_position(_POSITION.value)
    return store.select(layer=_LAYER.value, position=position).split(train_fraction=0.8, seed=42)


def members(train: sae_jax.Selection) -> list[sae_jax.SAEConfig]:
    """Every architecture at every sparsity, size, normalization and seed."""
    sparsities = command.numbers(_SPARSITIES)
    shared: dict[str, Any] = {
        "normalize": _NORMALIZE.value,
        "d_sae": command.numbers(_D_SAE),
        "seed": range(_SEEDS.value),
        "layer": train.layer,
        "position": train.position,
    }
    configs = []
    for architecture in (*KEEP_K, *REACH_L0):
        own: dict[str, Any] = {"k" if architecture in KEEP_K else "target_l0": sparsities}
        if architecture == "matryoshka":
            own["prefix_fractions"] = PREFIXES
        configs += sae_jax.grid(architecture=architecture, **shared, **own)
    return configs


def add_cost(rows: Rows, configs: Sequence[sae_jax.SAEConfig], split: sae_jax.Split) -> None:
    """Adds `ms_per_step`: a training step's milliseconds for one member, compiled before.

    Timed are as many members as there are seeds, once for each architecture and size: programs of
    members that differ in nothing else take as long.
    """
    cost: dict[tuple[str, int], float] = {}
    for setting in by_setting(rows):
        kind = setting[0]["architecture"], setting[0]["d_sae"]
        if kind in cost:
            continue
        timed = [config for config in configs if (config.architecture, config.d_sae) == kind]
        timed = timed[: len(setting)]

        def seconds(epochs: int, timed: Sequence[sae_jax.SAEConfig] = timed) -> float:
            began = time.perf_counter()
            config = sae_jax.TrainConfig(epochs=epochs)
            sae_jax.train_sweep(timed, split.train, split.val, config, progress=False)
            return time.perf_counter() - began

        seconds(1)
        steps = -(-len(split.train) // sae_jax.TrainConfig().batch_size)
        epochs = -(-_TIMED_STEPS // steps)
        longer = statistics.median(seconds(1 + epochs) - seconds(1) for _ in range(3))
        cost[kind] = 1e3 * longer / (epochs * steps * len(timed))
    for row in rows:
        row["ms_per_step"] = cost[row["architecture"], row["d_sae"]]


def page(rows: Rows, floor: dict[int, float]) -> str:
    """The table of means over seeds, in Markdown."""
    header = ["architecture", "normalize", "d", "asked", "L0", "fvu", "dead [%]", "almost dead [%]"]
    header += ["specialized [%]", "specialized by chance [%]", "stability", "stability by chance"]
    header += ["ms a step"]
    lines = []
    for setting in by_setting(rows):
        row = setting[0]
        means = {name: summarize([r[name] for r in setting]) for name in _COLUMNS}
        means["feature_stability"] = summarize_pairs([r["feature_stability"] for r in setting])
        names = [row["architecture"], row["normalize"], str(row["d_sae"])]
        asked = row["k"] or row["target_l0"]
        lines.append(
            [*names, f"{asked:g}", *(_cell(means[name], 100 if p else 1) for name, p in _SHOWN)]
        )
    planes = ", ".join(f"{rank}: {fvu:.3f}" for rank, fvu in floor.items())
    return (
        f"{markdown_table(header, lines)}\n\nMeans over {_SEEDS.value} seeds, with 95 % intervals;"
        f" {_EPOCHS.value} epochs. The fvu of the best plane of as many dimensions: {planes}.\n"
    )


_SHOWN = (
    ("l0", False),
    ("fvu", False),
    ("dead_fraction", True),
    ("almost_dead_fraction", True),
    ("calibrated_rate_supported", True),
    ("calibrated_null", True),
    ("feature_stability", False),
    ("stability_by_chance", False),
    ("ms_per_step", False),
)
_COLUMNS = [name for name, _ in _SHOWN if name != "feature_stability"]


def _cell(summary: Summary, factor: int) -> str:
    digits = 1 if factor == 100 else 3
    mean = f"{factor * summary.mean:.{digits}f}"
    if not summary.half_width > 0:  # It is NaN where there is no interval.
        return mean
    return f"{mean} ± {factor * summary.half_width:.{digits}f}"


def draw(rows: Rows, floor: dict[int, float], output: Path) -> None:
    """Draws fvu and dead latents against L0: a column for each size, a row for each arm."""
    sizes, arms = command.numbers(_D_SAE), _NORMALIZE.value
    names = list(dict.fromkeys(row["architecture"] for row in rows))
    colors = dict(zip(names, matplotlib.colormaps["tab10"].colors, strict=False))
    for column, label, factor in (("fvu", "fvu", 1), ("dead_fraction", "dead latents [%]", 100)):
        shape = len(arms), len(sizes)
        figure = Figure(figsize=(5 * shape[1], 3.6 * shape[0]), dpi=150, layout="constrained")
        axes = figure.subplots(*shape, squeeze=False, sharex=True, sharey=column == "fvu")
        for (i, arm), (j, d_sae) in ((a, b) for a in enumerate(arms) for b in enumerate(sizes)):
            axis = axes[i, j]
            for name in names:
                chosen = [
                    setting
                    for setting in by_setting(rows)
                    if (setting[0]["architecture"], setting[0]["normalize"], setting[0]["d_sae"])
                    == (name, arm, d_sae)
                ]
                points = [
                    tuple(summarize([r[key] for r in setting]) for key in ("l0", column))
                    for setting in chosen
                ]
                points.sort(key=lambda point: point[0].mean)
                axis.errorbar(
                    [x.mean for x, _ in points],
                    [factor * y.mean for _, y in points],
                    xerr=[np.nan_to_num(x.half_width) for x, _ in points],
                    yerr=[factor * np.nan_to_num(y.half_width) for _, y in points],
                    label=name,
                    color=colors[name],
                    marker="o",
                    markersize=3,
                    linewidth=1.2,
                    capsize=2,
                )
            if column == "fvu":
                axis.plot(list(floor), list(floor.values()), "k:", label="PCA")
                axis.set_yscale("log")
            axis.set(title=f"normalize = {arm}, d = {d_sae}", xlabel="L0", ylabel=label)
        axes[0, 0].legend(fontsize="small", ncols=2)
        figure.savefig(output / f"{column}.png")


if __name__ == "__main__":
    command.start(work)
