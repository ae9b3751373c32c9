"""Do samples that are read while a group trains come as fast as the step asks for them?

    python experiments/benchmark_streaming.py --output=runs/streaming

Writes a store of made-up samples to a temporary folder, and measures in one process, repeats
interleaved: how many samples a second one member trains on that lie in memory, which is what a
step demands; how many it trains on while they are read; and how many are read if nobody trains,
from the page cache and, with --cold, from the disk. The fewer latents, the faster the step, so
that the smallest member and not a large group is the hard case. Takes minutes on 2 cores.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import command
import jax
import numpy as np
from absl import flags

import sae_jax
from sae_jax.activations.manifest import SHARDS_NAME
from sae_jax.activations.selection import Selection
from sae_jax.activations.writer import StorePlan, StoreWriter
from sae_jax.markdown import markdown_table
from sae_jax.problems import Problem
from sae_jax.report.tables import write_csv
from sae_jax.sweep.batches import BatchSource, InMemory
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import plan_sweep
from sae_jax.sweep.step import Program, init_group, train_epoch
from sae_jax.sweep.streamed import Streamed

_OUTPUT = flags.DEFINE_string("output", None, "Folder for streaming.csv.", required=True)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 100_000, "Samples in the store.")
_NUM_SHARDS = flags.DEFINE_integer("num_shards", 100, "Shards of the store.")
_D_IN = flags.DEFINE_list("d_in", ["576", "2048"], "Widths of a sample.")
_D_SAE = flags.DEFINE_list("d_sae", ["250", "512"], "Latents of the member.")
_STEPS_PER_PART = flags.DEFINE_integer("steps_per_part", 64, "Batches that are read at a time.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Interleaved repeats.", lower_bound=1)
_COLD = flags.DEFINE_bool("cold", True, "Also read what is not in the page cache.")

BATCH_SIZE, K = 256, 50


def work() -> None:
    """Measures every width."""
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for d_in in command.numbers(_D_IN):
        with tempfile.TemporaryDirectory() as folder:
            rows += measured(made_up(Path(folder) / "store", d_in), d_in)
        write_csv(rows, output / "streaming.csv")
    cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    print(markdown_table(list(rows[0]), cells))


def made_up(folder: Path, d_in: int) -> Selection:
    """All samples of a float16 store."""
    problems = [Problem(f"p{i}", "?", "1", ()) for i in range(_NUM_SAMPLES.value)]
    shard_size = -(-_NUM_SAMPLES.value // _NUM_SHARDS.value)
    folder.mkdir()
    plan = StorePlan("made-up", [0], [0], d_in, problems, shard_size=shard_size)
    writer = StoreWriter(folder, plan)
    writer.prepare()
    for shard in writer.missing_shards():
        x = np.random.default_rng(shard).standard_normal(plan.shard_shape(shard), np.float32)
        writer.write_shard(shard, x)
    return writer.finish().select(0, 0)


def measured(samples: Selection, d_in: int) -> list[dict[str, int | float]]:
    """A row for each d_sae: samples a second, in thousands, as medians."""
    x, place = samples.matrix, Placement.default()
    sources = {
        "in memory": InMemory(x[:], BATCH_SIZE, place),
        "streamed": Streamed(x, BATCH_SIZE, _STEPS_PER_PART.value, place),
    }
    rows = []
    for d_sae in command.numbers(_D_SAE):
        runs = {f"trained on {name}": trainer(source, d_sae) for name, source in sources.items()}
        runs["read"] = lambda: drained(sources["streamed"])
        if _COLD.value:
            runs["read from disk"] = lambda: drained(sources["streamed"], samples.store.path)
        for run in runs.values():  # Compiles, and fills the page cache.
            run()
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(_REPEATS.value):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        rates = {name: len(samples) / np.median(s) / 1000 for name, s in seconds.items()}
        rows.append({"d_in": d_in, "d_sae": d_sae} | {n: float(r) for n, r in rates.items()})
    return rows


def trainer(source: BatchSource, d_sae: int) -> Callable[[], None]:
    """Trains one member for an epoch, with the kernel that would be planned for it."""
    config = sae_jax.SAEConfig(d_sae, k=K)
    train_config = sae_jax.TrainConfig(batch_size=BATCH_SIZE, memory_budget=2**40)
    size = source.num_samples, source.d_in, source.d_in
    (group,) = plan_sweep([config], {config.data_slice: size}, train_config).groups
    program = Program(
        config.template, kernel=group.kernel, k_max=group.k_max, sequential=group.sequential
    )
    hyper = hyperparameters([config], train_config, *size[:2])
    center = np.zeros(source.d_in, np.float32)
    state = init_group(hyper, center, program=program, d_in=source.d_in, width=d_sae)

    def run() -> None:
        nonlocal state
        before = None
        for part, batches in enumerate(source.parts(0, 0, source.parts_per_epoch)):
            first_step = source.first_step(part)
            state, losses = train_epoch(state, hyper, batches, first_step, program=program)
            jax.block_until_ready(before)
            before = losses
        jax.block_until_ready(before)

    return run


def drained(source: BatchSource, cold: Path | None = None) -> None:
    """Reads an epoch, first taking the store of that folder out of the page cache."""
    if cold:
        for path in (cold / SHARDS_NAME).iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for _ in source.parts(0, 0, source.parts_per_epoch):
        pass


if __name__ == "__main__":
    command.start(work)
