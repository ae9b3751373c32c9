"""Stability: whether several seeds of one setting find the same features."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment


def feature_stability(
    w_dec_a: np.ndarray, w_dec_b: np.ndarray, alive_a: np.ndarray, alive_b: np.ndarray
) -> dict[str, float]:
    """How well the decoder directions of one SAE are found in another, and the reverse.

    Args:
      w_dec_a, w_dec_b: decoders, `[Fa, D]` and `[Fb, D]`.
      alive_a, alive_b: whether each latent fires at least once, bool `[Fa]` and `[Fb]`.

    Returns:
      `feature_stability`: for each alive latent of `a` the largest absolute cosine with an alive
      latent of `b`, averaged; `feature_stability_back`: the same from `b` to `a`;
      `feature_stability_matched`: mean absolute cosine of the best one-to-one matching
      (Hungarian algorithm) of the smaller set of alive latents into the larger. All are NaN if
      one SAE has no alive latent.

    Raises:
      ValueError: if the decoders differ in width, or an alive latent is not finite.
    """
    if w_dec_a.shape[1] != w_dec_b.shape[1]:
        raise ValueError(f"decoders of different widths: {w_dec_a.shape[1]} and {w_dec_b.shape[1]}")
    a, b = w_dec_a[alive_a], w_dec_b[alive_b]
    for name, rows in (("w_dec_a", a), ("w_dec_b", b)):
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} has alive latents that are not finite; expected finite rows")
    cosine = np.abs(unit_rows(a) @ unit_rows(b).T)
    best = best_back = matched = np.nan
    if cosine.size:
        best, best_back = cosine.max(axis=1).mean(), cosine.max(axis=0).mean()
        matched = cosine[linear_sum_assignment(cosine, maximize=True)].mean()
    return {
        "feature_stability": float(best),
        "feature_stability_back": float(best_back),
        "feature_stability_matched": float(matched),
    }


def stability_over_seeds(
    decoders: Sequence[np.ndarray], alive: Sequence[np.ndarray]
) -> list[dict[str, float]]:
    """For each seed of a setting, its stability against all other seeds.

    Every pair of seeds is compared once, in both directions, and counts for both seeds.
    `statistics.summarize_pairs` gives the interval of such values.

    Args:
      decoders: decoder `[F, D]` of each seed.
      alive: whether each latent fires at least once, bool `[F]` for each seed.

    Returns:
      One mapping for each seed: `feature_stability`, the mean over the other seeds and both
      directions, and `feature_stability_matched`, the mean over the other seeds. They are NaN if
      there is no other seed, or none with alive latents.
    """
    pairs = np.full((len(decoders), len(decoders), 2), np.nan)
    for i, j in combinations(range(len(decoders)), 2):
        found = feature_stability(decoders[i], decoders[j], alive[i], alive[j])
        both_ways = (found["feature_stability"] + found["feature_stability_back"]) / 2
        pairs[i, j] = pairs[j, i] = both_ways, found["feature_stability_matched"]
    means = np.ma.masked_invalid(pairs).mean(axis=1).filled(np.nan)
    return [
        {"feature_stability": best, "feature_stability_matched": matched}
        for best, matched in means.tolist()
    ]


def stability_by_chance(alive: Sequence[np.ndarray], d_in: int, *, seed: int) -> float:
    """`feature_stability` of random directions: as many for each seed as it has alive latents.

    Args:
      alive: whether each latent fires at least once, bool `[F]` for each seed.
      d_in: width D of a decoder row.
      seed: seed of the random directions.

    Returns:
      The mean over pairs of seeds, both ways; NaN if there are not two with alive latents.
    """
    counts = [int(mask.sum()) for mask in alive if mask.any()]
    if len(counts) < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    directions = [unit_rows(rng.normal(size=(n, d_in)).astype(np.float32)) for n in counts]
    best = []
    for a, b in combinations(directions, 2):
        cosine = np.abs(a @ b.T)
        best += [cosine.max(axis=1).mean(), cosine.max(axis=0).mean()]
    return float(np.mean(best))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows `[n, D]` scaled to norm 1; those of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)
