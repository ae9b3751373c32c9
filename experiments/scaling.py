"""How time grows with the sizes of a sweep, and how well it is known before.

`benchmark.py --sections=estimate` trains sweeps of random sizes. The seconds of each are estimated
by constants in `sae_jax/ops/tuning.py`; with --repeats=16 or more, `fitted` gives new ones.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from scipy.optimize import lsq_linear

import sae_jax
from sae_jax.ops import native
from sae_jax.ops.tuning import CPU_SECONDS_OF_WORK, NATIVE_SECONDS_OF_WORK
from sae_jax.sweep.estimate import Work, work_of
from sae_jax.sweep.placement import Placement

_MIN_SWEEPS_OF_FIT = 16

CHOICES: dict[str, tuple[Any, ...]] = {
    "members": (2, 4, 8, 14),
    "d_sae": (128, 256, 512, 1024, 2048),
    "k": (5, 10, 25, 50, 100),
    "d_in": (256, 576, 1024),
    "num_samples": (1000, 2000, 4000, 6000),
    "epochs": (3, 10, 25),
    "compute_dtype": ("float32", "float32", "bfloat16"),
}


def random_sweep(seed: int) -> dict[str, Any]:
    """One of each of `CHOICES`."""
    rng = np.random.default_rng(seed)
    return {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}


def measured(sweep: dict[str, Any], x: np.ndarray) -> tuple[float, float, Work]:
    """Trains a sweep with nothing compiled.

    Args:
      sweep: what `random_sweep` gives.
      x: activations `[n, d_in]`, of which a fifth is for validation.

    Returns:
      Seconds as estimated and as taken, and the work.
    """
    num_train = sweep["num_samples"]
    train, val = x[:num_train], x[num_train:]
    sizes = [sweep["d_sae"], sweep["d_sae"] // 2]
    configs = sae_jax.grid(d_sae=sizes, k=sweep["k"], seed=range(sweep["members"] // 2))
    config = sae_jax.TrainConfig(epochs=sweep["epochs"], compute_dtype=sweep["compute_dtype"])
    jax.clear_caches()
    plan = sae_jax.plan_for(configs, train, config)
    sizes = {(None, None): (num_train, sweep["d_in"], sweep["d_in"])}
    work = work_of(plan, configs, sizes, config, Placement.of(config, configs))
    start = time.perf_counter()
    sae_jax.train_sweep(configs, train, val, config, progress=False)
    return plan.seconds, time.perf_counter() - start, work


def fitted(works: Sequence[Work], seconds: Sequence[float], near: Sequence[float]) -> Work:
    """Seconds of a unit of each kind of work: least squares of relative errors.

    Many kinds of work grow together, so that the constants are held near others: a relative change
    of one counts a 33rd of a relative error.

    Args:
      works: of each sweep.
      seconds: what each took.
      near: constants that are about right.
    """
    share = np.sqrt(1 / 33)
    relative = np.array(works) * np.array(near) / np.array(seconds)[:, None]
    rows = np.concatenate([relative, share * np.eye(len(near))])
    targets = np.concatenate([np.ones(len(works)), np.full(len(near), share)])
    return Work(*(lsq_linear(rows, targets, bounds=(0, np.inf)).x * near).tolist())


def estimate_rows(
    samples: Callable[[int, int], np.ndarray], num_sweeps: int
) -> list[dict[str, str | int | float]]:
    """A row of each of so many random sweeps.

    Args:
      samples: gives activations, of the number of samples and the width.
      num_sweeps: how many.
    """
    rows, found = [], []
    for seed in range(num_sweeps):
        sweep = random_sweep(seed)
        x = samples(sweep["num_samples"] * 5 // 4, sweep["d_in"])
        estimated, seconds, work = measured(sweep, x)
        found.append((work, seconds))
        rows.append(
            sweep | {"estimated": estimated, "seconds": seconds, "ratio": estimated / seconds}
        )
    if num_sweeps >= _MIN_SWEEPS_OF_FIT:
        near = NATIVE_SECONDS_OF_WORK if native.is_built() else CPU_SECONDS_OF_WORK
        print("seconds of each kind of work:", fitted(*zip(*found, strict=True), near))
    return rows


def fit_rows(
    rows: Sequence[dict[str, str | int | float]], axis: str
) -> list[dict[str, str | float]]:
    """The straight line, seconds of an epoch = a + b * size, of each contender.

    It has the least squares of relative errors; the largest of them says how straight growth is.

    Args:
      rows: what `benchmark.compare` gives of workloads that differ along an axis.
      axis: the column of the size.
    """
    fits: list[dict[str, str | float]] = []
    for name in dict.fromkeys(str(row["contender"]) for row in rows):
        points = [
            (float(row[axis]), _seconds_of_epoch(row)) for row in rows if row["contender"] == name
        ]
        size, seconds = np.array(points).T
        b, a = np.polyfit(size, seconds, 1, w=1 / seconds)
        error = np.max(np.abs((a + b * size) / seconds - 1))
        fits.append({"contender": name, "a": a, "b": b, "largest_relative_error": float(error)})
    return fits


def _seconds_of_epoch(row: dict[str, str | int | float]) -> float:
    steps = -(-int(row["num_samples"]) // int(row["batch_size"]))
    return float(row["ms_per_member_step"]) / 1e3 * int(row["members"]) * steps
