"""The same SAE here and in the library whose format it is in, both ways round.

Run by `make test-formats`, in an environment that has the three libraries.
"""

import json

import numpy as np
import pytest
from random_saes import random_jumprelu, random_params, random_topk, samples

from sae_jax import formats

torch = pytest.importorskip("torch", reason="the foreign libraries need PyTorch")

pytestmark = pytest.mark.formats

SIZES = [(8, 24, 5), (16, 16, 16), (5, 40, 1), (32, 200, 20)]
FLAGS = [(False, False), (True, False), (False, True), (True, True)]
IN_ENVIRONMENT = "needs the foreign libraries; run by `make test-formats`"


@pytest.fixture(scope="module")
def sae_lens():
    return pytest.importorskip("sae_lens", reason=IN_ENVIRONMENT)


@pytest.fixture(scope="module")
def dictionary_utils():
    return pytest.importorskip("dictionary_learning.utils", reason=IN_ENVIRONMENT)


@pytest.fixture(scope="module")
def top_k_class():
    trainers = pytest.importorskip("dictionary_learning.trainers.top_k", reason=IN_ENVIRONMENT)
    return trainers.AutoEncoderTopK


@pytest.fixture(scope="module")
def sparsify():
    return pytest.importorskip("sparsify", reason=IN_ENVIRONMENT)


