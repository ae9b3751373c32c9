"""Is it the offset that kills latents? The same samples with none, some and more of their mean.

The samples are x - mu + dose * mu, with mu the mean of the training samples: dose 0 is the
centered arm, dose 1 the raw one, and nothing else differs.
"""

from typing import Any

import numpy as np

from stages.study import CENTRAL, Study

DOSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def rows(study: Study) -> list[dict[str, Any]]:
    """One row a member, with its `dose`."""
    train, val = study.central.train.read(), study.central.val.read()
    mean = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    # A dose is a data slice of its own.
    slices = {(study.layer, i): (dose - 1) * mean for i, dose in enumerate(DOSES)}
    configs = [
        member
        for layer, i in slices
        for member in study.members(**CENTRAL, layer=layer, position=i)
    ]
    result = study.sweep(
        "dose",
        configs,
        {of: train + moved for of, moved in slices.items()},
        {of: val + moved for of, moved in slices.items()},
    )
    found = [
        row | {"dose": DOSES[row["position"]], "position": study.position} for row in result.table()
    ]
    study.forget("dose")
    return found
