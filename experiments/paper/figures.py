"""The figures of the study's document. They read in grey, and chance levels are drawn in."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper.tables import Tables
from sae_jax.report.statistics import Summary

ARMS: dict[str, dict[str, Any]] = {
    "none": {"color": "0.0", "linestyle": "-", "marker": "o", "label": "raw, as published"},
    "center": {"color": "0.4", "linestyle": "--", "marker": "s", "label": "centered"},
    "center_and_scale": {
        "color": "0.65",
        "linestyle": ":",
        "marker": "^",
        "label": "centered and scaled",
    },
}
_CHANCE = {"color": "0.6", "linewidth": 0.9, "marker": None}
_LABELS = {"d_sae": "dictionary size d", "k": "latents kept K"}


def death(tables: Tables) -> Figure:
    """Dead latents against d and K, and the error against d, in each arm."""
    figure, axes = _figure(3)
    _against(axes[0], tables, "d_sae", "dead_fraction", {"k": 50})
    axes[0].set(ylabel="dead latents [%]", title="K = 50")
    _against(axes[1], tables, "k", "dead_fraction", {"d_sae": 512})
    axes[1].set(ylabel="dead latents [%]", title="d = 512")
    _against(axes[2], tables, "d_sae", "fvu", {"k": 50})
    floor = 100 * tables.rows("pca", {"k": 50})[0]["fvu"]
    axes[2].axhline(floor, color="0.0", linewidth=0.9, linestyle="-.", label="PCA, 50 dimensions")
    axes[2].set(ylabel="fvu [%]", title="K = 50")
    for axis in axes:
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize="small")
    axes[2].legend(*_last(axes[2]), fontsize="small")
    return figure


def specialization(tables: Tables) -> Figure:
    """Specialized latents by both rules against d and K, beside shuffled problems."""
    figure, axes = _figure(3)
    panels = (
        (axes[0], "d_sae", {"k": 50}, "published_rate", "published_null", "published rule"),
        (axes[1], "d_sae", {"k": 50}, "calibrated_rate_supported", "calibrated_null", "calibrated"),
        (
            axes[2],
            "k",
            {"d_sae": 512},
            "calibrated_rate_supported",
            "calibrated_null",
            "calibrated",
        ),
    )
    for axis, x, fixed, column, null, rule in panels:
        _against(axis, tables, x, column, fixed)
        for arm in ARMS:
            points = _points(tables, x, null, fixed | {"normalize": arm})
            label = "problems shuffled" if arm == "none" else None
            axis.plot(*_means(points, 100), "x", color="0.0", markersize=7, label=label)
        title = ", ".join(f"{_LABELS[n][-1]} = {v}" for n, v in fixed.items())
        axis.set(ylabel=f"specialized, {rule} [%]", title=title)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize="small")
    return figure


def dose(tables: Tables) -> Figure:
    """Dead latents and error of the same samples with more or less of their mean."""
    figure, axes = _figure(2)
    rows = tables["dose"]
    doses = sorted({row["dose"] for row in rows})
    severity = [tables.rows("dose", {"dose": d})[0]["offset_severity"] for d in doses]
    for axis, column, label in (
        (axes[0], "dead_fraction", "dead latents [%]"),
        (axes[1], "fvu", "fvu [%]"),
    ):
        points = [
            (s, tables.summary("dose", column, dose=d))
            for s, d in zip(severity, doses, strict=True)
        ]
        _draw(axis, points, ARMS["none"] | {"label": None})
        axis.set(xlabel="offset severity |mean| / |standard deviations|", ylabel=label)
        axis.set_ylim(bottom=0)
    at = severity[doses.index(1.0)]
    for axis in axes:
        axis.axvline(at, color="0.6", linewidth=0.9, linestyle=":", label="the samples as they are")
    axes[0].legend(fontsize="small")
    return figure


def slices(tables: Tables) -> Figure:
    """Dead latents of every layer and position against the offset severity there."""
    figure, axes = _figure(1)
    for arm, face in (("none", "0.0"), ("center", "1.0")):
        rows = tables.rows("slices", {"normalize": arm})
        axes[0].scatter(
            [row["offset_severity"] for row in rows],
            [100 * row["dead_fraction"] for row in rows],
            s=16,
            facecolor=face,
            edgecolor="0.0",
            linewidth=0.7,
            label=ARMS[arm]["label"],
        )
    axes[0].set(xscale="log", xlabel="offset severity", ylabel="dead latents [%]")
    for formatter in (axes[0].xaxis.set_major_formatter, axes[0].xaxis.set_minor_formatter):
        formatter("{x:g}")
    axes[0].set_title("each layer and thought, d = 512, K = 50", fontsize=10)
    axes[0].legend(fontsize="small")
    return figure


STABILITY_LINES: dict[str, dict[str, Any]] = {
    "trained": {"color": "0.0", "linestyle": "-", "marker": "o"},
    "untrained model": {"color": "0.35", "linestyle": "--", "marker": "D"},
    "permuted dimensions": {"color": "0.35", "linestyle": ":", "marker": "s"},
    "frozen encoder": {"color": "0.6", "linestyle": "--", "marker": "v"},
    "before training": {"color": "0.6", "linestyle": ":", "marker": None},
    "random directions": {"color": "0.6", "linestyle": "-.", "marker": None},
}


def stability(tables: Tables) -> Figure:
    """Stability between seeds by how often latents fire, beside its nulls."""
    figure, axes = _figure(2)
    for axis, arm in zip(axes, ("none", "center"), strict=True):
        for name, style in STABILITY_LINES.items():
            rows = tables.rows("stability", {"baseline": name, "normalize": arm})
            rows = [row for row in rows if row["num_latents"] and np.isfinite(row["cosine"])]
            middles = [100 * (row["low"] + min(row["high"], 1)) / 2 for row in rows]
            cosines = [row["cosine"] for row in rows]
            axis.plot(middles, cosines, **style, label=name, markersize=4, linewidth=1.2)
        axis.set(xscale="log", xlabel="fires on [% of samples], middle of the range")
        axis.set(ylabel="largest cosine in another seed", title=ARMS[arm]["label"], ylim=(0, 0.6))
    axes[0].legend(fontsize="small")
    return figure


def size(tables: Tables) -> Figure:
    """Error on new samples and on the training samples against how many there are."""
    figure, axes = _figure(2)
    all_samples = max(row["num_samples"] for row in tables["size"])
    epochs = tables.rows("size", {"num_samples": all_samples})[0]["epochs"]
    for axis, d_sae in zip(axes, (250, 1000), strict=True):
        for arm in ("none", "center"):
            for same_steps, face in ((False, "1.0"), (True, None)):
                points = []
                for num in sorted({row["num_samples"] for row in tables["size"]}):
                    match = {"num_samples": num, "d_sae": d_sae, "normalize": arm}
                    of_epochs = {row["epochs"] for row in tables.rows("size", match)}
                    chosen = max(of_epochs) if same_steps else epochs
                    points.append((num, tables.summary("size", "fvu", **match, epochs=chosen)))
                label = (
                    f"{ARMS[arm]['label']}, {'as many steps' if same_steps else 'as many epochs'}"
                )
                style = ARMS[arm] | {"label": label}
                _draw(axis, points, style | ({"markerfacecolor": face} if face else {}))
        axis.set(xlabel="training samples n", ylabel="fvu on new samples [%]", title=f"d = {d_sae}")
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize="small")
    return figure


def synthetic(tables: Tables) -> Figure:
    """Known features recovered against K, beside the same SAEs before training."""
    figure, axes = _figure(2)
    columns = (("recovery_f1", "F1"), ("mean_max_cosine", "largest cosine of a feature"))
    for axis, (column, label_of) in zip(axes, columns, strict=True):
        for arm in ("none", "center"):
            for offset, face in (("the study's", None), ("none", "1.0")):
                fixed = {"d_sae": 512, "normalize": arm, "offset": offset}
                style = ARMS[arm] | {"label": f"{ARMS[arm]['label']}, offset: {offset}"}
                style |= {"markerfacecolor": face} if face else {}
                points = _points(tables, "k", column, fixed, table="synthetic")
                _draw(axis, points, style, factor=1)
        for offset, dashes in (("the study's", "--"), ("none", "-")):
            fixed = {"d_sae": 512, "normalize": "center", "offset": offset}
            points = _points(tables, "k", f"{column}_untrained", fixed, table="synthetic")
            label = f"before training, offset: {offset}"
            axis.plot(*_means(points, 1), **_CHANCE, linestyle=dashes, label=label)
        axis.set(xlabel=_LABELS["k"], ylabel=label_of, ylim=(0, 0.3))
    axes[0].legend(fontsize="small")
    return figure


THOUGHT_LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "zero": ("zero", {"color": "0.6", "linestyle": ":", "marker": "x"}),
    "mean": ("mean of the training samples", {"color": "0.6", "linestyle": "--", "marker": "v"}),
}
EDIT_MARKERS = ("o", "s", "^", "D", "v", "P")


def thoughts(tables: Tables) -> Figure:
    """What replacing a thought does to the gold answer, by the thought's position."""
    figure, axes = _figure(2)
    positions = sorted({row["position"] for row in tables["loss_recovered"]})
    for name, (label, style) in THOUGHT_LINES.items():
        rows = [tables.rows("loss_recovered", {"position": p})[0] for p in positions]
        rises = [row[f"rise_{name}"] for row in rows]
        errors = [row[f"rise_{name}_half_width"] for row in rows]
        shown = style | {"label": f"chance: {label}", "markersize": 4, "linewidth": 1.2}
        axes[0].errorbar(positions, rises, yerr=errors, capsize=2, **shown)
        axes[1].plot(positions, [row[f"change_{name}"] for row in rows], **shown)
    for arm in ("none", "center"):
        style = ARMS[arm] | {"label": f"reconstructions, {ARMS[arm]['label']}"}
        for axis, column in zip(axes, ("rise_sae", "change_sae"), strict=True):
            points = _points(tables, "position", column, {"normalize": arm}, "loss_recovered")
            _draw(axis, points, style, factor=1)
    axes[0].axhline(0, color="0.0", linewidth=0.7)
    axes[0].set(xlabel="thought", ylabel="rise of cross-entropy [nats a token]")
    axes[1].set(xlabel="thought", ylabel="mean |change of log p(answer)| [nats]")
    axes[1].set_ylim(bottom=0)
    axes[1].legend(fontsize="small")
    return figure


