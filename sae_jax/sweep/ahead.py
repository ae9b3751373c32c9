"""Programs of groups, compiled on other threads before their group needs them.

JAX keeps what it compiles for shapes, so that the call with arrays compiles nothing.
"""

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp

from sae_jax.configs import SAEConfig, TrainConfig
from sae_jax.metrics.evaluate import EVAL_BATCH_SIZE, group_coherence, group_sums
from sae_jax.sweep.batches import Samples, gathered
from sae_jax.sweep.compilations import Compilations
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.placement import Placement, share
from sae_jax.sweep.plan import Group
from sae_jax.sweep.samples import SweepSamples
from sae_jax.sweep.scores import widened
from sae_jax.sweep.step import Optimizer, Program, epoch_program, init_group

Task = Literal["initializing", "training", "scoring"]
_TASKS: tuple[Task, ...] = get_args(Task)


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the programs of a group depend on that trains on samples in memory.

    Attributes:
      group, program: the group, and what is static of its programs.
      configs: configs of its members.
      train_config: what they share.
      sizes: number of training samples, width of a sample and of a target.
      num_val: number of validation samples.
      has_targets: whether there are targets beside the samples.
    """

    group: Group
    program: Program
    configs: Sequence[SAEConfig]
    train_config: TrainConfig
    sizes: tuple[int, int, int]
    num_val: int
    has_targets: bool

    @classmethod
    def of(
        cls,
        group: Group,
        configs: Sequence[SAEConfig],
        train_config: TrainConfig,
        optimizer: Optimizer,
        placement: Placement,
        samples: SweepSamples,
    ) -> "Needs":
        """What a group's programs depend on."""
        of_group = [configs[member] for member in group.members]
        program = Program(
            template=of_group[0].template,
            optimizer=optimizer,
            dtype=train_config.compute_dtype,
            kernel=group.kernel,
            k_max=group.k_max,
            prefix_bounds=_prefix_bounds(of_group),
            sequential=group.sequential,
            placement=placement.for_members(len(of_group)),
        )
        sizes, num_val = samples.sizes[group.data_slice], samples.num_val[group.data_slice]
        return cls(group, program, of_group, train_config, sizes, num_val, samples.has_targets)

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Equal for groups that share their programs."""
        group = self.group
        of_group = len(group.members), group.width
        of_scores = group.scored_at_once, group.scored_width
        return (self.program, *of_group, *of_scores, self.sizes, self.num_val, self.has_targets)

    def compile(self, task: Task) -> None:
        """Compiles what the group starts with, trains with, or is scored with."""
        program, width = self.program, self.group.width
        num_samples, d_in, d_out = self.sizes
        placement = program.placement
        # Of the numbers only their shapes count.
        hyper = placement.spread(
            hyperparameters(self.configs, self.train_config, num_samples, d_in)
        )
        center = jax.ShapeDtypeStruct((d_out,), jnp.float32)
        init = init_group.trace(hyper, center, program=program, d_in=d_in, width=width)
        state = placement.spread_shapes(init.out_info, width)
        if task == "initializing":
            init.lower().compile()
            return
        if task == "training":
            samples = placement.put_shapes(self._samples((num_samples,)))
            numbers = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((), jnp.int32)
            batches = compiled(
                gathered,
                samples,
                *numbers,
                batch_size=self.train_config.batch_size,
                placement=placement,
            )
            epoch_program(program).lower(state, hyper, batches, 0, program=program).compile()
            return
        each = placement.members_each(len(self.configs))
        at_once = min(self.group.scored_at_once, each)
        tree = state.params, state.kept, hyper
        params, kept, hyper = compiled(share, tree, 0, at_once=at_once, placement=placement)
        if self.group.scored_width is not None:
            more, template = self.group.scored_width - width, program.template
            params, kept = compiled(widened, (params, kept), template=template, num_latents=more)
        batch_size = min(EVAL_BATCH_SIZE, self.num_val)
        mask = jax.ShapeDtypeStruct((batch_size,), bool)
        x, target = self._samples((batch_size,))
        of_group = params, kept, hyper
        compiled(group_sums, *of_group, x, mask, mask, target, template=program.template)
        w_dec = params["w_dec"]
        alive = jax.ShapeDtypeStruct(w_dec.shape[:2], bool)
        compiled(group_coherence, w_dec, alive)

    def _samples(self, rows: tuple[int, ...]) -> Samples:
        _, d_in, d_out = self.sizes
        x = jax.ShapeDtypeStruct((*rows, d_in), jnp.float32)
        target = jax.ShapeDtypeStruct((*rows, d_out), jnp.float32)
        return Samples(x, target if self.has_targets else None)


def compiled(function: Any, *arguments: Any, **static: Any) -> Any:
    """Compiles a jitted function for shapes; gives the shapes of what it returns, with devices."""
    lowered = function.lower(*arguments, **static)
    return jax.tree.map(
        lambda leaf, on: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on),
        lowered.out_info,
        lowered.compile().output_shardings,
    )


def _compile(needs: Needs, task: Task, training: Future[None] | None) -> None:
    """Compiles once what the first group trains with is done, if there is such."""
    if training is not None:
        wait([training])
    needs.compile(task)


class CompilingAhead:
    """Compiles the programs of groups in turn, on a thread beside the one that trains.

    The thread that trains calls `await_programs` before it needs those of a group. It compiles what
    has not been begun itself, so that it never waits for other groups' programs. What the first
    group trains with, which that thread can only wait for, has a thread of its own. What is not
    needed to begin waits for that, since two threads that trace programs take turns.
    """

    def __init__(self, needs: Sequence[Needs], compilations: Compilations):
        """Begins.

        Args:
          needs: what each group needs. Those that stream samples are left to themselves, since
            an epoch of theirs takes longer than compiling.
          compilations: to which the time of waiting is added.
        """
        self._compilations = compilations
        self._first, self._others = (
            ThreadPoolExecutor(1, thread_name_prefix=f"compiling_{name}")
            for name in ("first", "others")
        )
        self._futures: dict[tuple[int, Task], Future[None]] = {}
        begun, training = set(), None
        for i, of in enumerate(needs):
            if of.shapes in begun or of.group.steps_per_part is not None:
                continue
            begun.add(of.shapes)
            for task in _TASKS:
                if i == 0 and task == "training":
                    training = self._futures[i, task] = self._first.submit(of.compile, task)
                else:
                    self._futures[i, task] = self._others.submit(_compile, of, task, training)

    def await_programs(self, group: int, *tasks: Task) -> None:
        """Waits for the programs of a group if they are being compiled."""
        for task in tasks:
            future = self._futures.pop((group, task), None)
            if future is None or future.cancel():
                continue
            began = time.monotonic()
            future.exception()  # Training fails of the same, in a place that says more.
            self._compilations.waited += time.monotonic() - began

    def __enter__(self) -> Self:
        """Nothing more, since compiling has begun."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drops what has not been compiled."""
        for pool in (self._first, self._others):
            pool.shutdown(wait=False, cancel_futures=True)


def _prefix_bounds(configs: Sequence[SAEConfig]) -> tuple[int, ...] | None:
    """The largest of the members' prefixes, one by one."""
    sizes = zip(*(config.prefix_sizes for config in configs), strict=True)
    return tuple(map(max, sizes)) or None
