"""The kinds of SAE that files hold, by the name of their architecture."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sae_jax.architectures.base import PARAM_NAMES, SAE
from sae_jax.architectures.batch_topk import BatchTopKSAE
from sae_jax.architectures.gated import GATES, GatedSAE
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.matryoshka import MatryoshkaSAE
from sae_jax.architectures.relu import ReLUSAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats.files import Arrays


class Kind(NamedTuple):
    """What tells one SAE of a class from another.

    Attributes:
      sae: the class.
      arrays: its arrays beside `PARAM_NAMES`.
      settings: its other arguments beside what every SAE does to its input.
    """

    sae: type[SAE]
    arrays: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


KINDS = {
    "topk": Kind(TopKSAE, settings=("k", "rule")),
    "batch_topk": Kind(BatchTopKSAE, ("threshold",), ("k",)),
    "matryoshka": Kind(MatryoshkaSAE, ("threshold",), ("k", "prefix_sizes")),
    "jumprelu": Kind(JumpReLUSAE, ("threshold",)),
    "gated": Kind(GatedSAE, GATES),
    "relu": Kind(ReLUSAE),
}
"""Every kind but those that `sae_jax.register` adds."""


def kind_of(sae: SAE) -> str:
    """Returns the name of an SAE's kind.

    Raises:
      ValueError: if its class is none of `KINDS`, such as one that somebody derived from them.
    """
    for name, kind in KINDS.items():
        if type(sae) is kind.sae:
            return name
    raise ValueError(
        f"cannot save a {type(sae).__name__} without its config; allowed are"
        f" {[kind.sae.__name__ for kind in KINDS.values()]}"
    )


def arrays_of(sae: SAE) -> Arrays:
    """Returns the parameters and an SAE's own arrays, as float32 NumPy arrays."""
    arrays = sae.of_true_size(jax.device_get(sae.arrays()), sae.d_sae)
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def input_options(sae: SAE) -> dict[str, Any]:
    """Returns what an SAE does to its input, as its class takes it."""
    return {"center_input": sae.center_input, "normalize_input": sae.normalize_input}


def settings_of(sae: SAE) -> dict[str, Any]:
    """Returns all that an SAE is beside its arrays and its kind."""
    own = {name: getattr(sae, name) for name in KINDS[kind_of(sae)].settings}
    return own | input_options(sae)


def build(name: str, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> SAE:
    """Returns the SAE of a kind that has the given arrays and settings.

    Raises:
      ValueError: if they do not fit each other.
    """
    kind = KINDS[name]
    make: Any = kind.sae
    own = {array: arrays[array] for array in kind.arrays}
    return make({array: arrays[array] for array in PARAM_NAMES}, **own, **settings)
