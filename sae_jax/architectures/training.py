"""What a training loss is given: a batch, hyperparameters and a kernel."""

from collections.abc import Callable
from typing import NamedTuple

import jax

Arrays = dict[str, jax.Array]
"""Arrays of an SAE by name, such as `w_dec [F, D]`; in training the encoder is `w_enc_t [F, D]`,
where a latent is a row, and outside of it `w_enc [D, F]`."""

Kernel = Callable[..., jax.Array]
"""Computes reconstructions `[b, D]` with a derivative of its own, as `ops.dense.reconstruct`."""


class Batch(NamedTuple):
    """What one step of training sees.

    Attributes:
      x: samples, float32 `[b, D]`.
      target: what is to be reconstructed, float32 `[b, D_out]`: the samples themselves, but for a
        transcoder.
      latents: bool `[F]`, false for latents that only pad the SAE to its group's width. They have
        zero parameters, and may not be chosen, revived, penalized or counted as dead.
      step: steps taken before this one, int32 `[]`.
    """

    x: jax.Array
    target: jax.Array
    latents: jax.Array
    step: jax.Array


class Hyperparameters(NamedTuple):
    """In what members of a group differ; traced, so that a new value does not recompile.

    `SAEConfig` says what each is. Each is `[]` for one member and `[M]` for a group, but for
    `prefix_sizes`, which is `[P]` and `[M, P]`. What a config leaves open is filled in.

    Attributes:
      seed: PRNG seed of the initialization.
      d_sae: true number of latents.
      k: latents kept per sample, or what the architecture takes it for.
      learning_rate: of the optimizer.
      aux_coefficient: weight of the auxiliary loss.
      aux_k: latents that the auxiliary loss may revive at a time.
      dead_after: samples without firing after which a latent is dead.
      target_l0: mean number of latents that should fire; 0 for no target.
      sparsity_coefficient: weight of the penalty on firing.
      sparsity_warmup_steps: steps over which the penalty grows from zero.
      bandwidth: width of the window around a threshold that has a gradient.
      threshold_init: thresholds before the first step.
      prefix_sizes: latents of each nested prefix, P of them; often P = 0.
      warmup_steps: steps over which the learning rate grows.
      decay_steps: last steps, over which the learning rate falls.
      num_steps: all steps of training.
      clip_norm: largest norm of a gradient.
      k_anneal_steps: steps over which k falls to its value.
      weight_average: decay of the mean of the parameters.
    """

    seed: jax.Array
    d_sae: jax.Array
    k: jax.Array
    learning_rate: jax.Array
    aux_coefficient: jax.Array
    aux_k: jax.Array
    dead_after: jax.Array
    target_l0: jax.Array
    sparsity_coefficient: jax.Array
    sparsity_warmup_steps: jax.Array
    bandwidth: jax.Array
    threshold_init: jax.Array
    prefix_sizes: jax.Array
    warmup_steps: jax.Array
    decay_steps: jax.Array
    num_steps: jax.Array
    clip_norm: jax.Array
    k_anneal_steps: jax.Array
    weight_average: jax.Array
