"""What the stages that replace thoughts share: SAEs of every thought, and answers to score."""

from typing import Any

import numpy as np

import sae_jax
from stages.study import ARMS, CENTRAL, Study

NUM_PROBLEMS = 80
"""So many validation problems, the first of the split, whose order is random."""


def sweep(study: Study) -> sae_jax.SweepResult:
    """The SAEs: the central setting at every position of the study's layer, in each arm."""
    splits = splits_of(study)
    configs = [
        config
        for split in splits
        for config in study.members(
            **CENTRAL, normalize=ARMS, layer=split.train.layer, position=split.train.position
        )
    ]
    train, val = ([getattr(split, side) for split in splits] for side in ("train", "val"))
    return study.sweep("thoughts", configs, train, val)


def splits_of(study: Study) -> list[sae_jax.Split]:
    """The samples of every position, each split by the same problems."""
    return study.splits([study.layer])


def load_model(study: Study) -> Any:
    """The model that the study's activations come from.

    Raises:
      ValueError: if there is none, or it is not that of the activations, or these are not of
        thoughts.
    """
    if study.load_model is None:
        raise ValueError("replacing thoughts needs the model that the activations come from")
    settings = study.store.manifest["settings"]
    if settings.get("feedback", "none") == "none":
        raise ValueError("replacing thoughts needs activations of thoughts, found those of tokens")
    model = study.load_model()
    found = model.settings()
    if other := [name for name, value in found.items() if settings.get(name) != value]:
        details = "; ".join(f"{n} was {settings.get(n)!r}, is {found[n]!r}" for n in other)
        raise ValueError(f"the activations come from another model than {model.name}: {details}")
    return model


def scored_answers(study: Study, model: Any, split: sae_jax.Split) -> Any:
    """The `PatchedAnswers` of the validation problems whose thoughts are replaced."""
    # Imported here, since most stages need no PyTorch.
    from sae_jax.extraction.patching import PatchedAnswers

    return PatchedAnswers(
        model,
        split.val.problems[:NUM_PROBLEMS],
        layer=split.val.layer,
        position=int(split.val.position),
        feedback=study.store.manifest["settings"]["feedback"],
    )


def activations(split: sae_jax.Split) -> np.ndarray:
    """The thoughts of these problems, `[n, d_in]`."""
    return split.val.read(slice(NUM_PROBLEMS))


def members_at(result: sae_jax.SweepResult, split: sae_jax.Split) -> list[int]:
    """Indices of the members that were trained on a position, and did not diverge."""
    return [
        i
        for i, member in enumerate(result.members)
        if member.config.data_slice == (split.train.layer, split.train.position)
        and member.diverged_at is None
    ]
