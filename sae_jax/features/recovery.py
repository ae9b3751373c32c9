"""Recovery: which of the features that made-up samples consist of an SAE has found."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from sae_jax.activations.synthetic import KnownFeatures


def recovery(w_dec: np.ndarray, z: np.ndarray, known: KnownFeatures) -> dict[str, float]:
    """How well the latents of an SAE are the features that samples were made of.

    Args:
      w_dec: decoder, `[F, D]`.
      z: latents of the same samples, `[n, F]`.
      known: the samples and their features.

    Returns:
      `mean_max_cosine`: for each feature the largest absolute cosine with the decoder row of a
      latent that fires, averaged; `recovery_f1`: features and latents are matched one to one, by
      the Hungarian algorithm, so that the sum of F1 scores is largest, where F1 is of "the latent
      fires" as a test of "the feature is in the sample"; the mean over all features, 0 for those
      without a latent. Both are 0 if no latent fires.

    Raises:
      ValueError: if widths or numbers of samples do not fit each other.

    References:
      Sharkey, Braun and Millidge 2022, "Taking features out of superposition with sparse
      autoencoders", for the mean of the largest cosines
    """
    if w_dec.shape != (z.shape[1], known.features.shape[1]) or len(z) != len(known.codes):
        raise ValueError(
            f"w_dec {w_dec.shape} and z {z.shape} do not fit features {known.features.shape} and"
            f" codes {known.codes.shape}"
        )
    fires = z[:, alive := (z != 0).any(axis=0)] != 0
    if not alive.any():
        return {"mean_max_cosine": 0.0, "recovery_f1": 0.0}
    rows = w_dec[alive]
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = np.abs(known.features @ (rows / np.where(norms == 0, 1, norms)).T)
    present = (known.codes > 0).astype(np.float64)
    both = present.T @ fires
    total = present.sum(axis=0)[:, None] + fires.sum(axis=0)[None, :]
    f1 = 2 * both / np.maximum(total, 1)
    matched = f1[linear_sum_assignment(f1, maximize=True)]
    return {
        "mean_max_cosine": float(cosine.max(axis=1).mean()),
        "recovery_f1": float(matched.sum() / len(known.features)),
    }
