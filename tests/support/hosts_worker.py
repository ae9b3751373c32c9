"""One process of a job that trains a small sweep; `hosts_test.py` starts several.

    python hosts_worker.py '{"process_id": 0, "num_processes": 2, "port": 12345, "mesh": ...}'

Prints as JSON what the process is left with.
"""

import json
import sys
import time

import jax
from sweeps import samples

from sae_jax import SAEConfig, TrainConfig, train_sweep

# Ten steps an epoch, the last of them smaller than the others.
X, X_VAL = samples(300), samples(77, seed=1)


def members():
    """Of different sizes, so that some are padded; an odd number, so that devices are filled up."""
    return [
        SAEConfig(24 - i, k=3, seed=i, architecture="batch_topk", aux_coefficient=1 / 32)
        for i in range(3)
    ]


def trained(mesh, epochs=2, stream=None, told=(), **arguments):
    """The sweep, as the only process or as one of several."""
    train_config = TrainConfig(epochs, 32, max_padding=0.5, mesh=mesh, stream=stream)
    return train_sweep(
        members(), X, X_VAL, train_config, progress=False, callbacks=told, **arguments
    )


def found(result):
    """What a test compares of a result."""
    return {
        "losses": [member.losses.tolist() for member in result.members],
        "explained_variance": [member.metrics["explained_variance"] for member in result.members],
        "firing_rate": [member.firing_rate.tolist() for member in result.members],
        "b_dec": [member.params["b_dec"].tolist() for member in result.members],
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    port, num_processes, process_id = map(given.pop, ("port", "num_processes", "process_id"))
    if num_processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes, process_id)
    events = []
    began = time.monotonic()
    result = trained(told=[lambda event: events.append(event.kind)], **given)
    print(json.dumps(found(result) | {"events": events, "devices": len(jax.devices())}))
