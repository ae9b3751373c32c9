"""The central setting at every layer and position: does the offset tell which latents die?"""

from typing import Any

import sae_jax
from stages.study import CENTRAL, RAW_AND_CENTERED, Study


def rows(study: Study) -> list[dict[str, Any]]:
    """One row a member; slices take the place of seeds."""
    splits = study.splits(study.store.layers)
    configs = [
        config
        for split in splits
        for config in sae_jax.grid(
            **CENTRAL,
            normalize=RAW_AND_CENTERED,
            layer=split.train.layer,
            position=split.train.position,
        )
    ]
    train, val = ([getattr(split, side) for split in splits] for side in ("train", "val"))
    result = study.sweep("slices", configs, train, val, study.map_epochs)
    found = result.table()
    study.forget("slices")
    return [row | {"epochs": study.map_epochs} for row in found]
