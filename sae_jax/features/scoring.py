"""Feature scores of every member of a sweep, one flat row each."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from sae_jax.features.report import feature_summary
from sae_jax.features.stability import feature_stability
from sae_jax.sae import Params
from sae_jax.store import Selection
from sae_jax.sweep.result import Member, SweepResult
from sae_jax.sweep.step import member_sae


def score_features(
    result: SweepResult, val: Selection | Sequence[Selection], *, progress: bool = True
) -> list[dict[str, Any]]:
    """The sweep's table, widened by what its latents respond to.

    Args:
      result: a trained sweep.
      val: the validation samples of each data slice of the sweep.
      progress: whether to show a progress bar.

    Returns:
      One row a member: those of `result.table()`, `feature_summary`'s rates, and
      `feature_stability` and `feature_stability_matched`, against the next seed of the
      same config (NaN where there is none).

    Raises:
      ValueError: if a member's data slice is not among `val`.
    """
    selections = [val] if isinstance(val, Selection) else val
    by_slice = {(part.layer, part.position): part for part in selections}
    rows = []
    for member in tqdm(result.members, desc="features", disable=not progress):
        if member.config.data_slice not in by_slice:
            raise ValueError(
                f"{member.config} was trained on {member.config.data_slice}; the validation"
                f" samples are of {list(by_slice)}"
            )
        samples = by_slice[member.config.data_slice]
        z = np.asarray(_latents(member.params, member.config.k, samples.activations))
        other = _next_seed(member, result.members)
        stability = feature_stability(
            member.params["w_dec"],
            other.params["w_dec"],
            member.firing_rate > 0,
            # No other seed: nothing of this SAE can be found again.
            other.firing_rate > 0 if other is not member else np.zeros(len(z[0]), bool),
        )
        rows.append(member.row() | feature_summary(z, samples.problems) | stability)
    return rows


@jax.jit
def _latents(params: Params, k: jax.Array, x: jax.Array) -> jax.Array:
    """Latents `[n, F]`; compiled once for each dictionary size."""
    return member_sae(params, k).encode(x)


def _next_seed(member: Member, members: Sequence[Member]) -> Member:
    """The member that differs in seed alone, the next one around; itself if there is none."""

    def all_but_seed(config: Any) -> tuple[Any, ...]:
        return config.d_sae, config.k, config.learning_rate, config.data_slice

    siblings = [m for m in members if all_but_seed(m.config) == all_but_seed(member.config)]
    return siblings[(siblings.index(member) + 1) % len(siblings)]
