"""Whether two seeds of one configuration find the same features."""

import numpy as np
from scipy.optimize import linear_sum_assignment


def feature_stability(
    w_dec_a: np.ndarray, w_dec_b: np.ndarray, alive_a: np.ndarray, alive_b: np.ndarray
) -> dict[str, float]:
    """How well the decoder directions of one SAE are found in another.

    Args:
      w_dec_a, w_dec_b: decoders, `[Fa, D]` and `[Fb, D]`.
      alive_a, alive_b: latents that fire at least once, bool `[Fa]` and `[Fb]`.

    Returns:
      `feature_stability`: mean over the alive latents of `a` of the largest absolute
      cosine with an alive latent of `b`; `feature_stability_matched`: mean absolute
      cosine of the best one-to-one matching (Hungarian algorithm) of the smaller set of
      alive latents into the larger. NaN where one SAE has no alive latent.

    Raises:
      ValueError: if the decoders' widths differ.
    """
    if w_dec_a.shape[1] != w_dec_b.shape[1]:
        raise ValueError(f"decoders of different widths: {w_dec_a.shape[1]} and {w_dec_b.shape[1]}")
    cosine = np.abs(_unit_rows(w_dec_a[alive_a]) @ _unit_rows(w_dec_b[alive_b]).T)
    if cosine.size == 0:
        return {"feature_stability": np.nan, "feature_stability_matched": np.nan}
    matching = linear_sum_assignment(cosine, maximize=True)
    return {
        "feature_stability": float(cosine.max(axis=1).mean()),
        "feature_stability_matched": float(cosine[matching].mean()),
    }


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)
