"""Feature scores of every member of a sweep, in one flat row each."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from tqdm import tqdm

from sae_jax.activations.selection import Selection
from sae_jax.activations.slices import DataSlice
from sae_jax.configs import SAEConfig
from sae_jax.features.encoding import latents_of
from sae_jax.features.records import Contents, summary_of
from sae_jax.features.stability import stability_by_chance, stability_over_seeds
from sae_jax.ops.tuning import CORE_SCORING_FLOPS, CPU_SECONDS_PER_ENCODER
from sae_jax.sweep.result import SweepResult
from sae_jax.sweep.widths import cheapest_widths


def score_features(
    result: SweepResult, val: Selection | Sequence[Selection], *, progress: bool = True
) -> list[dict[str, Any]]:
    """The sweep's table, with columns for what the latents respond to.

    Args:
      result: a trained sweep.
      val: the validation samples of each data slice of the sweep.
      progress: whether to show a progress bar.

    Returns:
      One row for each member: its row of `result.table()`, the rates of `feature_summary`, and
      `feature_stability` and `feature_stability_matched` against all other seeds of the same
      setting (NaN if there are none), and `stability_by_chance`, what as many random directions
      as are alive would have for the first. The scores of a member that diverged are `None`.

    Raises:
      ValueError: if a member's data slice is not among `val`.
    """
    selections = [val] if isinstance(val, Selection) else val
    by_slice: dict[DataSlice, Selection] = {
        (part.layer, part.position): part for part in selections
    }
    configs = result.configs
    for config in configs:
        if config.data_slice not in by_slice:
            raise ValueError(
                f"{config} was trained on {config.data_slice}; the validation"
                f" samples are of {list(by_slice)}"
            )
    trained = [i for i, member in enumerate(result.members) if member.diverged_at is None]
    num_samples, d_in = max(len(part) for part in selections), selections[0].store.d_in
    sizes: dict[str, list[int]] = {}
    for i in trained:
        sizes.setdefault(configs[i].architecture, []).append(configs[i].d_sae)
    widths = {
        architecture: cheapest_widths(
            of_architecture, 2 * num_samples * d_in / CORE_SCORING_FLOPS, CPU_SECONDS_PER_ENCODER
        )
        for architecture, of_architecture in sizes.items()
    }
    scores: dict[int, dict[str, Any]] = {}
    with tqdm(total=len(trained), desc="features", disable=not progress) as bar:
        for data_slice, samples in by_slice.items():
            members = [i for i in trained if configs[i].data_slice == data_slice]
            if not members:
                continue
            x, contents = jnp.asarray(samples.read()), Contents.of(samples.problems)
            for i in members:
                config = configs[i]
                z = latents_of(result.sae(i), x, widths[config.architecture][config.d_sae])
                scores[i] = summary_of(z, contents)
                bar.update()
    settings: dict[SAEConfig, list[int]] = {}
    for i in trained:
        settings.setdefault(configs[i].setting, []).append(i)
    for members in settings.values():
        decoders = [result.members[i].params["w_dec"] for i in members]
        alive = [result.members[i].firing_rate > 0 for i in members]
        chance = stability_by_chance(alive, decoders[0].shape[1], seed=0)
        stability = stability_over_seeds(decoders, alive)
        for i, scored in zip(members, stability, strict=True):
            scores[i] |= scored | {"stability_by_chance": chance}
    columns = dict.fromkeys(name for scored in scores.values() for name in scored)
    return [row | scores.get(i, columns) for i, row in enumerate(result.table())]
