"""Training losses of SAEs that keep k latents: here, and in PyTorch and float64 as papers say."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from random_saes import random_params

from sae_jax import TrainConfig
from sae_jax.architectures.functional import merge, split
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Batch
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.step import Program

D_IN, D_SAE, DEAD_AFTER = 8, 24, 100
# Every third latent has not fired for long.
SINCE = np.where(np.arange(D_SAE) % 3 == 0, DEAD_AFTER, 0)


def seldom_firing_params(seed=0):
    """Parameters by which half of the dead latents, and no other ones, cannot fire."""
    params = random_params(seed, D_IN, D_SAE)
    params["b_enc"][::6] -= 100.0
    return params


def loss_on(config, params, x, *, step=0, width=None, **kept):
    """Loss, gradients and kept arrays after one batch, of an SAE padded to `width` latents.

    Args:
      config: its config.
      params: parameters without padding, `w_enc [D, F]` and so on.
      x: samples, `[b, D]`.
      step: steps taken before.
      width: latents with padding; without if `None`.
      **kept: arrays that the SAE keeps, before the batch.
    """
    width = width or config.d_sae
    stacked = hyperparameters([config], TrainConfig(batch_size=len(x)), len(x), x.shape[1])
    hyper = jax.tree.map(lambda leaf: leaf[0], stacked)
    sae = architecture_of(config).from_params(padded(params, width), config.template)
    sae.start_training(config.template, hyper)
    arrays, state = split(sae)
    state |= {name: jnp.asarray(value, state[name].dtype) for name, value in kept.items()}
    x = jnp.asarray(x)
    batch = Batch(x, x, jnp.arange(width) < config.d_sae, jnp.int32(step))
    kernel = Program(config.template).bound_kernel()

    @jax.jit
    def loss_of(arrays):
        merged = merge(config.template, arrays, state, hyper)
        loss = merged.loss(batch, hyper, kernel)
        return loss, split(merged)[1]

    (loss, after), gradients = jax.value_and_grad(loss_of, has_aux=True)(arrays)
    gradients = {name: np.asarray(gradient) for name, gradient in gradients.items()}
    gradients["w_enc"] = gradients.pop("w_enc_t").T
    return float(loss), gradients, {name: np.asarray(array) for name, array in after.items()}


def padded(params, width):
    """Parameters with latents of zeros behind the others."""
    more = width - len(params["b_enc"])
    pads = {"w_enc": ((0, 0), (0, more)), "b_enc": (0, more), "w_dec": ((0, more), (0, 0))}
    return {name: np.pad(array, pads.get(name, 0)) for name, array in params.items()}


def keep(values, k, allowed=None, *, magnitudes=False):
    """The k largest allowed entries of each row of a tensor, zero elsewhere."""
    ranks = values.abs() if magnitudes else values
    ranks = ranks if allowed is None else torch.where(allowed, ranks, -torch.inf)
    indices = ranks.topk(k, dim=-1).indices
    return torch.zeros_like(values).scatter(-1, indices, values.gather(-1, indices))


def oracle(config, params, x, dead):
    """Loss, gradients and latents of a batch, in which given latents are dead."""
    p = {n: torch.tensor(a, dtype=torch.float64, requires_grad=True) for n, a in params.items()}
    x, dead = torch.tensor(x, dtype=torch.float64), torch.tensor(dead)
    preset, d_in = config.preset, x.shape[1]
    pre = (x - p["b_dec"] if config.center_input else x) @ p["w_enc"] + p["b_enc"]
    w_dec = p["w_dec"]
    if preset == "saelens":
        norms = w_dec.norm(dim=1)
        pre, w_dec = pre * norms, w_dec / norms[:, None]
    signed = config.architecture == "abs_topk"
    value = pre if signed else pre.relu()
    if config.architecture in ("abs_topk", "topk"):
        z = keep(value, config.k, magnitudes=signed)
    else:
        z = keep(value.reshape(1, -1), config.k * len(x)).reshape(pre.shape)

    def error(size):
        """Sum over the dimensions, mean over the samples."""
        x_hat = z[:, :size] @ w_dec[:size] + p["b_dec"]
        return ((x_hat - x) ** 2).sum(dim=1).mean()

    errors = torch.stack([error(size) for size in config.prefix_sizes or [config.d_sae]])
    num = len(errors)
    weight = {"saelens": 1.0, "dictionary_learning": 1 / num**2, None: 1 / num / d_in}[preset]
    loss = weight * errors.sum()
    if config.aux_coefficient and dead.any():
        num_dead, k_aux = int(dead.sum()), config.aux_k
        missed = (x - z @ w_dec - p["b_dec"]).detach()
        candidates = pre if preset == "saelens" else value
        kept = keep(candidates, min(k_aux, num_dead), dead, magnitudes=signed)
        revived = kept @ w_dec
        aux = ((revived - missed) ** 2).sum(dim=1).mean()
        if preset == "saelens":
            aux = aux * min(num_dead / k_aux, 1.0)
        elif preset == "dictionary_learning":
            aux = aux / ((missed - missed.mean(dim=0)) ** 2).sum(dim=1).mean()
        else:
            variance = ((x - x.mean(dim=0)) ** 2).mean()
            aux = variance * aux / (missed**2).sum(dim=1).mean()
        loss = loss + config.aux_coefficient * aux
    loss.backward()
    gradients = {name: tensor.grad.numpy() for name, tensor in p.items()}
    return loss.item(), gradients, z.detach().numpy()


def still_dead(config, params, x):
    """Which latents are dead, bool `[F]`, of those that have not fired since `SINCE`."""
    dead = SINCE >= DEAD_AFTER
    if config.preset != "dictionary_learning":
        return dead
    # It counts the batch first, whose latents have fired.
    fired = (oracle(config, params, x, dead)[2] != 0).any(axis=0)
    assert 0 < (dead & ~fired).sum() < dead.sum()
    return dead & ~fired


def assert_padding_changes_nothing(config, x):
    """Neither loss, gradients nor what is kept differ with latents that pad and look dead."""
    params = seldom_firing_params(1)
    alone = loss_on(config, params, x, step=2000, since_fired=SINCE)
    since = np.concatenate([SINCE, np.full(9, 10 * DEAD_AFTER)])
    wide = loss_on(config, params, x, step=2000, width=D_SAE + 9, since_fired=since)
    for name, axis in {"w_enc": 1, "b_enc": 0, "w_dec": 0}.items():
        wide[1][name], padding = np.split(wide[1][name], [D_SAE], axis)
        assert not padding.any(), name
    assert_same_loss(wide, alone)
    np.testing.assert_array_equal(wide[2]["since_fired"][:D_SAE], alone[2]["since_fired"])
    np.testing.assert_array_equal(wide[2]["since_fired"][D_SAE:], 0)
    if "threshold" in alone[2]:
        np.testing.assert_allclose(wide[2]["threshold"], alone[2]["threshold"], rtol=1e-6)


def assert_same_loss(found, expected):
    """Losses and gradients, to 1e-5 of the largest."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for name, gradient in expected[1].items():
        bound = 1e-5 * np.abs(gradient).max()
        assert bound > 0, name
        np.testing.assert_allclose(found[1][name], gradient, rtol=0, atol=bound, err_msg=name)
