"""Whether several seeds of one setting find the same features."""

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
      alive_a, alive_b: latents that fire at least once, bool `[Fa]` and `[Fb]`.

    Returns:
      `feature_stability`: mean over the alive latents of `a` of the largest absolute
      cosine with an alive latent of `b`; `feature_stability_back`: the same of `b` in `a`;
      `feature_stability_matched`: mean absolute cosine of the best one-to-one matching
      (Hungarian algorithm) of the smaller set of alive latents into the larger. NaN where
      one SAE has no alive latent.

    Raises:
      ValueError: if the decoders' widths differ, or an alive latent is not finite.
    """
    if w_dec_a.shape[1] != w_dec_b.shape[1]:
        raise ValueError(f"decoders of different widths: {w_dec_a.shape[1]} and {w_dec_b.shape[1]}")
    a, b = w_dec_a[alive_a], w_dec_b[alive_b]
    for name, rows in (("w_dec_a", a), ("w_dec_b", b)):
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} has alive latents that are not finite; expected finite rows")
    cosine = np.abs(_unit_rows(a) @ _unit_rows(b).T)
    if cosine.size == 0:
        return dict.fromkeys(
            ("feature_stability", "feature_stability_back", "feature_stability_matched"), np.nan
        )
    matching = linear_sum_assignment(cosine, maximize=True)
    return {
        "feature_stability": float(cosine.max(axis=1).mean()),
        "feature_stability_back": float(cosine.max(axis=0).mean()),
        "feature_stability_matched": float(cosine[matching].mean()),
    }


def stability_over_seeds(
    decoders: Sequence[np.ndarray], alive: Sequence[np.ndarray]
) -> list[dict[str, float]]:
    """For each seed of a setting, its stability against all other seeds.

    Every pair of seeds is compared once, in both directions, and counts for both seeds:
    `statistics.summarize_pairs` gives the interval of such values.

    Args:
      decoders: one a seed, `[F, D]`.
      alive: which latents of each fire at least once, bool `[F]`.

    Returns:
      One mapping a seed: `feature_stability`, the mean over the other seeds and both
      directions, and `feature_stability_matched`, the mean over the other seeds. NaN where
      there is no other seed, or none with alive latents.
    """
    found: list[list[tuple[float, float]]] = [[] for _ in decoders]
    for i, j in combinations(range(len(decoders)), 2):
        pair = feature_stability(decoders[i], decoders[j], alive[i], alive[j])
        both_ways = (pair["feature_stability"] + pair["feature_stability_back"]) / 2
        for seed in (i, j):
            found[seed].append((both_ways, pair["feature_stability_matched"]))
    return [
        dict(
            zip(
                ("feature_stability", "feature_stability_matched"),
                _mean_of_numbers(pairs),
                strict=True,
            )
        )
        for pairs in found
    ]


def _mean_of_numbers(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    scores = np.array(pairs).reshape(-1, 2)
    scores = scores[~np.isnan(scores).any(axis=1)]
    if not len(scores):
        return np.nan, np.nan
    best, matched = scores.mean(axis=0)
    return float(best), float(matched)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)
