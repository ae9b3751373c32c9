"""What latents that fire on fewer than 0.5 % of the samples fire on, at the central setting.

Samples that such a latent fires on are compared with all by their percentile, which is 50 on
average if the latent fires on samples at random. `random` rows give the same for as many samples
drawn at random in place of each latent's.
"""

from typing import Any

import numpy as np
from scipy import stats

from sae_jax.features.encoding import sparse_latents
from sae_jax.features.properties import property_matrix
from sae_jax.features.specialization import calibrated_specialization
from stages import grid
from stages.study import ARMS, CENTRAL, Study

RARE = 0.005


def rows(study: Study) -> list[dict[str, Any]]:
    """Two rows a member: of its almost dead latents, and of random samples.

    `num_latents` counts the latents. Percentiles are of a sample's distance from the mean, its
    error, the length of its question and the number of its steps. `distinct_samples` is the
    number of samples on which any of the latents fires, over the number of times that one does:
    1 if all fire on samples of their own. `num_specialized` counts latents that the calibrated
    rule ties to a property.
    """
    result = grid.sweep(study)
    val = study.central.val
    x = val.read()
    deviations = np.linalg.norm(x - study.central.train.read().mean(axis=0), axis=1)
    lengths = [len(problem.question) for problem in val.problems]
    steps = [len(problem.steps) for problem in val.problems]
    properties, _ = property_matrix(val.problems)
    found = []
    for i in [j for arm in ARMS for j in grid.members_of(result, normalize=arm, **CENTRAL)]:
        config = result.configs[i]
        sae = result.sae(i)
        z = sparse_latents(sae, x)
        errors = np.linalg.norm(x - np.asarray(sae(x)), axis=1)
        percentiles = {
            name: 100 * stats.rankdata(values) / len(x)
            for name, values in (
                ("distance", deviations),
                ("error", errors),
                ("question_length", lengths),
                ("num_steps", steps),
            )
        }
        fires = np.asarray((z != 0).todense())
        counts = fires.sum(axis=0)
        rare = np.flatnonzero((counts > 0) & (counts < RARE * len(x)))
        labeled = calibrated_specialization(fires, properties).specialized.any(axis=1)
        rng = np.random.default_rng(config.seed)
        drawn = [rng.choice(len(x), counts[j], replace=False) for j in rare]
        own = [np.flatnonzero(fires[:, j]) for j in rare]
        shared = {name: getattr(config, name) for name in ("normalize", "k", "d_sae", "seed")}
        for kind, samples in (("latents", own), ("random", drawn)):
            flat = np.concatenate([np.empty(0, int), *samples])
            found.append(
                shared
                | {"kind": kind, "num_latents": len(rare)}
                | {name: _mean(values[flat]) for name, values in percentiles.items()}
                | {
                    "distinct_samples": len(set(flat)) / max(len(flat), 1),
                    "num_specialized": int(labeled[rare].sum()) if kind == "latents" else None,
                }
            )
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
