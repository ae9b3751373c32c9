"""Do seeds find the same latents? Stability by how often latents fire, beside its null.

Nulls are random directions in the place of latents, the decoders before training, SAEs of samples
whose dimensions were permuted, and SAEs of which one half is frozen.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

import sae_jax
from sae_jax.features.shared_latents import stability_by_rate
from sae_jax.features.untrained import untrained
from stages import baselines
from stages.study import Study

EDGES = (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.001)
"""Ends of the ranges of firing rates; the first is that of almost dead latents."""


def rows(study: Study) -> list[dict[str, Any]]:
    """One row for each arm, baseline and range of firing rates."""
    found = []
    of_frozen = baselines.frozen(study)
    for members in baselines.settings_of(of_frozen):
        config = of_frozen.configs[members[0]]
        decoders, rates = _decoders_and_rates(of_frozen, members)
        found += _bins(baselines.name_of(config), config, decoders, rates)
        if config.frozen is None:
            d_in = decoders[0].shape[1]
            before = untrained([of_frozen.configs[i] for i in members], d_in)
            drawn = [np.asarray(sae.params["w_dec"]) for sae in before]
            found += _bins("before training", config, drawn, rates)
            rng = np.random.default_rng(0)
            random = [rng.normal(size=w_dec.shape) for w_dec in decoders]
            found += _bins("random directions", config, random, rates)
    for name, result in (
        (baselines.PERMUTED, baselines.permuted(study)),
        (baselines.UNTRAINED_MODEL, baselines.untrained_model(study)[0]),
    ):
        for members in baselines.settings_of(result):
            config = result.configs[members[0]]
            found += _bins(name, config, *_decoders_and_rates(result, members))
    return found


def _decoders_and_rates(
    result: sae_jax.SweepResult, members: list[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    decoders, _ = baselines.decoders_of(result, members)
    return decoders, [result.members[i].firing_rate for i in members]


def _bins(
    name: str,
    config: sae_jax.SAEConfig,
    decoders: Sequence[np.ndarray],
    rates: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    return [
        {"baseline": name, "normalize": config.normalize} | found._asdict()
        for found in stability_by_rate(decoders, rates, EDGES)
    ]
