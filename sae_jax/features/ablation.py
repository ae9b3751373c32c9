"""What each latent of an SAE is worth to its reconstructions."""

import jax.numpy as jnp
import numpy as np
from scipy import sparse

from sae_jax.architectures.base import SAE

_BLOCK = 512
# A transcoder's targets are not its samples: its recorded error is then another one.
_TOLERANCE = 0.01


def fvu_without(sae: SAE, z: sparse.csc_array, x: np.ndarray, mse: float) -> np.ndarray:
    """By how much `fvu` rises if a latent is set to zero in all samples.

    A reconstruction is linear in the latents, so the sum of |r + z d|² - |r|² over samples says
    it for every latent at once, where r is the residual and d the decoder row.

    Args:
      sae: an SAE of F latents.
      z: its latents, `[n, F]`.
      x: the samples that they encode, `[n, D]`.
      mse: the SAE's recorded mean squared error on these samples.

    Returns:
      The rise, `[F]`; NaN throughout if the error on these samples is not the recorded one, as
      of a transcoder, which reconstructs something else.
    """
    w_dec = np.asarray(sae.params["w_dec"])
    if w_dec.shape[1] != x.shape[1]:
        return np.full(z.shape[1], np.nan)
    squared_norms = (w_dec.astype(np.float64) ** 2).sum(axis=1)
    rise, error, rows = np.zeros(z.shape[1]), 0.0, sparse.csr_array(z)
    for start in range(0, len(x), _BLOCK):
        of_block, z_block = x[start : start + _BLOCK], rows[start : start + _BLOCK]
        dense = z_block.toarray()
        residual = of_block - np.asarray(sae.decode(jnp.asarray(dense), jnp.asarray(of_block)))
        scale = np.std(of_block, axis=1, ddof=1) if sae.normalize_input else np.ones(len(of_block))
        error += float((residual.astype(np.float64) ** 2).sum())
        projected = (residual * scale[:, None]) @ w_dec.T
        rise += (dense * (2 * projected + scale[:, None] ** 2 * dense * squared_norms)).sum(axis=0)
    if not np.isclose(error / x.size, mse, rtol=_TOLERANCE):
        return np.full(z.shape[1], np.nan)
    variance = float(((x - x.mean(axis=0, dtype=np.float64)) ** 2).sum())
    return rise / variance if variance else np.full(z.shape[1], np.nan)
