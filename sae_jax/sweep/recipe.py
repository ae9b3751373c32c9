"""What a config asks of a step beside the loss and the optimizer; each off by default."""

import jax
import jax.numpy as jnp
import optax

from sae_jax.architectures.losses import row_norms
from sae_jax.architectures.training import Arrays, Hyperparameters
from sae_jax.configs import SAEConfig

_FROZEN = {"decoder": "w_dec", "encoder": "w_enc_t"}


def rate_factor(hyper: Hyperparameters, step: jax.Array) -> jax.Array:
    """What the learning rate is multiplied by at a step: up from the first, down to the last."""
    done, left = step + 1, hyper.num_steps - step
    up, down = _share(done, hyper.warmup_steps), _share(left, hyper.decay_steps)
    return jnp.where(hyper.warmup_steps > 0, up, 1.0) * jnp.where(hyper.decay_steps > 0, down, 1.0)


def annealed_k(hyper: Hyperparameters, d_in: int, step: jax.Array) -> jax.Array:
    """k at a step: from d_sae, or D if that is less, in a straight line down to its value."""
    first = jnp.minimum(hyper.d_sae, d_in)
    left = 1.0 - _share(step, hyper.k_anneal_steps)
    more = jnp.maximum(first - hyper.k, 0).astype(jnp.float32) * left
    return hyper.k + jnp.round(more).astype(jnp.int32)


def changed_gradient(
    template: SAEConfig, params: Arrays, gradient: Arrays, hyper: Hyperparameters
) -> Arrays:
    """The gradient without what the recipe forbids: frozen, along a unit row, or too long."""
    gradient = dict(gradient)
    if template.frozen:
        name = _FROZEN[template.frozen]
        gradient[name] = jnp.zeros_like(gradient[name])
    if template.unit_decoder:
        rows = _unit_rows(params["w_dec"])
        along = jnp.sum(gradient["w_dec"] * rows, axis=1, keepdims=True)
        gradient["w_dec"] = gradient["w_dec"] - along * rows
    if template.clip_norm is not None:
        clip = optax.clip_by_global_norm(hyper.clip_norm)
        gradient, _ = clip.update(gradient, optax.EmptyState())
    return gradient


def kept_in_place(template: SAEConfig, before: Arrays, after: Arrays) -> Arrays:
    """Parameters after a step, with decoder rows of norm 1 and what is frozen as it was."""
    after = dict(after)
    if template.unit_decoder:
        after["w_dec"] = _unit_rows(after["w_dec"])
    if template.frozen:
        name = _FROZEN[template.frozen]
        after[name] = before[name]
    return after


def averaged(average: Arrays, params: Arrays, hyper: Hyperparameters, step: jax.Array) -> Arrays:
    """The exponential mean of the parameters; of few steps it forgets faster, to leave the start.

    The decay is that of the config, but at most (1 + t) / (10 + t) after t steps, as in
    TensorFlow's `ExponentialMovingAverage`.
    """
    t = step.astype(jnp.float32)
    decay = jnp.minimum(hyper.weight_average, (1.0 + t) / (10.0 + t))
    return jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, params)


def _share(steps: jax.Array, of: jax.Array) -> jax.Array:
    """Which share of so many steps is done, at most 1."""
    share = steps.astype(jnp.float32) / jnp.maximum(of, 1).astype(jnp.float32)
    return jnp.minimum(share, 1.0)


def _unit_rows(w: jax.Array) -> jax.Array:
    norms = row_norms(w)[:, None]
    return w / jnp.where(norms == 0.0, 1.0, norms)
