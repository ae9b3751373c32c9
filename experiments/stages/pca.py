"""What the best plane of as many dimensions as latents fire misses."""

from typing import Any

from sae_jax.metrics.pca import pca_fvu
from sae_jax.report import reference
from stages.study import Study


def rows(study: Study) -> list[dict[str, Any]]:
    """One row for each published sparsity that the samples have as many dimensions for."""
    train, val = study.central.train.read(), study.central.val.read()
    floor = pca_fvu(train, val, [k for k in reference.GRID if k <= min(train.shape)])
    return [{"k": rank, "fvu": fvu} for rank, fvu in floor.items()]
