"""Whole grids through `train_sweep` on whatever device there is, from a store to a scored table."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import sae_jax
from sae_jax.activations.writer import StorePlan, StoreWriter
from sae_jax.features.scoring import score_features
from sae_jax.ops.matmul import matmul
from sae_jax.problems import Problem
from sae_jax.report import reference
from sae_jax.report.tables import write_csv
from sae_jax.sweep.loop import plan_for

NUM_PROBLEMS, TRAIN_FRACTION, D_IN = 7473, 0.8, 2048
PUBLISHED = reference.grid(num_seeds=1)
SIBLING = sae_jax.grid(
    layer=range(16), position=range(6), d_sae=(512, 1024, 2048), k=(5, 10, 20, 100)
)
"""The 1,152 SAEs of the published study's sibling: 16 layers, 6 thoughts, 3 sizes, 4 sparsities."""

_DIRECTIONS, _OPERATORS = 2 * D_IN, "+-*/"


@dataclasses.dataclass(frozen=True)
class Case:
    """A grid and how it is trained."""

    grid: str
    configs: Sequence[sae_jax.SAEConfig]
    train_config: sae_jax.TrainConfig


def row(case: Case, peak_flops: float) -> dict[str, str | int | float]:
    """Makes samples up, trains the grid on them, and scores it.

    Args:
      case: what to train.
      peak_flops: floating-point operations a second of this device's matrix products.

    Returns:
      Seconds of planning, training (compiling and metrics included) and of scoring latents; SAEs a
      minute of all that; share of the peak while training; share of latents that only pad; MiB
      at most, of the device, or of the process on a CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = made_up(Path(folder) / "store", case.configs)
        splits = [
            store.select(layer, position).split(TRAIN_FRACTION, seed=42)
            for layer in store.layers
            for position in store.positions
        ]
        train, val = [split.train for split in splits], [split.val for split in splits]
        start = time.perf_counter()
        plan = plan_for(case.configs, train, case.train_config)
        planned = time.perf_counter()
        result = sae_jax.train_sweep(
            case.configs, train, val, case.train_config, output=Path(folder) / "sweep"
        )
        trained = time.perf_counter()
        write_csv(score_features(result, val), Path(folder) / "results.csv")
        scored = time.perf_counter()
        variances = [member["explained_variance"] for member in result.table()]
    steps = case.train_config.epochs * -(-len(train[0]) // case.train_config.batch_size)
    flops = steps * sum(group.flops_per_step for group in plan.groups)
    allocated = sum(group.width * len(group.members) for group in plan.groups)
    return {
        "grid": case.grid,
        "members": len(case.configs),
        "epochs": case.train_config.epochs,
        "dtype": case.train_config.compute_dtype,
        "groups": len(plan.groups),
        "plan_seconds": planned - start,
        "train_seconds": trained - planned,
        "score_seconds": scored - trained,
        "saes_per_minute": 60 * len(case.configs) / (scored - start),
        "share_of_matmul_peak": flops / (trained - planned) / peak_flops,
        "padding": 1 - sum(config.d_sae for config in case.configs) / allocated,
        "peak_mib": peak_mib(),
        "mean_explained_variance": float(np.mean(variances)),
    }


def made_up(folder: Path, configs: Sequence[sae_jax.SAEConfig]) -> sae_jax.ActivationStore:
    """A float16 store with a slice for every (layer, position) of a grid.

    Samples are sparse sums of directions that all slices share; each slice has its own samples. A
    problem's steps name one to four operations.
    """
    rng = np.random.default_rng(0)
    problems = []
    for i in range(NUM_PROBLEMS):
        steps = tuple(f"8{_OPERATORS[n]}2=4" for n in rng.integers(0, 4, rng.integers(1, 5)))
        problems.append(Problem(f"p{i}", "?", "4", steps))
    layers, positions = (
        sorted({config.data_slice[axis] or 0 for config in configs}) for axis in (0, 1)
    )
    folder.mkdir()
    plan = StorePlan("made-up", layers, positions, D_IN, problems, shard_size=64)
    directions = rng.standard_normal((_DIRECTIONS, D_IN)).astype(np.float32) / np.sqrt(D_IN)
    # Some directions are common and most are rare, as in real activations.
    presence = (0.5 / np.arange(1, _DIRECTIONS + 1) ** 0.5).astype(np.float32)
    writer = StoreWriter(folder, plan)
    writer.prepare()
    for shard in writer.missing_shards():
        shape = plan.shard_shape(shard)
        samples = _mixtures(jax.random.key(shard), directions, presence, math.prod(shape[:-1]))
        writer.write_shard(shard, np.asarray(samples).reshape(shape))
    return writer.finish()


@partial(jax.jit, static_argnums=3)
def _mixtures(
    key: jax.Array, directions: jax.Array, presence: jax.Array, num_samples: int
) -> jax.Array:
    """Float16 `[num_samples, D_IN]`: of each sample some directions, by their probabilities."""
    of_sizes, of_presence = jax.random.split(key)
    codes = jax.random.exponential(of_sizes, (num_samples, _DIRECTIONS))
    codes *= jax.random.uniform(of_presence, codes.shape) < presence
    return matmul(codes, directions, "float32").astype(jnp.float16)


def peak_mib() -> float:
    """Peak memory of the first device so far; on a CPU of this process."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**20
    # `getrusage` would include that of the process that started this one.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
