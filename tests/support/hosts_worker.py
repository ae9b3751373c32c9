"""One process of a job of two with a device each, which a program of a user's own joins.

`hosts_test.py` starts both: `python hosts_worker.py PORT PROCESS_ID`. Each prints as JSON what it
is left with.
"""

import json
import sys

import jax
import numpy as np
from sweeps import samples

from sae_jax import SAEConfig, TrainConfig, train_sweep
from sae_jax.activations.matrix import OnDemand
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.streamed import Streamed


def rows_read(mesh):
    """How many rows of four batches of eight this process reads, and has of each when they lie on
    a mesh, beside the smaller batch that ends the epoch."""
    x, read = samples(37), []

    def rows_of(rows):
        read.append(len(x[rows]))
        return x[rows]

    placement = Placement.of(TrainConfig(batch_size=8, mesh=mesh), [])
    (batches,) = Streamed(OnDemand(x.shape, rows_of), 8, 4, placement).parts(0, 0, 1)
    (share,) = batches.full.x.addressable_shards
    return sum(read), share.data.shape[1], len(batches.rest.x)


if __name__ == "__main__":
    port, process_id = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process_id))
    told = []
    result = train_sweep(
        [SAEConfig(8, k=2, seed=seed) for seed in range(2)],
        samples(40),
        samples(20, seed=1),
        TrainConfig(epochs=2, batch_size=16),
        progress=False,
        callbacks=[lambda event: told.append(event.kind)],
    )
    found = {
        "rows": {mesh: rows_read(mesh) for mesh in ("members:2", "data:2")},
        "told": told,
        "losses": [member.losses.tolist() for member in result.members],
        "b_dec": [np.asarray(member.params["b_dec"]).tolist() for member in result.members],
    }
    print(json.dumps(found))
