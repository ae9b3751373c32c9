"""Random latents to compare chosen ones with, alike in traits such as how often they fire."""

import numpy as np

NUM_NEAREST = 10


def matched_controls(
    chosen: np.ndarray,
    traits: np.ndarray,
    candidates: np.ndarray,
    num_sets: int,
    *,
    seed: int,
) -> np.ndarray:
    """Draws for each chosen latent a random one that is like it, in several independent sets.

    Of the candidates that a set does not have yet, one of the 10 nearest to the chosen latent is
    drawn. Distance is Euclidean, in traits that are divided by their standard deviations over the
    candidates.

    Args:
      chosen: indices of m latents, int `[m]`.
      traits: what a control should share with its latent, for each of F latents, `[F, q]`.
      candidates: which latents may be drawn, bool `[F]`; chosen ones never are.
      num_sets: number of sets.
      seed: PRNG seed of the draws.

    Returns:
      Indices, int `[num_sets, m]`: in column i those drawn for latent i. Each set has m distinct
      latents.

    Raises:
      ValueError: if there are fewer candidates than chosen latents, or a trait of a chosen latent
        or a candidate is not finite.
    """
    chosen = np.asarray(chosen, np.int64)
    allowed = np.array(candidates, dtype=bool)
    allowed[chosen] = False
    pool = np.flatnonzero(allowed)
    if len(pool) < len(chosen):
        raise ValueError(f"{len(chosen)} latents need as many controls, found {len(pool)}")
    compared = np.concatenate([chosen, pool])
    if not np.isfinite(traits[compared]).all():
        bad = compared[~np.isfinite(traits[compared]).all(axis=1)]
        raise ValueError(f"traits of latents {bad[:5].tolist()} are not finite")
    deviations = traits[pool].std(axis=0)
    scaled = traits / np.where(deviations > 0, deviations, 1)
    rng = np.random.default_rng(seed)
    sets = np.empty((num_sets, len(chosen)), np.int64)
    for drawn in sets:
        left = pool
        for i in rng.permutation(len(chosen)):
            distances = np.linalg.norm(scaled[left] - scaled[chosen[i]], axis=1)
            nearest = np.argsort(distances, kind="stable")[:NUM_NEAREST]
            drawn[i] = left[rng.choice(nearest)]
            left = left[left != drawn[i]]
    return sets
