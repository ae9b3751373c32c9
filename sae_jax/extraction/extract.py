"""Extracts activations of a model that reads problems into a store, whatever interrupts it."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from sae_jax.activations.live import LiveStore
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
# The model reads so many problems at once, since 64 have more padding. On a CPU it reads fewer
# where prompts are long: so many tokens, padding included, still fit the caches.
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
    window: int | None = None,
    progress: bool = True,
) -> ActivationStore | LiveStore:
    """Extracts activations of every problem into a store.

    A run that was stopped, by whatever, continues with `resume` and ends with the same bytes.
    Under `torchrun`, the processes share the shards. The store's settings hold what decides the
    activations: `LanguageModel.settings`, and `tokens_sha256` of all prompts' token ids. A run
    that finds other settings there is refused, as is one that finds none, in a store that an
    earlier version began: it could be finished with another model's activations.

    Args:
      problems: word problems that the model thinks about.
      model: language model from `load_model` or `load_codi`.
      output: folder of the store.
      layers: 0-based decoder layers, as `hidden_states[layer + 1]` of transformers.
      positions: passes of continuous thought; with feedback "none" token indices of the
        prompt (negative ones from its end), or `("all",)` for every token of the question.
      feedback: kind of embedding that a pass of thought feeds, "codi", "hidden" or "soft", or
        "none" for no thoughts.
      batch_size: largest number of problems that the model reads at once.
      storage_dtype: dtype of the store, "float16" or "float32".
      resume: whether to continue a store of the same plan, or reuse a finished one.
      overwrite: whether to replace a store that is there.
      window: number of shards in a window of a live store, which another process trains on and
        removes meanwhile; `None` for a store that is kept whole. Extraction waits where it is two
        windows ahead of what was trained on.
      progress: whether to show a progress bar.

    Raises:
      ValueError: if the model has no such layers, positions or feedback, or cannot read a
        prompt, or the folder holds something else.
    """
    layers, positions = tuple(layers), tuple(positions)
    if not (problems and layers and positions):
        raise ValueError("an extraction needs at least one problem, one layer and one position")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    model.check_layers(layers)
    _check_positions(model, positions, feedback)
    all_tokens = positions == (ALL_TOKENS,)
    indices = [] if all_tokens else [int(position) for position in positions]
    prompts = model.prompts(
        problems,
        num_thoughts=0 if feedback == NO_FEEDBACK else max(indices) + 1,
        templates=not all_tokens,
    )
    if feedback == NO_FEEDBACK:
        _check_lengths(problems, prompts, indices)
    counts = [len(ids) if all_tokens else 1 for ids in prompts]
    problem_bytes = 4 * len(layers) * len(positions) * max(counts) * model.d_in
    num_batches = min(_SHARD_BYTES // problem_bytes, _MAX_SHARD_SIZE) // batch_size
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
        shard_size=max(num_batches, 1) * batch_size,
        rows_per_problem=counts if all_tokens else None,
        window=window,
    )

    def read(batch: list[int]) -> np.ndarray:
        """Returns activations, float32 `[num_layers, num_positions, num_rows, d_in]`."""
        of_batch = [prompts[problem] for problem in batch]
        if all_tokens:
            states = all_token_activations(model, of_batch, layers=layers)[:, None]
        elif feedback == NO_FEEDBACK:
            states = token_activations(model, of_batch, layers=layers, positions=indices)
        else:
            states = thought_activations(
                model, of_batch, layers=layers, positions=indices, feedback=feedback
            )
        return states.numpy()

    # The rows of each problem in the store.
    rows = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
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
                writer.wait_for_room(shard)
                if writer.is_released(shard):  # Training that was resumed had it before.
                    continue
                activations = np.empty(plan.shard_shape(shard), np.float32)
                of_shard = plan.shard_problems(shard)
                start = rows[of_shard.start][0]
                for batch in batches(of_shard, prompts, batch_size, model.device):
                    of_batch = np.concatenate([rows[problem] for problem in batch])
                    activations[:, :, of_batch - start] = read(batch)
                    bar.update(len(batch))
                writer.write_shard(shard, activations)
        _wait_for_ranks()
        if rank == 0 and window is None:
            writer.finish()
        _wait_for_ranks()
    return ActivationStore.open(output) if window is None else LiveStore.open(output)


def batches(
    problems: Iterable[int],
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    device: torch.device,
) -> Iterator[list[int]]:
    """Yields batches of problems whose prompts are of like length.

    They are the same whichever shards are still missing.

    Args:
      problems: indices of a shard's problems.
      prompts: token ids of every problem's prompt.
      batch_size: largest number of problems in a batch.
      device: device that the model is on.
    """
    max_tokens = _MAX_TOKENS_ON_CPU if device.type == "cpu" else math.inf
    batch: list[int] = []
    for problem in sorted(problems, key=lambda problem: len(prompts[problem])):
        # All prompts are padded to the longest, which is the one that comes last.
        num_tokens = (len(batch) + 1) * len(prompts[problem])
        if batch and (len(batch) == batch_size or num_tokens > max_tokens):
            yield batch
            batch = []
        batch.append(problem)
    if batch:
        yield batch


def _check_positions(model: LanguageModel, positions: Sequence[Position], feedback: str) -> None:
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


def _check_lengths(
    problems: Sequence[Problem], prompts: Sequence[Sequence[int]], indices: Sequence[int]
) -> None:
    for problem, ids in zip(problems, prompts, strict=True):
        for index in indices:
            if not -len(ids) <= index < len(ids):
                raise ValueError(
                    f"position {index} is beyond problem {problem.id}, "
                    f"whose prompt has {len(ids)} tokens"
                )


def _join_ranks() -> tuple[int, int]:
    """Returns this process's rank and the number of processes, which `torchrun` sets."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    if not dist.is_initialized():
        # Ranks wait for the slowest one's last shard, however long that takes.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    return dist.get_rank(), dist.get_world_size()


def _wait_for_ranks() -> None:
    if dist.is_initialized():
        dist.barrier()
