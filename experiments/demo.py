"""Why do latents die? The same SAEs on raw and on centered activations, in one table.

A real model reads generated problems; SAEs of two sizes are trained on its thoughts as they are,
as published, and with their mean subtracted. Needs no downloads beyond packages:

    python experiments/demo.py --output=runs/demo

Writes `results.csv`, `offset.png`, `page.html` (the sweep and its latents, to open in a browser),
the activations and the sweep into --output. Cost: under 4 minutes on 2 CPU cores.
"""

import shutil
from pathlib import Path

import command
import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure

import sae_jax
from sae_jax.activations.locks import lock_beside
from sae_jax.features.scoring import score_features
from sae_jax.markdown import markdown_table
from sae_jax.metrics.pca import pca_fvu
from sae_jax.report import page
from sae_jax.report.reference import percent, with_interval
from sae_jax.report.statistics import Rows, Summary, summarize_rows
from sae_jax.report.tables import write_csv
from sae_jax.sweep.cache import use_compilation_cache
from sae_jax.sweep.result import check_free

LAYER, POSITION = 25, 3
K, D_SAE, ARMS = 50, (250, 512), {"none": "raw", "center": "centered"}
EPOCHS = 60
STYLES = {"none": ("0.0", "-"), "center": ("0.55", "--")}
COLUMNS = (
    "dead_fraction",
    "fvu",
    "published_rate",
    "published_null",
    "feature_stability",
    "stability_by_chance",
)

_NUM_PROBLEMS = flags.DEFINE_integer(
    "num_problems",
    800,
    "Problems that the model reads.",
    lower_bound=2 * K,  # A plane of K dimensions is fitted to four fifths of them.
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds of each setting.", lower_bound=2)
_OUTPUT = flags.DEFINE_string("output", "runs/demo", "Folder for everything.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a run that is there.")


def work() -> None:
    """Extracts, trains, scores and tells what came out."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports each checkpoint
    use_compilation_cache()
    output = Path(_OUTPUT.value)
    with lock_beside(output):
        check_free(output, _OVERWRITE.value, marker="activations")
        if output.exists():
            shutil.rmtree(output)
        split = extracted(output / "activations").select(layer=LAYER, position=POSITION).split()
        configs = sae_jax.grid(
            normalize=ARMS,
            d_sae=D_SAE,
            k=K,
            seed=range(_SEEDS.value),
            layer=LAYER,
            position=POSITION,
        )
        result = sae_jax.train_sweep(
            configs,
            split.train,
            split.val,
            sae_jax.TrainConfig(epochs=EPOCHS),
            output=output / "sweep",
        )
        rows = score_features(result, split.val)
        write_csv(rows, output / "results.csv")
        floor = pca_fvu(split.train.read(), split.val.read(), [K])[K]
        draw(rows, result, floor, output / "offset.png")
        opened = page(result, output / "page.html", val=split.val, rows=rows, title="Demo")
        print(f"\n{table(rows)}\n\n{story(rows, floor)}\n\nWritten:")
        for path in sorted(output.iterdir()):
            print(f"  {path}")
        print(f"\nOpen in a browser: {opened.resolve()}")


def extracted(path: Path) -> sae_jax.ActivationStore:
    """The activations of a model's continuous thoughts."""
    # Imported here, since PyTorch takes seconds to load and the flags are checked first.
    from sae_jax.extraction.extract import extract
    from sae_jax.extraction.models import load_model
    from sae_jax.extraction.problems import load_problems

    problems = load_problems("generated", _NUM_PROBLEMS.value)
    return extract(problems, load_model(), path, layers=(LAYER,), positions=(POSITION,))


def table(rows: Rows) -> str:
    """Raw beside centered, with what chance gives: means over seeds with 95 % intervals."""
    header = ["activations", "d", "dead", "fvu", "specialized, published rule"]
    header += ["problems shuffled", "stability of seeds", "random directions"]
    lines = []
    for row in sorted(summarize_rows(rows, COLUMNS), key=lambda row: row["d_sae"]):
        cells = [percent(row[name]) for name in COLUMNS[:4]]
        cells += [with_interval(row["feature_stability"], 1, 2)]
        cells += [f"{row['stability_by_chance'].mean:.2f}"]
        lines.append([ARMS[row["normalize"]], str(row["d_sae"]), *cells])
    return markdown_table(header, lines)


def story(rows: Rows, floor: float) -> str:
    """What the table says, in two sentences."""
    summaries = summarize_rows(rows, COLUMNS)

    def of(arm: str) -> dict[str, Summary]:
        return next(s for s in summaries if (s["normalize"], s["d_sae"]) == (arm, max(D_SAE)))

    raw, centered = of("none"), of("center")
    return (
        f"Of {max(D_SAE)} latents {percent(raw['dead_fraction'])} never fire on raw activations and"
        f" {percent(centered['dead_fraction'])} once their mean is subtracted, which is"
        f" {rows[0]['offset_severity']:.1f} times as long as their standard deviations; the"
        f" error (fvu) is {percent(raw['fvu'])} raw and {percent(centered['fvu'])} centered, where"
        f" the best plane of {K} dimensions has {100 * floor:.1f} %.\n"
        f"The published rule calls {percent(raw['published_rate'])} of the raw latents that fire"
        f" specialized, and {percent(raw['published_null'])} after the problems are shuffled;"
        f" centered {percent(centered['published_rate'])}, and"
        f" {percent(centered['published_null'])}."
    )


def draw(rows: Rows, result: sae_jax.SweepResult, floor: float, path: Path) -> None:
    """Draws how often each latent fires, and the errors beside those of a plane."""
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    rates, errors = figure.subplots(1, 2)
    for member in result.members:
        if member.config.d_sae == max(D_SAE):
            color, line = STYLES[member.config.normalize]
            fires = np.sort(member.firing_rate[member.firing_rate > 0])[::-1]
            label = ARMS[member.config.normalize] if member.config.seed == 0 else None
            rates.plot(np.arange(1, len(fires) + 1), 100 * fires, line, color=color, label=label)
    rates.axvline(max(D_SAE), color="0.8", linewidth=1)
    rates.set(xlabel=f"rank of the latent, of {max(D_SAE)}", ylabel="fires on [% of samples]")
    rates.set(yscale="log", title="Lines end where latents are dead")
    rates.legend()
    for row in summarize_rows(rows, COLUMNS):
        color, _ = STYLES[row["normalize"]]
        at = D_SAE.index(row["d_sae"]) + (0.2 if row["normalize"] == "center" else -0.2)
        mean, half_width = row["fvu"][:2]
        label = ARMS[row["normalize"]] if row["d_sae"] == D_SAE[0] else None
        errors.bar(at, 100 * mean, 0.36, color=color, label=label)
        errors.errorbar(at, 100 * mean, 100 * half_width, color="0.3", capsize=3)
    errors.axhline(100 * floor, color="k", linestyle=":", label=f"PCA, {K} dimensions")
    errors.set(xticks=range(len(D_SAE)), xticklabels=[f"d = {d_sae}" for d_sae in D_SAE])
    errors.set(ylabel="fvu [%]", title="Error, with 95 % intervals")
    errors.set_ylim(top=1.35 * errors.get_ylim()[1])
    errors.legend(loc="upper right")
    for axis in (rates, errors):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    command.start(work)
