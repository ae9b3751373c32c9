"""The same latent in two SAEs: decoder directions matched by cosine, and what chance gives."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_jax.features.stability import unit_rows

# Rows of a block of cosines, so that those of 16,384 latents with as many take 128 MiB at a time.
_BLOCK = 2048
_NUM_RANDOM = 256


class Matches(NamedTuple):
    """For each latent of one SAE the latent of another whose decoder row is most alike.

    Attributes:
      latent: its index in the other SAE, int `[F]`; -1 for latents that never fire, or if no
        latent of the other does.
      cosine: cosine of both rows, whose absolute value is the largest, `[F]`; NaN where there
        is none. It is negative where the two point opposite ways.
    """

    latent: np.ndarray
    cosine: np.ndarray


def best_matches(
    w_dec_a: np.ndarray, w_dec_b: np.ndarray, alive_a: np.ndarray, alive_b: np.ndarray
) -> Matches:
    """Finds each latent of SAE `a` in SAE `b`, among the latents that fire at least once.

    Args:
      w_dec_a, w_dec_b: decoders, `[Fa, D]` and `[Fb, D]`.
      alive_a, alive_b: whether each latent fires at least once, bool `[Fa]` and `[Fb]`.

    Raises:
      ValueError: if the decoders differ in width.
    """
    latents, cosines = _largest_cosines(w_dec_a, w_dec_b, alive_a, alive_b, 1, same=False)
    return Matches(latents[:, 0], cosines[:, 0])


def nearest_latents(
    w_dec: np.ndarray, alive: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each latent the others of its own SAE whose decoder rows are most alike.

    Args:
      w_dec: decoder, `[F, D]`.
      alive: whether each latent fires at least once, bool `[F]`.
      count: number of neighbors.

    Returns:
      Their indices, int `[F, count]`, -1 where there are fewer; and the cosines, NaN there.
      The first has the largest absolute cosine.
    """
    return _largest_cosines(w_dec, w_dec, alive, alive, count, same=True)


def best_cosine_by_chance(count: int, d_in: int, *, seed: int = 0) -> float:
    """Mean of the largest absolute cosine of a random direction with `count` others.

    This is what `best_matches` finds on average between two SAEs that have nothing in common.

    Args:
      count: number of latents to choose from.
      d_in: width of a decoder row.
      seed: PRNG seed of the 256 random directions that are tried.

    Returns:
      The mean; NaN if there are no latents to choose from.
    """
    if not count:
        return float("nan")
    rng = np.random.default_rng(seed)
    a, b = (unit_rows(rng.normal(size=(size, d_in))) for size in (_NUM_RANDOM, count))
    return float(np.abs(a @ b.T).max(axis=1).mean())


def shared_labels(
    labels: Sequence[np.ndarray], matches: Sequence[Sequence[Matches]]
) -> list[np.ndarray]:
    """In how many other SAEs the match of a latent has the same label, for every label.

    Args:
      labels: which latent of each of S SAEs has which of P labels, bool `[..., Fs, P]`.
      matches: `matches[a][b]` of each latent of SAE `a` in SAE `b`, S x S; those of an SAE with
        itself are not looked at.

    Returns:
      For each SAE, int `[..., Fs, P]`: 0 where the latent lacks the label itself.
    """
    shared = []
    for a, own in enumerate(labels):
        count = np.zeros(own.shape, np.int64)
        for b, others in enumerate(labels):
            if a != b:
                found = matches[a][b].latent
                count += np.where((found >= 0)[:, None], others[..., found, :], False)
        shared.append(np.where(own, count, 0))
    return shared


def _largest_cosines(
    w_dec_a: np.ndarray,
    w_dec_b: np.ndarray,
    alive_a: np.ndarray,
    alive_b: np.ndarray,
    count: int,
    *,
    same: bool,
) -> tuple[np.ndarray, np.ndarray]:
    if w_dec_a.shape[1] != w_dec_b.shape[1]:
        raise ValueError(f"decoders of different widths: {w_dec_a.shape[1]} and {w_dec_b.shape[1]}")
    from_a, from_b = np.flatnonzero(alive_a), np.flatnonzero(alive_b)
    latents = np.full((len(w_dec_a), count), -1)
    cosines = np.full((len(w_dec_a), count), np.nan)
    b = unit_rows(w_dec_b[from_b])
    num_found = min(count, len(from_b) - same)
    if num_found < 1:
        return latents, cosines
    for start in range(0, len(from_a), _BLOCK):
        rows = from_a[start : start + _BLOCK]
        cosine = unit_rows(w_dec_a[rows]) @ b.T
        size = np.abs(cosine)
        if same:
            size[np.arange(len(rows)), np.arange(start, start + len(rows))] = -1
        best = np.argpartition(-size, num_found - 1, axis=1)[:, :num_found]
        order = np.argsort(-np.take_along_axis(size, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)
        latents[rows, :num_found] = from_b[best]
        cosines[rows, :num_found] = np.take_along_axis(cosine, best, 1)
    return latents, cosines
