"""Which latents of the central setting die: what tells them before the first training step?

Scores of a latent at initialization are compared with whether it is dead after training, by the
area under the ROC curve: the chance that a latent that lives scores higher than one that dies,
one half if the score says nothing.
"""

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from sae_jax.features.untrained import untrained
from stages import grid
from stages.study import ARMS, CENTRAL, Study


def rows(study: Study) -> list[dict[str, Any]]:
    """One row a member, with the areas; NaN where no latent, or every one, is dead.

    `auc_mean` is of the size of a latent's pre-activation on the mean sample, `auc_deviation` of
    the standard deviation of its pre-activation over samples, and `auc_fires` of how often it
    would fire at initialization. `auc_decoder` is of the absolute cosine of its decoder row with
    the mean, and `auc_helps` of what the latent would add to the reconstruction along the mean.
    `fires_at_start` is the share of latents that fire at initialization at all,
    `fires_at_start_of_dead` that among those which end dead.
    """
    result = grid.sweep(study)
    x = study.central.train.read()
    found = []
    for i in [j for arm in ARMS for j in grid.members_of(result, normalize=arm, **CENTRAL)]:
        config, member = result.configs[i], result.members[i]
        centered = x - x.mean(axis=0) if config.normalize != "none" else x
        if config.normalize == "center_and_scale":
            centered = centered / np.sqrt(np.mean(centered**2))
        sae = untrained([config], x.shape[1])[0]
        w_enc, b_enc = (np.asarray(sae.params[name]) for name in ("w_enc", "b_enc"))
        w_dec = np.asarray(sae.params["w_dec"])
        mean = x.mean(axis=0)
        pre = centered @ w_enc + b_enc
        ranks = np.argsort(np.argsort(-np.abs(pre), axis=1), axis=1)
        fires = (ranks < config.k).mean(axis=0)
        alive = member.firing_rate > 0
        scores = {
            "auc_mean": np.abs(centered.mean(axis=0) @ w_enc + b_enc),
            "auc_deviation": pre.std(axis=0),
            "auc_fires": fires,
            "auc_decoder": np.abs(w_dec @ mean) / np.linalg.norm(w_dec, axis=1),
            "auc_helps": (mean @ w_enc + b_enc) * (w_dec @ mean),
        }
        found.append(
            {name: getattr(config, name) for name in ("normalize", "k", "d_sae", "seed")}
            | {"dead_fraction": float(1 - alive.mean())}
            | {name: _area(alive, score) for name, score in scores.items()}
            | {
                "fires_at_start": float((fires > 0).mean()),
                "fires_at_start_of_dead": _mean((fires > 0)[~alive]),
            }
        )
    return found


def _area(alive: np.ndarray, score: np.ndarray) -> float:
    both = 0 < alive.sum() < len(alive)
    return float(roc_auc_score(alive, score)) if both else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
