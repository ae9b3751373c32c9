"""One training step of one SAE, lifted over the members of a group and over an epoch."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from sae_jax import compact, data, dense, losses, sparse
from sae_jax.architectures.base import PARAM_NAMES, Params, TopKSAE, init_params
from sae_jax.ops.matmul import ComputeDtype

# With PyTorch's and the published experiment's defaults; epsilon outside the root.
ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


class Hyperparameters(NamedTuple):
    """In what members differ; traced, so that a new value does not recompile."""

    seed: jax.Array
    d_sae: jax.Array
    k: jax.Array
    learning_rate: jax.Array
    data_seed: jax.Array


class MemberState(NamedTuple):
    """What training changes."""

    params: Params
    opt_state: optax.OptState


def init_member(hyper: Hyperparameters, d_in: int, width: int) -> MemberState:
    """The state of a member before its first step, padded to `width` latents."""
    params = init_params(jax.random.key(hyper.seed), d_in, hyper.d_sae, width)
    return MemberState(params, ADAM.init(params))


@cache
def _graphdef() -> nnx.GraphDef:
    return nnx.graphdef(nnx.eval_shape(lambda: TopKSAE.init(jax.random.key(0), 1, 1, 1)))


def member_sae(params: Params, k: jax.Array) -> TopKSAE:
    """The module around traced parameters, padded or not, with a traced k.

    A padding latent is zero in every parameter. Its pre-activation is 0 at an index
    above all true latents, and ties go to the lower index: while k <= d_sae it is
    never selected, so its gradient is 0 and it stays zero. Nothing needs a mask.
    """
    sae = nnx.merge(_graphdef(), params)
    sae.k = nnx.data(k)
    return sae


def train_step(
    state: MemberState,
    hyper: Hyperparameters,
    x: jax.Array,
    dtype: ComputeDtype,
    path: str = "dense",
    k_max: int | None = None,
) -> tuple[MemberState, jax.Array]:
    """One step of Adam on one batch.

    Args:
      state: of one member; on a path other than the dense one with `w_enc` transposed.
      hyper: of the same member.
      x: `[b, D]`.
      dtype: how matrix products are computed.
      path: "dense", "compact" or "sparse".
      k_max: at least the member's k; the sparse path alone needs it.

    Returns:
      The new state, and the loss before the step, `[]`.
    """

    def loss_of(params: Params) -> jax.Array:
        arrays = (params[name] for name in PARAM_NAMES)
        if path == "sparse":
            x_hat = sparse.reconstruct(*arrays, x, hyper.k, k_max, dtype)
        else:
            kernel = compact if path == "compact" else dense
            x_hat = kernel.reconstruct(*arrays, x, hyper.k, dtype)
        return losses.mse(x_hat, x)

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    updates, opt_state = ADAM.update(grads, state.opt_state)
    params = jax.tree.map(lambda p, u: p - hyper.learning_rate * u, state.params, updates)
    return MemberState(params, opt_state), loss


@partial(jax.jit, static_argnames=("d_in", "width", "transposed"))
def init_group(
    hyper: Hyperparameters, *, d_in: int, width: int, transposed: bool = False
) -> MemberState:
    """The states of all members, leading axis M, made one after the other to save memory.

    Args:
      hyper: of M members.
      d_in: width of an activation D.
      width: latents of each.
      transposed: whether as `with_encoders_transposed` makes them.
    """

    def init(member: Hyperparameters) -> MemberState:
        state = init_member(member, d_in, width)
        return with_encoders_transposed(state) if transposed else state

    return lax.map(init, hyper)


@partial(jax.jit, donate_argnums=0)
def with_encoders_transposed(state: MemberState) -> MemberState:
    """The states of all members with `w_enc` and its moments transposed; `state` is donated.

    On paths that gather latents a latent is a row of its encoder, as it always is of its decoder.
    """

    def transposed(tree: Params) -> Params:
        return tree | {"w_enc": jnp.swapaxes(tree["w_enc"], -1, -2)}

    adam = state.opt_state
    adam = adam._replace(mu=transposed(adam.mu), nu=transposed(adam.nu))
    return MemberState(transposed(state.params), adam)


@partial(
    jax.jit,
    static_argnames=("batch_size", "dtype", "path", "k_max", "one_by_one", "one_order"),
    donate_argnums=0,
)
def train_epoch(
    state: MemberState,
    hyper: Hyperparameters,
    x: jax.Array,
    epoch: jax.Array,
    *,
    batch_size: int,
    dtype: ComputeDtype,
    path: str = "dense",
    k_max: int | None = None,
    one_by_one: bool = False,
    one_order: bool = True,
) -> tuple[MemberState, jax.Array]:
    """Advances every member of a group by one epoch, as one device program.

    Args:
      state: of M members, leading axis M, on a path other than the dense one with encoders
        transposed; donated.
      hyper: of the same members, `[M]` each.
      x: training samples `[n, D]`.
      epoch: which epoch this is, from 0.
      batch_size: samples a step; a smaller last batch holds what is left over.
      dtype: how matrix products are computed.
      path: "dense", "compact" or "sparse".
      k_max: at least the members' k; the sparse path alone needs it.
      one_by_one: whether a member's epoch begins when the one before has ended, and not
        with it, in which case all members take each step side by side.
      one_order: whether the members' data seeds are equal, so that they see the same batches,
        which are then gathered once for members side by side.

    Returns:
      The new state, and every step's loss, `[num_steps, M]`.
    """
    num_full = len(x) // batch_size
    shared = data.epoch_order(hyper.data_seed[0], epoch, len(x)) if one_order else None

    def member_epoch(state: MemberState, hyper: Hyperparameters) -> tuple[MemberState, jax.Array]:
        order = data.epoch_order(hyper.data_seed, epoch, len(x)) if shared is None else shared
        full, rest = jnp.split(order, [num_full * batch_size])

        def step(state: MemberState, rows: jax.Array) -> tuple[MemberState, jax.Array]:
            return train_step(state, hyper, x[rows], dtype, path, k_max)

        state, step_losses = lax.scan(step, state, full.reshape(num_full, batch_size))
        if rest.size:
            state, loss = step(state, rest)
            step_losses = jnp.append(step_losses, loss)
        return state, step_losses

    def next_member(
        stack: MemberState, member: tuple[jax.Array, Hyperparameters]
    ) -> tuple[MemberState, jax.Array]:
        i, hyper = member
        state, step_losses = member_epoch(jax.tree.map(lambda leaf: leaf[i], stack), hyper)
        return jax.tree.map(lambda leaf, new: leaf.at[i].set(new), stack, state), step_losses

    if one_by_one:
        state, step_losses = lax.scan(
            next_member, state, (jnp.arange(len(hyper.k), dtype=jnp.int32), hyper)
        )
    else:
        state, step_losses = jax.vmap(member_epoch)(state, hyper)
    return state, step_losses.T
