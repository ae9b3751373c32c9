"""From problems and a model to a store of activations, whatever interrupts it."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from sae_jax.activations.selection import Position
from sae_jax.activations.store import ActivationStore
from sae_jax.activations.writer import StorePlan, StoreWriter, lock
from sae_jax.extraction.continuous_thoughts import (
    NUM_POSITIONS,
    check_feedback,
    thought_activations,
)
from sae_jax.extraction.fingerprints import json_sha256
from sae_jax.extraction.language_model import LanguageModel
from sae_jax.extraction.token_states import all_token_activations, token_activations
from sae_jax.problems import Problem

NO_FEEDBACK = "none"
ALL_TOKENS = "all"
# Problems that the model reads at once: 64 have more padding. On a CPU they are fewer where
# prompts are long: so many tokens, padding included, still fit its caches.
BATCH_SIZE = 32
_MAX_TOKENS_ON_CPU = 3000

# A shard is held in float32 before it is written, and bounds the memory that a run needs.
_SHARD_BYTES = 2**28
_MAX_SHARD_SIZE = 512


def extract(
    problems: Sequence[Problem],
    model: LanguageModel,
    output: str | os.PathLike,
    *,
    layers: Sequence[int],
    positions: Sequence[Position] = tuple(range(NUM_POSITIONS)),
    feedback: str = "soft",
    batch_size: int = BATCH_SIZE,
    storage_dtype: str = "float16",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> ActivationStore:
    """Extracts activations of every problem into a store.

    A run that was stopped, by whatever, continues with `resume` and ends with the same bytes.
    Under `torchrun`, the processes share the shards. What decides the activations goes into
    the store's settings: `LanguageModel.settings`, and `tokens_sha256` of all prompts' token ids.
    A run that finds others there is refused, as is one that finds a store without them, which an
    earlier version began: it could be finished with another model's activations.

    Args:
      problems: what the model thinks about, one row each.
      model: the model, from `load_model` or `load_codi`.
      output: folder of the store.
      layers: 0-based decoder layers, as `hidden_states[layer + 1]` of transformers.
      positions: passes of continuous thought; with feedback "none" token indices of the
        prompt (negative ones from its end), or `("all",)` for every token of the question.
      feedback: what a pass of thought feeds: "codi", "hidden", "soft", or "none" for no
        thoughts.
      batch_size: problems that the model reads at once, at most.
      storage_dtype: "float16" or "float32".
      resume: continue a store of the same plan, or reuse a finished one.
      overwrite: replace a store that is there.
      progress: show a progress bar.

    Raises:
      ValueError: if the layers, positions or feedback are not the model's, a prompt is not one
        that it can read, or the folder holds something else.
    """
    layers, positions = tuple(layers), tuple(positions)
    if not (problems and layers and positions):
        raise ValueError("an extraction needs at least one problem, one layer and one position")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    _check(model, layers, positions, feedback)
    prompts = model.prompts(
        problems,
        num_thoughts=0 if feedback == NO_FEEDBACK else max(map(int, positions)) + 1,
        templates=positions != (ALL_TOKENS,),
    )
    if feedback == NO_FEEDBACK:
        _check_token_positions(problems, prompts, positions)
    plan = StorePlan(
        model=model.name,
        layers=layers,
        positions=positions,
        d_in=model.d_in,
        problems=problems,
        settings={
            **model.settings(),
            "tokens_sha256": json_sha256(prompts),
            "feedback": feedback,
            "batch_size": batch_size,
        },
        dtype=storage_dtype,
        shard_size=_shard_size(model, layers, positions, prompts, batch_size),
        rows_per_problem=[len(ids) for ids in prompts] if positions == (ALL_TOKENS,) else None,
    )
    writer = StoreWriter(output, plan)
    rank, num_ranks = _join_ranks()
    with lock(output) if rank == 0 else nullcontext():
        if rank == 0:
            writer.prepare(resume=resume, overwrite=overwrite)
        _wait_for_ranks()
        shards = [shard for shard in writer.missing_shards() if shard % num_ranks == rank]
        with tqdm(
            total=sum(len(plan.shard_problems(shard)) for shard in shards),
            desc="extract",
            unit="problem",
            disable=not progress or rank > 0,
        ) as bar:
            for shard in shards:
                rows = _Rows(plan, shard)
                shard_problems = plan.shard_problems(shard)
                for batch in batches(shard_problems, prompts, batch_size, model.device):
                    read = [prompts[problem] for problem in batch]
                    rows.put(batch, _activations(model, read, layers, positions, feedback))
                    bar.update(len(batch))
                writer.write_shard(shard, rows.activations)
        _wait_for_ranks()
        if rank == 0:
            writer.finish()
        _wait_for_ranks()
    return ActivationStore.open(output)


class _Rows:
    """The activations of one shard, filled in batch by batch, in any order of problems."""

    def __init__(self, plan: StorePlan, shard: int):
        self.activations = np.empty(plan.shard_shape(shard), np.float32)
        problems = plan.shard_problems(shard)
        counts = [
            1 if plan.rows_per_problem is None else plan.rows_per_problem[p] for p in problems
        ]
        ends = np.cumsum(counts)
        self._rows = {
            problem: range(end - count, end)
            for problem, end, count in zip(problems, ends, counts, strict=True)
        }

    def put(self, batch: Sequence[int], activations: torch.Tensor) -> None:
        rows = [row for problem in batch for row in self._rows[problem]]
        self.activations[:, :, rows] = activations.numpy()


def _activations(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    layers: Sequence[int],
    positions: Sequence[Position],
    feedback: str,
) -> torch.Tensor:
    """Activations of one batch, float32 `[num_layers, num_positions, num_rows, d_in]`."""
    if positions == (ALL_TOKENS,):
        return all_token_activations(model, prompts, layers=layers)[:, None]
    indices = [int(position) for position in positions]
    if feedback == NO_FEEDBACK:
        return token_activations(model, prompts, layers=layers, positions=indices)
    return thought_activations(model, prompts, layers=layers, positions=indices, feedback=feedback)


def batches(
    problems: Iterable[int],
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    device: torch.device,
) -> Iterator[list[int]]:
    """Batches of prompts of like length, the same ones whichever shards are still missing."""
    max_tokens = _MAX_TOKENS_ON_CPU if device.type == "cpu" else math.inf
    batch: list[int] = []
    for problem in sorted(problems, key=lambda problem: len(prompts[problem])):
        # All are padded to the longest, which is the one that comes last.
        num_tokens = (len(batch) + 1) * len(prompts[problem])
        if batch and (len(batch) == batch_size or num_tokens > max_tokens):
            yield batch
            batch = []
        batch.append(problem)
    if batch:
        yield batch


def _check(
    model: LanguageModel, layers: Sequence[int], positions: Sequence[Position], feedback: str
) -> None:
    model.check_layers(layers)
    if feedback != NO_FEEDBACK:
        check_feedback(model, feedback)
        if not all(isinstance(p, int) and p >= 0 for p in positions):
            raise ValueError(
                f"positions are {positions}; continuous thoughts have positions 0, 1, ..., and "
                f"feedback {NO_FEEDBACK!r} allows tokens: indices or {ALL_TOKENS!r}"
            )
    elif positions != (ALL_TOKENS,) and not all(isinstance(p, int) for p in positions):
        raise ValueError(
            f"positions are {positions}; allowed: token indices, or {ALL_TOKENS!r} alone"
        )


def _check_token_positions(
    problems: Sequence[Problem], prompts: Sequence[Sequence[int]], positions: Sequence[Position]
) -> None:
    for problem, ids in zip(problems, prompts, strict=True):
        for position in positions:
            if isinstance(position, int) and not -len(ids) <= position < len(ids):
                raise ValueError(
                    f"position {position} is beyond problem {problem.id}, "
                    f"whose prompt has {len(ids)} tokens"
                )


def _shard_size(
    model: LanguageModel,
    layers: Sequence[int],
    positions: Sequence[Position],
    prompts: Sequence[Sequence[int]],
    batch_size: int,
) -> int:
    """Problems a shard: as many whole batches as fit the memory that a shard may take."""
    rows = max(map(len, prompts)) if positions == (ALL_TOKENS,) else 1
    problem_bytes = 4 * len(layers) * len(positions) * rows * model.d_in
    num_batches = min(_SHARD_BYTES // problem_bytes, _MAX_SHARD_SIZE) // batch_size
    return max(num_batches, 1) * batch_size


def _join_ranks() -> tuple[int, int]:
    """This process's rank and the number of processes, which `torchrun` sets."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    if not dist.is_initialized():
        # Ranks wait for the slowest one's last shard, however long that takes.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    return dist.get_rank(), dist.get_world_size()


def _wait_for_ranks() -> None:
    if dist.is_initialized():
        dist.barrier()
