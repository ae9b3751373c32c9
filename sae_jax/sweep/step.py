"""One training step of one SAE, lifted over the members of a group and over an epoch."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from sae_jax.architectures.functional import initial, merge, split
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Arrays, Batch, Hyperparameters, Kernel
from sae_jax.configs import SAEConfig
from sae_jax.ops import dense, firing_rows, native, selected_rows
from sae_jax.ops.matmul import ComputeDtype, operands_divided
from sae_jax.ops.tuning import FIRING_MIN_STEPS
from sae_jax.sweep import recipe
from sae_jax.sweep.adam import adam, adam_in_one_pass
from sae_jax.sweep.batches import Batches, Samples
from sae_jax.sweep.placement import Placement

KERNELS: dict[str, Kernel] = {
    "dense": dense.reconstruct,
    "firing_rows": firing_rows.reconstruct,
    "selected_rows": selected_rows.reconstruct,
}

Optimizer = Callable[[jax.Array], optax.GradientTransformation]
"""Makes an optimizer of a learning rate, which is traced."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What decides a compiled program, beside the shapes of its arrays.

    Attributes:
      template: `SAEConfig.template` of the members.
      optimizer: makes their optimizer.
      dtype: how matrix products are computed.
      kernel: a key of `KERNELS`.
      k_max: at least the members' k, for the kernel on selected rows; `None` for others.
      prefix_bounds: at least the members' `prefix_sizes`; `None` for those without prefixes.
      sequential: whether a member's epoch begins when the one before has ended, and not with
        it, in which case all members take each step side by side.
      placement: where members and batches lie.
    """

    template: SAEConfig
    optimizer: Optimizer = adam
    dtype: ComputeDtype = "float32"
    kernel: str = "dense"
    k_max: int | None = None
    prefix_bounds: tuple[int, ...] | None = None
    sequential: bool = False
    placement: Placement = dataclasses.field(default_factory=Placement.default)

    @property
    def steps_in_one_pass(self) -> bool:
        """Whether a CPU updates the parameters of a member, all in one place, by a loop in C++."""
        is_whole = self.sequential and not self.placement.divides_members
        return is_whole and self.optimizer is adam and native.is_built()

    def bound_kernel(self) -> Kernel:
        """The kernel with what is static bound to it."""
        static: dict[str, Any] = {"dtype": self.dtype}
        if self.k_max is not None:
            static["k_max"] = self.k_max
        kernel = KERNELS[self.kernel]
        # A custom derivative takes static arguments by position alone.
        return lambda *arguments: kernel(*arguments, *static.values())

    def for_rest(self, num_full: int) -> "Program":
        """The program of an epoch's last, smaller batch, after `num_full` full ones.

        That step is compiled for itself. Where it is one of many, the kernel on firing rows would
        take longer to compile than it spares.
        """
        is_seldom = num_full >= FIRING_MIN_STEPS and self.kernel == "firing_rows"
        return dataclasses.replace(self, kernel="dense") if is_seldom else self


class MemberState(NamedTuple):
    """What training changes; with a leading axis M for the members of a group.

    Attributes:
      params: trained arrays by name, such as `w_enc_t [F, D]`, `b_enc [F]`, `w_dec [F, D]` and
        `b_dec [D]`.
      kept: arrays by name that the architecture keeps but does not train; often none.
      opt_state: the optimizer's state, such as the moments of each parameter.
      average: the exponential mean of `params`, by name; nothing where none is asked for.
    """

    params: Arrays
    kept: Arrays
    opt_state: optax.OptState
    average: Arrays


def init_member(
    program: Program, hyper: Hyperparameters, center: jax.Array, d_in: int, width: int
) -> MemberState:
    """The state of a member before its first step, padded to `width` latents; see `initial`."""
    params, kept = initial(program.template, hyper, center, d_in, width)
    opt_state = program.optimizer(hyper.learning_rate).init(params)
    return MemberState(params, kept, opt_state, params if program.template.weight_average else {})


def train_step(
    program: Program,
    state: MemberState,
    hyper: Hyperparameters,
    samples: Samples,
    step: jax.Array,
) -> tuple[MemberState, jax.Array]:
    """One step of the optimizer on one batch.

    Args:
      program: architecture, recipe, optimizer, kernel and dtype.
      state: state of one member.
      hyper: hyperparameters of the same member, all `[]`.
      samples: `[b, D]`.
      step: steps taken before, `[]`.

    Returns:
      The new state, and the loss before the step, `[]`.
    """
    x, target = samples
    chex.assert_rank(x, 2)
    chex.assert_rank([value for value in hyper if value is not hyper.prefix_sizes], 0)
    template, params = program.template, state.params
    latents = jnp.arange(len(params["b_enc"]), dtype=jnp.int32) < hyper.d_sae
    batch = Batch(x, x if target is None else target, latents, step)
    kernel = program.bound_kernel()
    if template.k_anneal_steps:
        hyper = hyper._replace(k=recipe.annealed_k(hyper, x.shape[1], step))

    def loss_of(params: Arrays) -> tuple[jax.Array, Arrays]:
        sae = merge(template, params, state.kept, hyper)
        sae.dtype = program.dtype
        sae.prefix_bounds = program.prefix_bounds
        loss = sae.loss(batch, hyper, kernel)
        return loss, split(sae)[1]

    (loss, kept), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    gradient = recipe.changed_gradient(template, params, gradient, hyper)
    rate = hyper.learning_rate * recipe.rate_factor(hyper, step)
    factors = architecture_of(template).rates(template, batch)
    if program.steps_in_one_pass and not factors:
        after, opt_state = adam_in_one_pass(params, gradient, state.opt_state, rate)
    else:
        with jax.numpy_dtype_promotion("standard"):  # Optax promotes its integer counts of steps.
            updates, opt_state = program.optimizer(rate).update(gradient, state.opt_state, params)
        updates = updates | {name: updates[name] * factor for name, factor in factors.items()}
        after = optax.apply_updates(params, updates)
    after = recipe.kept_in_place(template, params, after)
    after = architecture_of(template).allowed(after, template)
    average = state.average
    if template.weight_average:
        average = recipe.averaged(average, after, hyper, step)
        average = recipe.kept_in_place(template, params, average)
    return MemberState(after, kept, opt_state, average), loss


def lift(
    member: Callable[[MemberState, Hyperparameters], tuple[MemberState, jax.Array]],
    *,
    sequential: bool,
    placement: Placement,
) -> Callable[[MemberState, Hyperparameters], tuple[MemberState, jax.Array]]:
    """Turns a function of one member into one of a group, of leading axis M: the one place that
    says whether the members of a device go side by side or in turns."""
    if not sequential:
        return placement.on_each(jax.vmap(member))
    member = jax.jit(member)  # Its shapes are asked for below, and it is not traced again for them.

    def in_turns(states: MemberState, hypers: Hyperparameters) -> tuple[MemberState, jax.Array]:
        def turn(
            states: MemberState, i_and_hyper: tuple[jax.Array, Hyperparameters]
        ) -> tuple[MemberState, jax.Array]:
            i, hyper = i_and_hyper
            own = jax.tree.map(lambda leaf: leaf[i], states)
            output = jax.tree.map(jnp.zeros_like, jax.eval_shape(member, own, hyper)[1])
            # Once, in a loop whose end XLA does not know. A loop of one known pass it unrolls, and
            # then copies the state of all members in each turn of an epoch of a step or two.
            state, output = lax.fori_loop(
                i, i + 1, lambda _, before: member(before[0], hyper), (own, output)
            )
            return jax.tree.map(lambda leaf, new: leaf.at[i].set(new), states, state), output

        indices = jnp.arange(len(hypers.d_sae), dtype=jnp.int32)
        return lax.scan(turn, states, (indices, hypers))

    return placement.on_each(in_turns)


@partial(jax.jit, static_argnames=("program", "d_in", "width"))
def init_group(
    hyper: Hyperparameters, center: jax.Array, *, program: Program, d_in: int, width: int
) -> MemberState:
    """The states of all members, leading axis M; `center [D_out]` is one for all."""

    def in_turns(hyper: Hyperparameters) -> MemberState:
        # Side by side the random bits of all members would be held at once.
        return lax.map(lambda member: init_member(program, member, center, d_in, width), hyper)

    placement = program.placement
    return placement.kept_spread(placement.on_each(in_turns)(hyper), width)


def train_epoch(
    state: MemberState,
    hyper: Hyperparameters,
    batches: Batches,
    first_step: jax.Array | int,
    *,
    program: Program,
) -> tuple[MemberState, jax.Array]:
    """Advances every member of a group by one epoch, as one device program.

    Args:
      state: states of M members, leading axis M; donated.
      hyper: hyperparameters of the same members, `[M]` each.
      batches: the epoch's batches, which all members see.
      first_step: steps taken before this epoch, int32 `[]`.
      program: what is static.

    Returns:
      The new state, and every step's loss, `[num_steps, M]`.
    """
    return epoch_program(program)(state, hyper, batches, first_step, program=program)


def epoch_program(program: Program) -> Any:
    """`train_epoch` as `jax.jit` gives it, to lower and compile for shapes."""
    return _a_core_each if program.placement.has_a_core_each else _on_all_cores


def _train_epoch(
    state: MemberState,
    hyper: Hyperparameters,
    batches: Batches,
    first_step: jax.Array | int,
    *,
    program: Program,
) -> tuple[MemberState, jax.Array]:
    placement, width = program.placement, state.params["w_dec"].shape[1]
    batches = batches._replace(full=placement.divided(batches.full))

    def member_epoch(state: MemberState, hyper: Hyperparameters) -> tuple[MemberState, jax.Array]:
        def step(
            state: MemberState,
            samples_and_step: tuple[Samples, jax.Array],
            program: Program = program,
        ) -> tuple[MemberState, jax.Array]:
            return train_step(program, state, hyper, *samples_and_step)

        num_full = len(batches.full.x)
        steps = jnp.asarray(first_step, jnp.int32) + jnp.arange(num_full + 1, dtype=jnp.int32)
        if num_full:
            state, losses = lax.scan(step, state, (batches.full, steps[:-1]))
        else:  # XLA crashes on arrays without entries here, as `Placement._none_of` says.
            losses = jnp.zeros(0, jnp.float32)
        if len(batches.rest.x):
            state, loss = step(state, (batches.rest, steps[-1]), program.for_rest(num_full))
            losses = jnp.append(losses, loss)
        return state, losses

    group_epoch = lift(member_epoch, sequential=program.sequential, placement=placement)
    with operands_divided(placement.divides_members):
        state, losses = group_epoch(state, hyper)
    return placement.kept_spread(state, width), losses.T


_jit_epoch = partial(jax.jit, static_argnames="program", donate_argnums=0)
_on_all_cores = _jit_epoch(_train_epoch)
# The operations of one device would else be divided among the cores of the others.
_a_core_each = _jit_epoch(_train_epoch, compiler_options={"xla_cpu_multi_thread_eigen": False})
