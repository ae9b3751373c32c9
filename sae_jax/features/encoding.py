"""Latents of trained SAEs, by programs that many of them share."""

from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from scipy import sparse

from sae_jax.architectures.base import SAE

# Samples that are encoded at a time where all of them need not fit memory.
_BLOCK = 1024


def latents_of(sae: SAE, x: jax.Array | np.ndarray, width: int | None = None) -> np.ndarray:
    """Latents `[n, F]` of samples `[n, D]`.

    SAEs of one class share a program if they have the same number of latents, whatever their k.

    Args:
      sae: of F latents.
      x: the samples.
      width: latents that it is padded to, so that it shares the program of larger ones; none if
        `None`.
    """
    d_sae = sae.d_sae
    shared: Any = nnx.clone(sae)
    if isinstance(getattr(sae, "k", None), int):
        shared.k = nnx.data(np.asarray(shared.k, np.int32))
    if hasattr(sae, "prefix_sizes"):
        shared.prefix_sizes = ()  # They matter in training alone.
    graphdef, state = nnx.split(shared)
    arrays = nnx.to_pure_dict(state)
    if width is not None and width > d_sae:
        of_one = {name: array[None] for name, array in arrays.items() if name != "k"}
        padded = sae.widened(of_one, width - d_sae)
        arrays |= {name: array[0] for name, array in padded.items()}
    return np.asarray(_encoded(arrays, x, graphdef=graphdef))[:, :d_sae]


def sparse_latents(sae: SAE, x: np.ndarray) -> sparse.csc_array:
    """Latents `[n, F]`, encoded by blocks of samples."""
    blocks = []
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK]
        # Padded, since a last block of another size would compile anew.
        full = np.zeros((min(_BLOCK, len(x)), x.shape[1]), x.dtype)
        full[: len(block)] = block
        blocks.append(sparse.csr_array(latents_of(sae, full)[: len(block)]))
    return sparse.csc_array(sparse.vstack(blocks))


@partial(jax.jit, static_argnames="graphdef")
def _encoded(arrays: Any, x: jax.Array, *, graphdef: Any) -> jax.Array:
    return nnx.merge(graphdef, arrays).encode(x)
