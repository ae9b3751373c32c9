"""How fast does a sweep train, what does its cost grow with, and what do others take?

    make bench                                         everything
    python experiments/benchmark.py --sections=headline --output=runs/benchmark

Each section prints a table and writes NAME.csv (and NAME.png where it shows growth) to
--output. All contenders of a section see the same samples in one process. Repeats are
interleaved, over the sizes of a growth too, and medians are reported, next to the speed of this
machine's matrix products and memory in the same minutes. Contenders from other libraries
take part if they are installed.

    headline   4 members, d_sae 512, k 50, D 2048, all contenders
    published  the 14 members of the published grid at D 576, all contenders; milliseconds are
               a mean over members
    architectures   every architecture with the definition of SAELens, beside SAELens itself
    large      one member, d_sae 16384, k 64, D 576; selected rows take a fifth of the loop
    members, d_sae, k, d_in, num_samples   growth along one axis, and the straight line through it:
               seconds of an epoch = a + b * size
    products   the products of a step alone, by XLA and by PyTorch, on a CPU; not among the
               default ones
    estimate   as many sweeps of random sizes as --repeats, from nothing compiled to scores, and
               what their plans say that they take; not among the default ones
    grid       the 14 members of the published experiment's open questions through
               `train_sweep`, compilation and scores included, and the same as a loop
    wall_clock   the same 14 members from a fresh process, nothing compiled, to a table of scores,
               by wall_clock.py: what a researcher waits for
    memory     peak memory of the headline's contenders, a process each
    accelerator   the published grid and the 1,152 SAEs of its sibling, from a store to a scored
               table: SAEs a minute, share of the peak, padding and memory. Not among the default
               ones, since it is made for a GPU or TPU: the 1,152 take the better part of an hour on
               2 cores

A section takes minutes on 2 CPU cores. On a Zen 5 expect the headline at 2.2 times the PyTorch
loop in float32 (2.6 times on real --activations), and 2.7 to 3.5 times in bfloat16.
"""

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import command
import grids
import jax
import jax.numpy as jnp
import numpy as np
import scaling
import wall_clock
from absl import flags
from contenders import ARCHITECTURES, CONTENDERS
from products import product_rows
from torch_contenders import LOOPS, TORCH_LOOP
from workload import PUBLISHED_SIZES, Contender, LeftOut, Workload

import sae_jax
from sae_jax.markdown import markdown_table
from sae_jax.ops.matmul import COMPUTE_DTYPES, matmul
from sae_jax.report.tables import write_csv

HEADLINE = Workload.equal()
_large = partial(Workload.equal, members=1, d_sae=16384, k=64, d_in=576, num_samples=2048)
LARGE = _large()
_short = partial(Workload.equal, num_samples=1024)
SHORT = _short()
GROWTH = {
    "members": [_short(members=m) for m in (1, 2, 4, 8, 16, 32)],
    "d_sae": [_large(d_sae=d) for d in (256, 1024, 2048, 4096, 8192, 16384, 32768)],
    "k": [_short(k=k) for k in (1, 10, 25, 50, 100, 200, 400)],
    "d_in": [_short(d_in=d) for d in (256, 576, 1024, 2048, 4096)],
    "num_samples": [Workload.equal(members=1, num_samples=n) for n in (256, 1024, 4096, 16384)],
}
# The published training split, of activations as wide as those of the smallest model in use.
PUBLISHED = Workload(PUBLISHED_SIZES, d_in=576, num_samples=5978)

# How the other libraries grow is not the question.
GROWTH_CONTENDERS = {
    name: CONTENDERS[name]
    for name in (
        "sae_jax float32",
        "sae_jax bfloat16",
        "sae_jax float32, selected_rows",
        TORCH_LOOP,
    )
}

_DEFAULT_SECTIONS = [
    "headline",
    "published",
    "architectures",
    "large",
    *GROWTH,
    "grid",
    "wall_clock",
    "memory",
]


def _define_some(
    name: str, default: Sequence[str], allowed: Sequence[str], description: str
) -> flags.FlagHolder:
    """A flag that takes some of the allowed words, with commas between them."""
    flag = flags.DEFINE_list(name, list(default), description)
    flags.register_validator(
        flag,
        lambda some: bool(some) and set(some) <= set(allowed),
        f"expected some of {', '.join(allowed)}",
    )
    return flag


