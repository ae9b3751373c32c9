"""Edits of latents before decoding, and how far they move the reconstruction."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import chex
import jax
import jax.numpy as jnp

_SWAP_KINDS = {
    "value-specialized": ("value", "number ", "Swapping {}↔{} features should change answers"),
    "operation-specialized": (
        "operation",
        "",
        "Swapping {}↔{} features should affect operation type",
    ),
}


def ablate(z: jax.Array, latents: Sequence[int]) -> jax.Array:
    """Sets some latents to zero in all samples of `z`, `[b, F]`."""
    return z.at[:, _checked(z, latents)].set(0)


def swap(z: jax.Array, a: int, b: int) -> jax.Array:
    """Exchanges two latents in all samples of `z`, `[b, F]`."""
    return z.at[:, _checked(z, (a, b))].set(z[:, jnp.array([b, a])])


def scale(z: jax.Array, latent: int, factor: float) -> jax.Array:
    """Multiplies one latent by a factor in all samples of `z`, `[b, F]`."""
    return z.at[:, _checked(z, (latent,))].multiply(factor)


def impact(x_hat: jax.Array, edited: jax.Array) -> dict[str, jax.Array]:
    """How far an edit moved reconstructions.

    Args:
      x_hat: reconstructions before the edit, `[b, D]`.
      edited: reconstructions after it, `[b, D]`.

    Returns:
      `mean_abs_difference` and `max_abs_difference`, taken over all elements;
      `mean_l2_difference` and `max_l2_difference`, taken over samples.
    """
    chex.assert_rank(x_hat, 2)
    chex.assert_equal_shape([x_hat, edited])
    difference = jnp.abs(x_hat - edited)
    distance = jnp.linalg.norm(difference, axis=1)
    return {
        "mean_abs_difference": jnp.mean(difference),
        "max_abs_difference": jnp.max(difference),
        "mean_l2_difference": jnp.mean(distance),
        "max_l2_difference": jnp.max(distance),
    }


def swap_pairs(features: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of latents that the published experiment would swap.

    Of each number that some latent is value-specialized in, and of each operation that some
    latent is operation-specialized in, the most frequent latent is taken. They are paired within
    their kind. Highly specialized latents take no part, as published.

    Args:
      features: mappings with `feature_id`, `activation_freq`, and the published rule's `type` and
        `description`.

    Returns:
      One mapping for each pair, in the layout of the recorded files.
    """
    by_frequency = sorted(features, key=lambda feature: -feature["activation_freq"])
    pairs = []
    for specialization, (kind, prefix, prediction) in _SWAP_KINDS.items():
        most_frequent: dict[str, Mapping[str, Any]] = {}
        for feature in by_frequency:
            if feature["type"] == specialization:
                most_frequent.setdefault(feature["description"], feature)
        for a, b in combinations(most_frequent.values(), 2):
            names = [f["description"].removeprefix(prefix) for f in (a, b)]
            pairs.append(
                {
                    "pair_type": kind,
                    "feature_a": a["feature_id"],
                    "feature_b": b["feature_id"],
                    "description_a": a["description"],
                    "description_b": b["description"],
                    "prediction": prediction.format(*names),
                }
            )
    return pairs


def _checked(z: jax.Array, latents: Sequence[int]) -> jax.Array:
    """The indices as an array; JAX would silently drop one that is out of range."""
    chex.assert_rank(z, 2)
    outside = [latent for latent in latents if not 0 <= latent < z.shape[1]]
    if outside:
        raise ValueError(f"latents {outside} are not among the {z.shape[1]} of this SAE")
    return jnp.asarray(latents, jnp.int32)
