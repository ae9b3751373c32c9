"""The scores of a group's members, and what is left of each."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from sae_jax.activations.matrix import Matrix, blocks
from sae_jax.activations.slices import DataSlice, of_slice
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Arrays, Hyperparameters
from sae_jax.configs import SAEConfig
from sae_jax.metrics.evaluate import evaluate_group
from sae_jax.sweep.plan import Group
from sae_jax.sweep.processes import gathered
from sae_jax.sweep.result import Member, divergence
from sae_jax.sweep.step import Program

# Above which share of the variance in 1 % of the rows a sweep warns; a normal distribution's is
# below 0.02 in the widths of language models.
MAX_OUTLIER_SHARE = 0.25


def scores_of_group(
    group: Group,
    program: Program,
    params: Arrays,
    kept: Arrays,
    hyper: Hyperparameters,
    x_val: Matrix,
    y_val: Matrix | None,
    part_size: int | None,
) -> list[dict[str, float | int | np.ndarray]]:
    """Every metric of every member, of as many at once as the plan says."""
    shares = program.placement.shares((params, kept, hyper), group.scored_at_once)
    scores: dict[int, dict[str, float | int | np.ndarray]] = {}
    for members, (params, kept, hyper) in shares:
        if group.scored_width is not None:
            more = group.scored_width - group.width
            params, kept = widened((params, kept), template=program.template, num_latents=more)
        found = evaluate_group(
            program.template,
            params,
            kept,
            hyper,
            x_val,
            target=y_val,
            part_size=part_size,
            fetch=gathered,
        )
        scores |= zip(members, found, strict=True)
    return [scores[i] for i in range(len(group.members))]


@partial(jax.jit, static_argnames=("template", "num_latents"))
def widened(arrays: tuple[Arrays, Arrays], *, template: SAEConfig, num_latents: int) -> Any:
    """Trained and kept arrays of members, leading axis M, padded by so many latents."""
    widen = architecture_of(template).widened
    return tuple(widen(some, num_latents) for some in arrays)


def members_of_group(
    program: Program,
    configs: Sequence[SAEConfig],
    params: Arrays,
    kept: Arrays,
    hyper: Hyperparameters,
    scores: Sequence[Mapping[str, float | int | np.ndarray]],
    losses: np.ndarray,
    scored: Matrix,
) -> Iterator[tuple[int, Member]]:
    """The members, of true size, each with its place in the group; one device's after another's."""
    # Samples whose squares overflow have an infinite error under any SAE.
    overflows = not np.isfinite(sum(np.vdot(block, block) for block in blocks(scored)))
    # One of each device at a time, since with several processes every device gets them all. On a
    # CPU so many are scored at a time, so that the program is there.
    shares = program.placement.shares((params, kept, hyper), at_once=1)
    for members, (some_params, some_kept, _) in shares:
        arrays = gathered(some_params | some_kept)
        for place, i in enumerate(members.tolist()):
            if i >= len(configs):
                continue  # A copy that fills up the devices.
            own = {name: array[place] for name, array in arrays.items()}
            config, score, history = configs[i], scores[i], losses[:, i].copy()
            member = Member(
                config,
                architecture_of(config).of_true_size(own, config.d_sae),
                scalars(score),
                np.asarray(score["firing_rate"]),
                history,
                divergence(history, overflows or bool(np.isfinite(score["mse"]))),
            )
            yield i, member


def scalars(score: Mapping[str, float | int | np.ndarray]) -> dict[str, float | int]:
    """Those scores that are one number."""
    return {name: value for name, value in score.items() if not isinstance(value, np.ndarray)}


def warn_of_outliers(member: Member, num_samples: int, warned: set[DataSlice]) -> None:
    """Warns, once a data slice, where a few rows of extreme norm decide the scores."""
    share, data_slice = member.metrics["outlier_variance_share"], member.config.data_slice
    # Of fewer samples a single one is more than 1 %.
    if num_samples >= 100 and share > MAX_OUTLIER_SHARE and data_slice not in warned:
        warned.add(data_slice)
        warnings.warn(
            f"1 % of the rows of val{of_slice(data_slice)} hold {share:.0%} of its variance:"
            " fvu and explained variance say little of the other rows, of which"
            " fvu_without_outliers tells; Split.within_norm leaves such rows out",
            stacklevel=3,
        )
