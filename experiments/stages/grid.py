"""The published grid and its open questions, raw, centered, and centered and scaled."""

import dataclasses

import sae_jax
from sae_jax.features.scoring import score_features
from sae_jax.report import reference
from sae_jax.report.statistics import Rows
from stages.study import ARMS, Study


def sweep(study: Study) -> sae_jax.SweepResult:
    """The SAEs: every setting of the published grid in each arm, with every seed."""
    configs = [
        dataclasses.replace(config, layer=study.layer, position=study.position)
        for config in reference.grid(study.seeds, ARMS, vary_order=True)
    ]
    return study.sweep("grid", configs, study.central.train, study.central.val)


def rows(study: Study) -> Rows:
    """One row a member: every metric and every rate of its features."""
    return score_features(sweep(study), study.central.val, progress=False)


def members_of(result: sae_jax.SweepResult, **fields: object) -> list[int]:
    """Indices of the members whose configs have these values."""
    return [
        i
        for i, config in enumerate(result.configs)
        if all(getattr(config, name) == value for name, value in fields.items())
    ]
