"""What training, the samples' structure and a trained model are worth, at the central setting.

Baselines are SAEs whose decoder or encoder stays as it was drawn, SAEs of samples whose
dimensions were permuted independently, and SAEs of a model with random weights.

Sources: frozen halves, arXiv:2602.14111; random models, arXiv:2501.17727.
"""

from typing import Any

import numpy as np

import sae_jax
from sae_jax.activations.synthetic import permuted_dimensions
from sae_jax.features.scoring import score_features
from sae_jax.features.shared_latents import shared_fraction
from sae_jax.features.stability import stability_over_seeds
from sae_jax.report.statistics import Rows
from stages.study import CENTRAL, RAW_AND_CENTERED, SPLIT_SEED, TRAIN_FRACTION, Study

FROZEN = (None, "decoder", "encoder")
PERMUTED, UNTRAINED_MODEL = "permuted dimensions", "untrained model"


def name_of(config: sae_jax.SAEConfig) -> str:
    """Name of the baseline that a member of the sweep of frozen halves is."""
    return f"frozen {config.frozen}" if config.frozen else "trained"


def frozen(study: Study) -> sae_jax.SweepResult:
    """Trained SAEs, and those of which one half stays as it was drawn."""
    return study.sweep(
        "frozen",
        _members(study, frozen=FROZEN),
        study.central.train,
        study.central.val,
    )


def permuted(study: Study) -> sae_jax.SweepResult:
    """SAEs of samples each of whose dimensions was permuted by itself."""
    train, val = (
        permuted_dimensions(side.read(), seed)
        for seed, side in enumerate((study.central.train, study.central.val))
    )
    of = study.slice
    return study.sweep("permuted", _members(study), {of: train}, {of: val})


def untrained_model(study: Study) -> tuple[sae_jax.SweepResult, sae_jax.Split]:
    """SAEs of the activations of a model with random weights.

    Raises:
      ValueError: if there are no such activations.
    """
    if study.untrained_store is None:
        raise ValueError("the baselines need --untrained_activations")
    selection = study.untrained_store.select(layer=study.layer, position=study.position)
    split = selection.split(train_fraction=TRAIN_FRACTION, seed=SPLIT_SEED)
    return study.sweep("untrained_model", _members(study), split.train, split.val), split


def rows(study: Study) -> list[dict[str, Any]]:
    """One row a member, with the name of its `baseline` and the `shared_fraction` of its arm.

    Members of permuted samples have no problems, and therefore no rates of features.
    """
    found = []
    of_frozen = frozen(study)
    of_model, split = untrained_model(study)
    of_permuted = permuted(study)
    for result, scored in (
        (of_frozen, score_features(of_frozen, study.central.val, progress=False)),
        (of_model, score_features(of_model, split.val, progress=False)),
        (of_permuted, _stability_alone(of_permuted)),
    ):
        shared = _shared(result)
        for i, row in enumerate(scored):
            name = {id(of_model): UNTRAINED_MODEL, id(of_permuted): PERMUTED}.get(
                id(result), name_of(result.configs[i])
            )
            found.append({"baseline": name} | row | {"shared_fraction": shared[i]})
    columns = dict.fromkeys(key for row in found for key in row)
    return [columns | row for row in found]


def _members(study: Study, **values: Any) -> list[sae_jax.SAEConfig]:
    return study.members(
        **CENTRAL,
        **values,
        normalize=RAW_AND_CENTERED,
        layer=study.layer,
        position=study.position,
    )


def _stability_alone(result: sae_jax.SweepResult) -> Rows:
    table = result.table()
    for members in settings_of(result):
        found = stability_over_seeds(*decoders_of(result, members))
        for i, scores in zip(members, found, strict=True):
            table[i] |= scores
    return table


def _shared(result: sae_jax.SweepResult) -> dict[int, float]:
    return {
        i: shared_fraction(*decoders_of(result, members))
        for members in settings_of(result)
        for i in members
    }


def settings_of(result: sae_jax.SweepResult) -> list[list[int]]:
    """Indices of the members of each setting."""
    settings: dict[sae_jax.SAEConfig, list[int]] = {}
    for i, config in enumerate(result.configs):
        settings.setdefault(config.setting, []).append(i)
    return list(settings.values())


def decoders_of(
    result: sae_jax.SweepResult, members: list[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Decoder `[F, D]` of each member, and whether each of its latents fires, bool `[F]`."""
    of_members = [result.members[i] for i in members]
    return [m.params["w_dec"] for m in of_members], [m.firing_rate > 0 for m in of_members]
