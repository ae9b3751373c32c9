"""Made-up activations of a live store, written by the real writer; a program that makes them."""

import sys
import time
from pathlib import Path

import numpy as np

from sae_jax.activations.locks import lock
from sae_jax.activations.writer import StorePlan, StoreWriter
from sae_jax.problems import Problem

D_IN = 12
LAYERS = (1, 2)
WINDOW = 2
# Of other numbers of rows, so that windows end within batches.
COUNTS = [3 + i % 5 + i % 3 for i in range(135)]


def plan_of(window=WINDOW):
    """709 rows in 14 shards of about 60, the last of half as many."""
    problems = [Problem(f"p{i}", "?", "1", ()) for i in range(len(COUNTS))]
    return StorePlan(
        "tiny", LAYERS, ("all",), D_IN, problems, {}, "float32", 10, COUNTS, window=window
    )


def shard_of(plan, shard):
    """The same activations in every process."""
    x = np.random.default_rng(shard).normal(size=plan.shard_shape(shard)).astype(np.float32)
    return x * np.linspace(0.5, 2, D_IN, dtype=np.float32) + 1


def make(folder, *, resume=False, pause=0.0, last=None, window=WINDOW):
    """Writes shards as extraction does, all or the first `last` of those missing.

    Gives the largest number that lay there at once.
    """
    writer, most = StoreWriter(folder, plan_of(window)), 0
    with lock(folder):
        writer.prepare(resume=resume)
        for shard in writer.missing_shards()[:last]:
            writer.wait_for_room(shard)
            if writer.is_released(shard):
                continue
            time.sleep(pause)
            writer.write_shard(shard, shard_of(writer.plan, shard))
            most = max(most, len(list(Path(folder, "shards").iterdir())))
    return most


if __name__ == "__main__":
    print(make(sys.argv[1], resume="--resume" in sys.argv, pause=float(sys.argv[2])))
