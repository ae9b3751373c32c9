"""An SAE as a function of its arrays, so that one traced program serves many members."""

from functools import cache, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sae_jax.architectures.base import SAE
from sae_jax.architectures.initialization import init_params
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Arrays, Hyperparameters
from sae_jax.configs import SAEConfig
from sae_jax.ops import random


class Affine(Protocol):
    """Samples become `(x - mean) / scale`; both float32 `[D]`."""

    @property
    def mean(self) -> np.ndarray:
        """What is subtracted."""

    @property
    def scale(self) -> np.ndarray:
        """What is divided by."""


# SAELens draws decoder rows of this norm where encoder and decoder start tied.
_SAELENS_TIED_NORM = 0.1


def initial(
    template: SAEConfig, hyper: Hyperparameters, center: jax.Array, d_in: int, width: int
) -> tuple[Arrays, Arrays]:
    """What a member trains, and what it keeps but does not train, before its first step.

    Args:
      template: `SAEConfig.template` of the member.
      hyper: its hyperparameters, all `[]`.
      center: what `b_dec` starts from if the config names a statistic, `[D_out]`.
      d_in: width D of an activation vector.
      width: latents F to allocate, at least its d_sae.
    """
    b_dec = {"uniform": None, "zeros": jnp.zeros_like(center)}.get(template.b_dec_init, center)
    tied_norm = _SAELENS_TIED_NORM if template.preset == "saelens" else 1.0
    params = init_params(
        random.key(hyper.seed),
        d_in,
        hyper.d_sae,
        width,
        d_out=len(center),
        tied=template.tied_init,
        decoder_norm=tied_norm if template.tied_init else 1.0,
        b_dec=b_dec,
    )
    sae = architecture_of(template).from_params(params, template)
    sae.start_training(template, hyper)
    return split(sae)


def split(sae: SAE) -> tuple[Arrays, Arrays]:
    """The trained arrays of an SAE by name, and those that it keeps but does not train."""
    states: Any = nnx.split(sae, nnx.Param, nnx.Variable, ...)
    return nnx.to_pure_dict(states[1]), nnx.to_pure_dict(states[2])


def merge(template: SAEConfig, params: Arrays, kept: Arrays, hyper: Hyperparameters) -> SAE:
    """The SAE around arrays, padded or not, and around traced hyperparameters.

    A padding latent is zero in every parameter. Where an architecture ranks latents, its
    pre-activation is 0 at an index above all true latents, and ties go to the lower index:
    while k <= d_sae it is never selected, so its gradient is 0 and it stays zero.
    """
    states = (params, kept) if kept else (params,)
    sae = nnx.merge(_graphdef(template), *states)
    sae.set_hyperparameters(hyper)
    return sae


def folded(
    template: SAEConfig, params: Arrays, kept: Arrays, x_norm: Affine, y_norm: Affine
) -> tuple[Arrays, Arrays]:
    """Arrays of members, leading axis M, that take samples as they are; see `SAE.fold`.

    Args:
      template: `SAEConfig.template` of the members.
      params, kept: what they trained and kept on normalized samples.
      x_norm, y_norm: mean `[D]` and scale `[D]` of samples and of targets.
    """
    statistics = (x_norm.mean, x_norm.scale[0], y_norm.mean, y_norm.scale)
    arrays = _folded(params | kept, *map(jnp.asarray, statistics), template=template)
    return {name: arrays[name] for name in params}, {name: arrays[name] for name in kept}


@partial(jax.jit, static_argnames="template")
def _folded(arrays: Arrays, *statistics: jax.Array, template: SAEConfig) -> Arrays:
    fold = architecture_of(template).fold
    return jax.vmap(lambda own: fold(own, template, *statistics))(arrays)


@cache
def _graphdef(template: SAEConfig) -> Any:
    def blank() -> SAE:
        zeros = Hyperparameters(*[jnp.zeros((), jnp.float32) for _ in Hyperparameters._fields])
        params = {
            "w_enc": jnp.zeros((1, template.d_sae)),
            "b_enc": jnp.zeros(template.d_sae),
            "w_dec": jnp.zeros((template.d_sae, 1)),
            "b_dec": jnp.zeros(1),
        }
        sae = architecture_of(template).from_params(params, template)
        sae.preset, sae.rescaled = template.preset, sae.is_rescaled(template)
        sae.start_training(template, zeros)
        return sae

    return nnx.graphdef(nnx.eval_shape(blank))
