"""TopK with AuxK against PyTorch, by hand, and in sweeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hyperparameters import hyperparameters
from random_saes import random_params
from sweeps import quietly, samples

from sae_jax import SAEConfig, SweepResult, TopKSAE
from sae_jax.architectures.functional import merge, split
from sae_jax.architectures.training import Batch

D_IN, D_SAE, K = 8, 24, 3
CONFIG = SAEConfig(D_SAE, K, architecture="topk", aux_coefficient=0.5)


def topk_with_aux(since):
    sae = TopKSAE.from_params(random_params(0, D_IN, D_SAE), CONFIG)
    sae.start_training(CONFIG, hyper())
    sae.since_fired[...] = jnp.array(since, jnp.int32)
    return sae


def hyper(aux_k=4, dead_after=100):
    stacked = hyperparameters(
        (D_SAE, K, 0, 1e-3), aux_coefficient=[0.5], aux_k=[aux_k], dead_after=[dead_after]
    )
    return jax.tree.map(lambda leaf: leaf[0], stacked)


def loss_and_gradients(sae, x, latents, values):
    params, kept = split(sae)

    def loss_of(params):
        merged = merge(CONFIG.template, params, kept, values)
        loss = merged.loss(Batch(x, x, latents, jnp.int32(0)), values, kernel=None)
        return loss, split(merged)[1]

    (loss, kept), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    return loss, grads, kept["since_fired"]


def torch_loss_and_gradients(params, x, dead, aux_k):
    """TopK and AuxK as Gao et al. 2024 write them, in float64."""
    tensors = {
        name: torch.tensor(array, dtype=torch.float64, requires_grad=True)
        for name, array in params.items()
    }
    x = torch.tensor(x, dtype=torch.float64)
    pre = x @ tensors["w_enc"] + tensors["b_enc"]

    def largest(values, k):
        top = values.topk(k, dim=1)
        return torch.zeros_like(values).scatter(1, top.indices, top.values)

    x_hat = largest(pre.relu(), K) @ tensors["w_dec"] + tensors["b_dec"]
    missed = (x - x_hat).detach()
    revived = largest(torch.where(torch.tensor(dead), pre.relu(), 0.0), aux_k)
    # In units of the mean squared error: times the variance of the samples.
    variance = ((x - x.mean(dim=0)) ** 2).mean()
    aux = variance * ((revived @ tensors["w_dec"] - missed) ** 2).mean() / (missed**2).mean()
    loss = ((x_hat - x) ** 2).mean() + 0.5 * aux
    loss.backward()
    return loss.item(), {name: tensor.grad.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("aux_k", [1, 4, 9])
def test_loss_and_gradients_equal_pytorch(aux_k):
    x = samples(40, D_IN)
    since = np.where(np.arange(D_SAE) % 3 == 0, 100, 99)  # 8 dead latents
    sae = topk_with_aux(since)
    loss, grads, _ = loss_and_gradients(sae, x, jnp.ones(D_SAE, bool), hyper(aux_k))
    expected, gradients = torch_loss_and_gradients(
        random_params(0, D_IN, D_SAE), x, since >= 100, aux_k
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    gradients["w_enc_t"] = gradients.pop("w_enc").T
    for name, gradient in gradients.items():
        np.testing.assert_allclose(grads[name], gradient, rtol=1e-5, atol=2e-6, err_msg=name)


def test_without_dead_latents_it_is_the_plain_loss():
    x = samples(40, D_IN)
    sae = topk_with_aux(np.zeros(D_SAE))
    loss, _, since = loss_and_gradients(sae, x, jnp.ones(D_SAE, bool), hyper())
    z = np.asarray(TopKSAE(random_params(0, D_IN, D_SAE), K, rule="relu").encode(x))
    np.testing.assert_allclose(loss, np.mean((np.asarray(sae(x)) - x) ** 2), rtol=1e-5)
    # Samples since a latent fired: 0 if it did in this batch, else the batch's 40 more.
    np.testing.assert_array_equal(since, np.where((z != 0).any(axis=0), 0, 40))


def test_padding_is_never_dead_and_never_revived():
    x = samples(40, D_IN)
    latents = jnp.arange(D_SAE) < 20
    sae = topk_with_aux(np.full(D_SAE, 500))
    for name in ("w_enc_t", "b_enc", "w_dec"):
        parameter = getattr(sae, name)
        parameter[...] = parameter[...].at[20:].set(0.0)
    _, grads, since = loss_and_gradients(sae, x, latents, hyper(aux_k=D_SAE))
    for name in ("w_enc_t", "b_enc", "w_dec"):
        assert grads[name][:20].any()
        assert not grads[name][20:].any(), name
    np.testing.assert_array_equal(since[20:], 0)


@pytest.mark.slow  # In a mixed sweep it is tested always.
def test_members_with_aux_equal_their_solo_runs_and_are_saved(tmp_path):
    x = samples(200, 16)
    fields = {"architecture": "topk", "aux_k": 4, "dead_after": 64}
    configs = [
        SAEConfig(40, 3, aux_coefficient=0.1, **fields),
        SAEConfig(33, 2, seed=1, aux_coefficient=1.0, **fields),
        SAEConfig(40, 3, architecture="topk"),
        SAEConfig(40, 3),
    ]
    result = quietly(configs, x, x, epochs=4, batch_size=32, max_padding=0.3)
    for i, config in enumerate(configs):
        (alone,) = quietly([config], x, x, epochs=4, batch_size=32).members
        np.testing.assert_allclose(result.members[i].losses, alone.losses, rtol=1e-5)
    result.save(tmp_path / "sweep")
    read = SweepResult.load(tmp_path / "sweep")
    assert read.table() == result.table()
    assert [(sae.rule, sae.k) for sae in map(read.sae, range(4))] == [
        ("relu", 3),
        ("relu", 2),
        ("relu", 3),
        ("abs", 3),
    ]
    for member in read.members:
        assert set(member.params) == {"w_enc", "b_enc", "w_dec", "b_dec"}


def test_aux_revives_latents_that_an_offset_kills():
    x = samples(600, 16) + 8.0
    configs = [
        SAEConfig(64, 4, seed=seed, architecture="topk", aux_coefficient=aux)
        for aux in (0.0, 1.0)
        for seed in range(3)
    ]
    rows = quietly(configs, x[:500], x[500:], epochs=40, batch_size=32).table()
    dead, fvu = (
        [np.mean([row[name] for row in rows[i : i + 3]]) for i in (0, 3)]
        for name in ("dead_fraction", "fvu")
    )
    assert dead[0] > 0.5
    assert dead[1] < dead[0]
    assert fvu[1] < fvu[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": None, "architecture": "topk"}, "k is None; topk needs 1 to d_sae = 24"),
        ({"k": 3, "target_l0": 4.0}, "target_l0 is 4.0; allowed is None for abs_topk"),
        (
            {"k": 3, "preset": "dictionary_learning"},
            "preset is 'dictionary_learning'; allowed for abs_topk are None and 'saelens'",
        ),
    ],
)
def test_configs_that_no_member_can_have_are_refused(fields, message):
    x = samples(20)
    with pytest.raises(ValueError, match=message):
        quietly([SAEConfig(24, **fields)], x, x)


def test_a_kernel_that_does_not_serve_is_refused():
    x = samples(20)
    with pytest.raises(ValueError, match="kernel is 'firing_rows'; .* by 'auto', 'dense'"):
        quietly([CONFIG], x, x, kernel="firing_rows")


def test_what_is_kept_is_no_parameter():
    params, kept = split(topk_with_aux(np.zeros(D_SAE)))
    assert sorted(params) == ["b_dec", "b_enc", "w_dec", "w_enc_t"]
    assert sorted(kept) == ["since_fired"]
    assert nnx.state(topk_with_aux(np.zeros(D_SAE)), nnx.Param).keys() == params.keys()
