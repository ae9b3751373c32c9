"""Feature scores of every member of a sweep, in one flat row each."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from scipy import sparse
from tqdm import tqdm

from sae_jax.activations.selection import Selection
from sae_jax.activations.slices import DataSlice
from sae_jax.configs import SAEConfig
from sae_jax.features.records import feature_summary
from sae_jax.features.stability import stability_by_chance, stability_over_seeds
from sae_jax.sweep.result import SweepResult


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
    scores: dict[int, dict[str, Any]] = {}
    with tqdm(total=len(trained), desc="features", disable=not progress) as bar:
        for data_slice, samples in by_slice.items():
            x = samples.read()
            for i in trained:
                if configs[i].data_slice == data_slice:
                    graphdef, arrays = nnx.split(result.sae(i))
                    z = np.asarray(latents_of(arrays, x, graphdef=graphdef))
                    scores[i] = feature_summary(z, samples.problems)
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


# Samples that are encoded at a time where all of them need not fit memory.
_BLOCK = 1024


def sparse_latents(sae: Any, x: np.ndarray) -> sparse.csc_array:
    """Latents `[n, F]`, encoded by blocks of samples."""
    graphdef, arrays = nnx.split(sae)
    blocks = []
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK]
        # Padded, since a last block of another size would compile anew.
        full = np.zeros((min(_BLOCK, len(x)), x.shape[1]), x.dtype)
        full[: len(block)] = block
        z = np.asarray(latents_of(arrays, full, graphdef=graphdef))
        blocks.append(sparse.csr_array(z[: len(block)]))
    return sparse.csc_array(sparse.vstack(blocks))


@partial(jax.jit, static_argnames="graphdef")
def latents_of(arrays: Any, x: jax.Array, *, graphdef: Any) -> jax.Array:
    """Latents `[n, F]` of an SAE's two parts; compiled once for each class, d_sae and k."""
    return nnx.merge(graphdef, arrays).encode(x)