def causality(tables: Tables) -> Figure:
    """What editing an operation's latents does beyond editing random ones, by position."""
    figure, axes = _figure(2)
    edits = list(dict.fromkeys((r["edit"], r["operation"]) for r in tables["causality"]))
    for axis, arm in zip(axes, ("none", "center"), strict=True):
        for i, ((edit, operation), marker) in enumerate(zip(edits, EDIT_MARKERS, strict=True)):
            match = {"normalize": arm, "edit": edit, "operation": operation, "problems": "with"}
            rows = [r for r in tables.rows("causality", match) if np.isfinite(r["difference"])]
            axis.errorbar(
                [row["position"] + 0.12 * (i - 2.5) for row in rows],
                [row["difference"] for row in rows],
                yerr=[row["difference_half_width"] for row in rows],
                fmt=marker,
                color=f"{0.13 * i}",
                markersize=4,
                linewidth=0.9,
                capsize=1.5,
                label=f"{edit} {operation}",
            )
        axis.axhline(0, color="0.0", linewidth=0.7)
        axis.set(xlabel="thought", title=ARMS[arm]["label"])
        axis.set(ylabel="log p(answer), beyond random latents [nats]")
    axes[1].sharey(axes[0])
    axes[0].legend(fontsize="x-small")
    return figure


