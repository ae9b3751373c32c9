"""How many samples a dictionary needs: the central sparsity trained on subsets of the samples.

Each seed has a subset of its own. Subsets are trained on for as many epochs as all samples, and
for as many steps.
"""

from typing import Any

import numpy as np

from stages.study import RAW_AND_CENTERED, Study

SIZES = (1000, 2000, 3000, 4500)
D_SAE = (250, 1000)
K = 50


def rows(study: Study) -> list[dict[str, Any]]:
    """One row a member, with `num_samples`, `epochs`, and `train_mse` of its last epoch."""
    x_train, x_val = study.central.train.read(), study.central.val.read()
    num_all = len(x_train)
    found = []
    for num_samples in [*(size for size in SIZES if size < num_all), num_all]:
        as_many_steps = round(study.epochs * num_all / num_samples)
        for epochs in sorted({study.epochs, as_many_steps}):
            found += _of_size(study, x_train, x_val, num_samples, epochs)
    return found


def _of_size(
    study: Study, x_train: np.ndarray, x_val: np.ndarray, num_samples: int, epochs: int
) -> list[dict[str, Any]]:
    # A seed's subset is a data slice of its own.
    subsets = {
        (study.layer, seed): x_train[
            np.sort(np.random.default_rng(seed).permutation(len(x_train))[:num_samples])
        ]
        for seed in range(study.seeds)
    }
    configs = [
        member
        for seed in range(study.seeds)
        for member in study.members(
            k=K, d_sae=D_SAE, normalize=RAW_AND_CENTERED, layer=study.layer, position=seed
        )
        if member.seed == seed
    ]
    name = f"size_{num_samples}_{epochs}"
    result = study.sweep(name, configs, subsets, dict.fromkeys(subsets, x_val), epochs)
    steps = len(result.members[0].losses) // epochs
    found = [
        row
        | {
            "position": study.position,
            "num_samples": num_samples,
            "epochs": epochs,
            "train_mse": float(member.losses[-steps:].mean()),
        }
        for row, member in zip(result.table(), result.members, strict=True)
    ]
    study.forget(name)
    return found
