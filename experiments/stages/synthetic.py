"""What is recovered where the features are known, with and without an offset.

Samples are as many and as wide as the study's, each a sparse sum of known features, with a mean
of the study's offset severity added or none. Chance is what the same SAEs recover untrained.
"""

from typing import Any

import numpy as np

from sae_jax.activations.synthetic import KnownFeatures, known_features
from sae_jax.features.recovery import recovery
from sae_jax.features.untrained import untrained
from stages.study import RAW_AND_CENTERED, Study

NUM_FEATURES, NUM_ACTIVE = 1000, 50
SETTINGS = ({"k": (25, 50, 100), "d_sae": 512}, {"k": 50, "d_sae": 1000})


def rows(study: Study) -> list[dict[str, Any]]:
    """One row a member, with `mean_max_cosine` and `recovery_f1`, and the same untrained."""
    train, val = study.central.train.read(), study.central.val.read()
    deviation = np.linalg.norm(train.std(axis=0, dtype=np.float64))
    severity = float(np.linalg.norm(train.mean(axis=0, dtype=np.float64)) / deviation)
    # Without and with the offset, each a data slice of its own.
    known = {
        (study.layer, i): known_features(
            len(train) + len(val),
            train.shape[1],
            NUM_FEATURES,
            NUM_ACTIVE,
            offset_severity=offset,
        )
        for i, offset in enumerate((0.0, severity))
    }
    configs = [
        member
        for layer, i in known
        for setting in SETTINGS
        for member in study.members(**setting, normalize=RAW_AND_CENTERED, layer=layer, position=i)
    ]
    result = study.sweep(
        "synthetic",
        configs,
        {of: samples.x[: len(train)] for of, samples in known.items()},
        {of: samples.x[len(train) :] for of, samples in known.items()},
    )
    found = []
    for i, row in enumerate(result.table()):
        samples = _validation(known[study.layer, row["position"]], len(train))
        before = untrained([result.configs[i]], train.shape[1])[0]
        by_chance = _recovery(before, samples)
        found.append(
            row
            | {"position": study.position, "offset": ("none", "the study's")[row["position"]]}
            | {"num_features": NUM_FEATURES, "num_active": NUM_ACTIVE}
            | _recovery(result.sae(i), samples)
            | {f"{name}_untrained": value for name, value in by_chance.items()}
        )
    study.forget("synthetic")
    return found


def _validation(known: KnownFeatures, num_train: int) -> KnownFeatures:
    return known._replace(x=known.x[num_train:], codes=known.codes[num_train:])


def _recovery(sae: Any, samples: KnownFeatures) -> dict[str, float]:
    return recovery(np.asarray(sae.params["w_dec"]), np.asarray(sae.encode(samples.x)), samples)