def assert_same_outputs(sae, x, latents, x_hat):
    """Latents and reconstructions agree to 1e-5 of the largest of them.

    `latents` may be those of a doubled SAE: the second half then counts negatively.
    """
    latents = latents.detach().numpy()
    if latents.shape[1] == 2 * sae.d_sae:
        latents = latents[:, : sae.d_sae] - latents[:, sae.d_sae :]
    for ours, theirs in ((sae.encode(x), latents), (sae(x), x_hat.detach().numpy())):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def set_params(p, **tensors):
    """Puts random parameters into a foreign module; keys say which goes where."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.tensor(p[name].T if tensor.shape != p[name].shape else p[name]))


# SAELens.


@pytest.mark.parametrize("d_in, d_sae, k", SIZES)
@pytest.mark.parametrize("rule", ["abs", "relu"])
@pytest.mark.parametrize("center, normalize", FLAGS)
def test_topk_to_saelens(tmp_path, sae_lens, d_in, d_sae, k, rule, center, normalize):
    sae = random_topk(1, d_in, d_sae, k, rule=rule, center_input=center, normalize_input=normalize)
    formats.save(sae, tmp_path, format="saelens", metadata={"model_name": "tiny"})
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    assert theirs.cfg.architecture() == "topk"
    assert theirs.cfg.metadata.model_name == "tiny"
    x = samples(1, d_in)
    # It normalizes in `encode` and undoes that in the `decode` that follows.
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(sae, x, latents, theirs.decode(latents))


@pytest.mark.parametrize("center, normalize", FLAGS)
def test_jumprelu_to_saelens(tmp_path, sae_lens, center, normalize):
    sae = random_jumprelu(2, center_input=center, normalize_input=normalize)
    formats.save(sae, tmp_path, format="saelens")
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    x = samples(2)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(sae, x, latents, theirs.decode(latents))


@pytest.mark.parametrize("d_in, d_sae, k", SIZES[::3])
@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("center, normalize", FLAGS)
def test_topk_from_saelens(
    tmp_path, sae_lens, d_in, d_sae, k, architecture, rescale, center, normalize
):
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class(architecture)
    config = config_class(
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        rescale_acts_by_decoder_norm=rescale,
        apply_b_dec_to_input=center,
        normalize_activations="layer_norm" if normalize else "none",
    )
    theirs = sae_class(config)
    p = random_params(3, d_in, d_sae)
    set_params(p, w_enc=theirs.W_enc, b_enc=theirs.b_enc, w_dec=theirs.W_dec, b_dec=theirs.b_dec)
    theirs.save_model(tmp_path)
    x = samples(3, d_in)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(formats.load(tmp_path), x, latents, theirs.decode(latents))


def saelens_jumprelu(sae_lens, center):
    config = sae_lens.JumpReLUSAEConfig(d_in=8, d_sae=24, apply_b_dec_to_input=center)
    theirs = sae_lens.JumpReLUSAE(config)
    p = random_params(4) | {"threshold": np.linspace(-0.5, 1.0, 24).astype(np.float32)}
    set_params(
        p,
        w_enc=theirs.W_enc,
        b_enc=theirs.b_enc,
        w_dec=theirs.W_dec,
        b_dec=theirs.b_dec,
        threshold=theirs.threshold,
    )
    return theirs


@pytest.mark.parametrize("center", [False, True])
def test_jumprelu_from_saelens(tmp_path, sae_lens, center):
    theirs = saelens_jumprelu(sae_lens, center)
    theirs.save_model(tmp_path)
    x = samples(4)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(formats.load(tmp_path), x, latents, theirs.decode(latents))


def test_gemma_scope_computes_what_saelens_makes_of_it(tmp_path, sae_lens):
    theirs = saelens_jumprelu(sae_lens, center=False)
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    np.savez(tmp_path / "params.npz", **arrays)
    x = samples(5)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(formats.load(tmp_path), x, latents, theirs.decode(latents))


# dictionary_learning.


@pytest.mark.parametrize("d_in, d_sae, k", SIZES)
@pytest.mark.parametrize("rule", ["abs", "relu"])
@pytest.mark.parametrize("center", [False, True])
def test_to_dictionary_learning(tmp_path, dictionary_utils, d_in, d_sae, k, rule, center):
    sae = random_topk(6, d_in, d_sae, k, rule=rule, center_input=center)
    formats.save(sae, tmp_path, format="dictionary_learning")
    theirs, config = dictionary_utils.load_dictionary(str(tmp_path), device="cpu")
    assert config["trainer"]["k"] == k
    x = samples(6, d_in)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(sae, x, latents, theirs.decode(latents))


@pytest.mark.parametrize("d_in, d_sae, k", SIZES)
def test_from_dictionary_learning(tmp_path, top_k_class, d_in, d_sae, k):
    theirs = top_k_class(d_in, d_sae, k)
    set_params(
        random_params(7, d_in, d_sae),
        w_enc=theirs.encoder.weight,
        b_enc=theirs.encoder.bias,
        w_dec=theirs.decoder.weight,
        b_dec=theirs.b_dec,
    )
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    config = {"trainer": {"dict_class": "AutoEncoderTopK", "k": k}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    x = samples(7, d_in)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(formats.load(tmp_path), x, latents, theirs.decode(latents))


# sparsify.


def sparsify_outputs(theirs, x):
    """Dense latents, and the reconstruction of its own forward pass."""
    encoded = theirs.encode(torch.tensor(x))
    latents = torch.zeros(len(x), theirs.num_latents)
    latents.scatter_(1, encoded.top_indices, encoded.top_acts)
    return latents, theirs.decode(encoded.top_acts, encoded.top_indices)


@pytest.mark.parametrize("d_in, d_sae, k", SIZES)
@pytest.mark.parametrize("rule", ["abs", "relu"])
@pytest.mark.parametrize("center", [False, True])
def test_to_sparsify(tmp_path, sparsify, d_in, d_sae, k, rule, center):
    sae = random_topk(8, d_in, d_sae, k, rule=rule, center_input=center)
    formats.save(sae, tmp_path, format="sparsify")
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path)
    assert theirs.cfg.k == k
    x = samples(8, d_in)
    assert_same_outputs(sae, x, *sparsify_outputs(theirs, x))


@pytest.mark.parametrize("size", [{"num_latents": 24}, {"expansion_factor": 3}])
def test_from_sparsify(tmp_path, sparsify, size):
    theirs = sparsify.SparseCoder(8, sparsify.SparseCoderConfig(k=6, **size))
    set_params(
        random_params(9),
        w_enc=theirs.encoder.weight,
        b_enc=theirs.encoder.bias,
        w_dec=theirs.W_dec,
        b_dec=theirs.b_dec,
    )
    theirs.save_to_disk(tmp_path)
    x = samples(9)
    assert_same_outputs(formats.load(tmp_path), x, *sparsify_outputs(theirs, x))