def map_of_slices(tables: Tables) -> Figure:
    """Dead latents against K on every slice of the map, and by layer and position."""
    figure, axes = _figure(3)
    central = {"d_sae": 512.0, "k": 50.0}
    for arm in ("none", "center"):
        rows = tables.rows("map", {"normalize": arm, "d_sae": 512.0})
        kept = sorted({row["k"] for row in rows})
        dead = np.array([[100 * r["dead_fraction"] for r in rows if r["k"] == k] for k in kept])
        low, middle, high = np.quantile(dead, [0.1, 0.5, 0.9], axis=1)
        errors = [middle - low, high - middle]
        axes[0].errorbar(kept, middle, yerr=errors, markersize=4, capsize=2, **ARMS[arm])
    axes[0].set(xscale="log", xlabel=_LABELS["k"], ylabel="dead latents [%]", ylim=(0, 100))
    axes[0].set(title="d = 512: median, and 10 to 90 % of slices", xticks=kept)
    axes[0].set_xticklabels([f"{k:.0f}" for k in kept])
    axes[0].minorticks_off()
    axes[0].legend(fontsize="small")
    for axis, arm in zip(axes[1:], ("none", "center"), strict=True):
        rows = tables.rows("map", central | {"normalize": arm})
        layers, positions = (sorted({r[name] for r in rows}) for name in ("layer", "position"))
        share = {(r["layer"], r["position"]): 100 * r["dead_fraction"] for r in rows}
        grid = np.array([[share[layer, p] for p in positions] for layer in layers])
        axis.grid(visible=False)
        axis.imshow(grid, cmap="Greys", vmin=0, vmax=100, aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            color = "white" if value > 50 else "black"
            axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
        axis.set_xticks(range(len(positions)), [f"{p:.0f}" for p in positions])
        axis.set_yticks(range(len(layers)), [f"{layer:.0f}" for layer in layers])
        axis.set(xlabel="thought", ylabel="layer")
        axis.set_title(f"dead latents [%], K = 50, d = 512, {ARMS[arm]['label']}", fontsize=9)
    return figure


FIGURES: dict[str, tuple[str, Callable[[Tables], Figure]]] = {
    "death": ("grid", death),
    "specialization": ("grid", specialization),
    "dose": ("dose", dose),
    "slices": ("slices", slices),
    "stability": ("stability", stability),
    "size": ("size", size),
    "synthetic": ("synthetic", synthetic),
    "thoughts": ("loss_recovered", thoughts),
    "causality": ("causality", causality),
    "map": ("map", map_of_slices),
}
"""The figures by their names, each with the table that it shows."""


def draw(tables: Tables, folder: Path) -> None:
    """Writes every figure whose table is there as `folder/<name>.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (table, figure) in FIGURES.items():
        if table in tables:
            # Without the version of the library, so that equal figures are equal files.
            figure(tables).savefig(folder / f"{name}.png", metadata={"Software": None})


def _against(axis: Axes, tables: Tables, x: str, column: str, fixed: Mapping[str, Any]) -> None:
    """Draws a column of the grid against a field, one line for each arm."""
    for arm, style in ARMS.items():
        _draw(axis, _points(tables, x, column, fixed | {"normalize": arm}), style)
    axis.set_xlabel(_LABELS[x])


def _points(
    tables: Tables, x: str, column: str, match: Mapping[str, Any], table: str = "grid"
) -> list[tuple[float, Summary]]:
    values = sorted({row[x] for row in tables.rows(table, match)})
    return [(v, tables.summary(table, column, **match, **{x: v})) for v in values]


def _draw(
    axis: Axes,
    points: Sequence[tuple[float, Summary]],
    style: Mapping[str, Any],
    factor: float = 100,
) -> None:
    at, means = _means(points, factor)
    axis.errorbar(
        at,
        means,
        yerr=[factor * np.nan_to_num(summary.half_width) for _, summary in points],
        markersize=4,
        linewidth=1.2,
        capsize=2,
        **style,
    )


def _means(
    points: Sequence[tuple[float, Summary]], factor: float
) -> tuple[list[float], list[float]]:
    return [at for at, _ in points], [factor * summary.mean for _, summary in points]


def _last(axis: Axes) -> tuple[list[Any], list[str]]:
    """The last line's entry of a legend."""
    handles, labels = axis.get_legend_handles_labels()
    index = labels.index(next(label for label in labels if label.startswith("PCA")))
    return [handles[index]], [labels[index]]


def _figure(num_panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.3 * num_panels, 3.6), dpi=130, layout="constrained")
    axes = list(figure.subplots(1, num_panels, squeeze=False).flat)
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