_SECTIONS = _define_some(
    "sections",
    _DEFAULT_SECTIONS,
    [*_DEFAULT_SECTIONS, "accelerator", "estimate", "products"],
    "What to measure.",
)
_CONTENDERS = flags.DEFINE_multi_enum(
    "contender",
    None,
    CONTENDERS,
    f"A contender of the headline, published, large and memory, beside {TORCH_LOOP!r}; may be"
    " given several times. All of them unless named.",
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Interleaved repeats; the median counts.")
_GRID_EPOCHS = flags.DEFINE_integer("grid_epochs", 25, "Epochs of the grid by train_sweep.")
_LOOP_EPOCHS = flags.DEFINE_integer(
    "loop_epochs", 25, "Epochs of the grid by the PyTorch loop, scaled to --grid_epochs."
)
_GRIDS = _define_some(
    "grids", ["published", "sibling"], ["published", "sibling"], "Grids of the accelerator section."
)
_EPOCHS = flags.DEFINE_integer("epochs", 25, "Epochs of the accelerator section.")
_DTYPES = _define_some(
    "dtypes", ["float32"], COMPUTE_DTYPES, "Of the products of the accelerator section."
)
_MEMORY_BUDGET = flags.DEFINE_string(
    "memory_budget", None, "What a group of the accelerator section may take, such as 6GiB."
)
_ACTIVATIONS = flags.DEFINE_string(
    "activations", None, "A .npy file [n, d_in] of real activations, instead of made-up ones."
)
_WALL_CLOCK_EPOCHS = flags.DEFINE_list(
    "wall_clock_epochs", ["3", "25"], "Epochs of the wall_clock section, one table for all."
)
_OUTPUT = flags.DEFINE_string("output", "runs/benchmark", "Folder for the results.")

Row = dict[str, str | int | float]


def work() -> None:
    """Runs the sections that the flags name."""
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    for section in _SECTIONS.value:
        if section == "headline":
            rows = compare([HEADLINE], contenders())
        elif section == "published":
            rows = compare([PUBLISHED], contenders())
        elif section == "wall_clock":
            rows = wall_clock_rows(output)
        elif section == "architectures":
            rows = compare([SHORT], ARCHITECTURES | {TORCH_LOOP: LOOPS[TORCH_LOOP]})
        elif section == "large":
            rows = compare([LARGE], contenders())
        elif section == "grid":
            rows = grid_rows()
        elif section == "accelerator":
            rows = accelerator_rows()
        elif section == "estimate":
            rows = scaling.estimate_rows(samples, _REPEATS.value)
        elif section == "products":
            medians = partial(interleaved_medians, repeats=_REPEATS.value)
            rows = product_rows((HEADLINE.d_in, PUBLISHED.d_in), medians)
        elif section == "memory":
            rows = memory_rows(HEADLINE) + memory_rows(LARGE)
        else:
            rows = compare(GROWTH[section], GROWTH_CONTENDERS)
            plot_growth(rows, section, output / f"{section}.png")
            fits = scaling.fit_rows(rows, section)
            print_table(fits)
            write_csv(fits, output / f"{section}_fit.csv")
        print(f"\n{section}")
        print_table(rows)
        write_csv(rows, output / f"{section}.csv")


def contenders() -> dict[str, Contender]:
    """Those that --contender names, and the loop that all are compared with."""
    names = _CONTENDERS.value or CONTENDERS
    return {name: CONTENDERS[name] for name in CONTENDERS if name in names or name == TORCH_LOOP}


def samples(num_samples: int, d_in: int) -> np.ndarray:
    """Activations `[num_samples, d_in]`: those of --activations, or made-up ones without it.

    Real activations of a smaller width are rotated into the larger space, which keeps lengths
    and angles. Made-up ones are sparse mixtures of 2 D directions. On them all 512 latents of
    the headline fire in every batch, which is the worst case for kernels that skip latents.
    """
    rng = np.random.default_rng(0)
    if _ACTIVATIONS.value:
        x = np.load(_ACTIVATIONS.value, mmap_mode="r", allow_pickle=False)
        x = np.resize(x, (num_samples, x.shape[1])).astype(np.float32)
        if x.shape[1] < d_in:
            rotation, _ = np.linalg.qr(rng.standard_normal((d_in, x.shape[1])))
            x = x @ rotation.T.astype(np.float32)
        return x[:, :d_in]
    directions = rng.standard_normal((2 * d_in, d_in)) / np.sqrt(d_in)
    # Some directions are common and most are rare, as in real activations.
    active = rng.random((num_samples, 2 * d_in)) < 0.5 / np.arange(1, 2 * d_in + 1) ** 0.5
    codes = active * rng.exponential(size=active.shape)
    return (codes @ directions).astype(np.float32)


def compare(workloads: Sequence[Workload], names: Mapping[str, Contender]) -> list[Row]:
    """Times contenders on workloads, in turn with this machine's ceilings.

    Returns:
      One row for each workload and contender.
    """
    runners = {}
    for workload in workloads:
        x = samples(workload.num_samples, workload.d_in)
        for name, prepare in names.items():
            try:
                runners[workload, name] = prepare(workload, x)
            except LeftOut as reason:
                print(f"{name} is left out: {reason}")
    a, b = jnp.ones((1024, 2048)), jnp.ones((2048, 1024))
    seconds = interleaved_medians(
        {key: runner.run for key, runner in runners.items()}
        | {_MATMUL: lambda: _product(a, b).block_until_ready(), _COPY: _copy},
        _REPEATS.value,
    )
    peak = _MATMUL_FLOPS / seconds[_MATMUL]
    bandwidth = _COPY_BYTES / seconds[_COPY]
    per_step = {
        (workload, name): seconds[workload, name] / workload.num_steps / runner.members
        for (workload, name), runner in runners.items()
    }
    rows: list[Row] = []
    for (workload, name), runner in runners.items():
        step = per_step[workload, name]
        flops = workload.flops_per_member_step
        floor = flops / peak + workload.optimizer_bytes / bandwidth
        rows.append(
            workload.columns()
            | {
                "contender": name,
                "ms_per_member_step": 1e3 * step,
                "speedup_over_loop": per_step[workload, TORCH_LOOP] / step,
                "gflops": flops / step / 1e9,
                "share_of_matmul_peak": flops / step / peak,
                "share_of_dense_floor": floor / step,
                "compile_seconds": runner.compile_seconds,
                "matmul_gflops": peak / 1e9,
                "memory_gbytes_per_s": bandwidth / 1e9,
            }
        )
    return rows


def interleaved_medians(
    runs: Mapping[Hashable, Callable[[], object]], repeats: int
) -> dict[Hashable, float]:
    """Median seconds of each run; the first repeat, which may compile, does not count."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


_MATMUL, _COPY = "matmul", "copy"
_MATMUL_FLOPS = 2 * 1024 * 2048 * 1024
_COPY_BYTES = 2 * 4 * 2**26


def _copy() -> None:
    global _buffer
    _buffer = _increment(jnp.zeros(2**26) if _buffer is None else _buffer).block_until_ready()


_buffer: jax.Array | None = None
_product = jax.jit(jnp.dot)
_increment = jax.jit(lambda a: a + 1, donate_argnums=0)


def grid_rows() -> list[Row]:
    """Wall clock of the published grid: one call of `train_sweep` against a loop over members."""
    x = samples(7473, HEADLINE.d_in)
    train, val = x[:5978], x[5978:]
    rows: list[Row] = []
    options: list[dict[str, Any]] = [
        {"compute_dtype": "float32"},
        {"compute_dtype": "bfloat16"},
        {"compute_dtype": "float32", "kernel": "dense"},
        *({"compute_dtype": "float32", "max_padding": share} for share in (0.0, 0.1, 0.2)),
    ]
    for option in options:
        jax.clear_caches()
        config = sae_jax.TrainConfig(epochs=_GRID_EPOCHS.value, **option)
        start = time.perf_counter()
        result = sae_jax.train_sweep(grids.PUBLISHED, train, val, config, progress=False)
        seconds = time.perf_counter() - start
        variances = [member.metrics["explained_variance"] for member in result.members]
        name = ", ".join(["sae_jax", *(f"{name} {value}" for name, value in option.items())])
        rows.append(_grid_row(name, _GRID_EPOCHS.value, seconds, variances))
    start = time.perf_counter()
    for config in grids.PUBLISHED:
        workload = Workload(((config.d_sae, config.k),), HEADLINE.d_in, len(train))
        runner = LOOPS[TORCH_LOOP](workload, train)
        for _ in range(_LOOP_EPOCHS.value):
            runner.run()
    scaled = (time.perf_counter() - start) * _GRID_EPOCHS.value / _LOOP_EPOCHS.value
    rows.append(_grid_row(TORCH_LOOP, _LOOP_EPOCHS.value, scaled, []))
    for row in rows:
        row["speedup_over_loop"] = scaled / float(row["seconds"])
    return rows


def _grid_row(name: str, epochs: int, seconds: float, variances: list[float]) -> Row:
    return {
        "contender": name,
        "members": len(grids.PUBLISHED),
        "measured_epochs": epochs,
        "seconds": seconds,
        "mean_explained_variance": float(np.mean(variances)) if variances else float("nan"),
    }


def accelerator_rows() -> list[Row]:
    """Each grid at each dtype, in this process."""
    a = jnp.ones((8192, 8192) if jax.default_backend() != "cpu" else (2048, 2048))
    rows: list[Row] = []
    for dtype in _DTYPES.value:
        product = partial(jax.jit(matmul, static_argnums=2), a, a, dtype)
        seconds = interleaved_medians({dtype: partial(_finished, product)}, 9)[dtype]
        train_config = sae_jax.TrainConfig(
            epochs=_EPOCHS.value,
            compute_dtype=dtype,
            memory_budget=command.num_bytes(_MEMORY_BUDGET),
        )
        for name in _GRIDS.value:
            case = grids.Case(name, getattr(grids, name.upper()), train_config)
            rows.append(grids.row(case, 2 * len(a) ** 3 / seconds))
    return rows


def _finished(run: Callable[[], jax.Array]) -> jax.Array:
    return run().block_until_ready()


def memory_rows(workload: Workload) -> list[Row]:
    """Memory that each contender adds to a process that has imported all libraries."""
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    for name in contenders():
        with ProcessPoolExecutor(1, mp_context=context) as process:
            try:
                added, members = process.submit(_added_memory, name, workload).result()
            except LeftOut as reason:
                print(f"{name} is left out: {reason}")
                continue
        rows.append(
            workload.columns()
            | {"contender": name, "peak_mib": added, "peak_mib_per_member": added / members}
        )
    return rows


def _added_memory(name: str, workload: Workload) -> tuple[float, int]:
    """MiB by which the peak after two epochs exceeds the peak before preparing, and for how many
    members."""
    x = np.ones((workload.num_samples, workload.d_in), np.float32)
    x += np.random.default_rng(0).standard_normal(x.shape, np.float32)
    before = grids.peak_mib()
    runner = CONTENDERS[name](workload, x)
    for _ in range(2):
        runner.run()
    return grids.peak_mib() - before, runner.members


def wall_clock_rows(output: Path) -> list[Row]:
    """Medians of `wall_clock.py`, a fresh process for each contender and repeat, in turns."""
    activations = _ACTIVATIONS.value
    if activations is None:
        activations = output / "made_up.npy"
        np.save(activations, samples(7473, PUBLISHED.d_in))
    rows: list[Row] = []
    for epochs in command.numbers(_WALL_CLOCK_EPOCHS):
        repeats = [
            {name: _cold_run(name, activations, epochs) for name in wall_clock.CONTENDERS}
            for _ in range(_REPEATS.value)
        ]
        medians = {
            name: {
                column: float(np.median([repeat[name][column] for repeat in repeats]))
                for column in ("seconds", "import_seconds", "mean_explained_variance")
            }
            for name, result in repeats[0].items()
            if result is not None
        }
        rows += [
            {"contender": name, "epochs": epochs}
            | columns
            | {"sae_jax_is_faster": columns["seconds"] / medians["sae_jax float32"]["seconds"]}
            for name, columns in medians.items()
        ]
    return rows


def _cold_run(name: str, activations: str | Path, epochs: int) -> dict[str, Any] | None:
    """What `wall_clock.py` prints; `None` where the contender's library is not installed."""
    if not wall_clock.is_installed(name):
        return None
    script = Path(wall_clock.__file__)
    arguments = [f"--contender={name}", f"--activations={activations}", f"--epochs={epochs}"]
    process = subprocess.run(
        [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(process.stdout.splitlines()[-1])


def print_table(rows: Sequence[Row]) -> None:
    """Prints rows as a Markdown table."""
    lines = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    print(markdown_table(list(rows[0]), lines), flush=True)


def plot_growth(rows: list[Row], axis: str, path: Path) -> None:
    """Draws the milliseconds of one step of one member against one axis of the workload."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    plot = figure.add_subplot(xscale="log", yscale="log", xlabel=axis, ylabel="ms per member-step")
    for name in dict.fromkeys(row["contender"] for row in rows):
        points = [
            (row[axis], row["ms_per_member_step"]) for row in rows if row["contender"] == name
        ]
        plot.plot(*zip(*points, strict=True), marker="o", label=name)
    plot.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    command.start(work)
