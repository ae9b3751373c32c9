"""The published recipe at every position and several layers, raw and centered, in one call."""

import sae_jax
from sae_jax.features.scoring import score_features
from sae_jax.report.statistics import Rows
from stages.study import RAW_AND_CENTERED, Study

K = (5, 10, 20, 50, 100)
D_SAE = (512, 1024, 2048)


def rows(study: Study) -> Rows:
    """One row a member; slices take the place of seeds."""
    splits = study.splits(study.map_layers)
    configs = [
        config
        for split in splits
        for config in sae_jax.grid(
            k=K,
            d_sae=D_SAE,
            normalize=RAW_AND_CENTERED,
            layer=split.train.layer,
            position=split.train.position,
        )
    ]
    val = [split.val for split in splits]
    result = study.sweep("map", configs, [s.train for s in splits], val, study.map_epochs)
    found = score_features(result, val, progress=False)
    study.forget("map")
    return [row | {"epochs": study.map_epochs} for row in found]
