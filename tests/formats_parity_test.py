"""The same SAE here and in the library whose format it is in, both ways round.

Run by `make test-formats`, in an environment that has the three libraries.
"""

import json

import numpy as np
import pytest
from random_saes import (
    random_gates,
    random_params,
    random_saes,
    random_topk,
    samples,
)

from sae_jax import formats
from sae_jax.architectures.batch_topk import BatchTopKSAE

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


def assert_read_as_written(sae, folder, x):
    """What we read of a file computes what was written to it."""
    read = formats.load(folder)
    for ours, written in ((read.encode(x), sae.encode(x)), (read(x), sae(x))):
        np.testing.assert_allclose(ours, written, rtol=0, atol=1e-5 * np.abs(written).max())


KINDS = list(random_saes())


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


IN_SAELENS = {"relu": "standard", "gated": "gated"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d_in, d_sae, k", SIZES[::3])
@pytest.mark.parametrize("center, normalize", FLAGS)
def test_every_kind_to_saelens(tmp_path, sae_lens, kind, d_in, d_sae, k, center, normalize):
    sae = random_saes(2, d_in, d_sae, center_input=center, normalize_input=normalize)[kind]
    formats.save(sae, tmp_path, format="saelens", metadata={"model_name": "tiny"})
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    assert theirs.cfg.architecture() == IN_SAELENS.get(kind, "jumprelu")
    assert theirs.cfg.metadata.model_name == "tiny"
    x = samples(2, d_in)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(sae, x, latents, theirs.decode(latents))
    assert_read_as_written(sae, tmp_path, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d_out", [5, 8, 20])
@pytest.mark.parametrize("center", [False, True])
def test_transcoders_to_saelens(tmp_path, sae_lens, kind, d_out, center):
    """With equal widths the metadata tell that it is one, and `b_dec` may have been subtracted."""
    sae = random_saes(13, d_out=d_out, center_input=center and d_out == 8)[kind]
    metadata = {"hook_name": "blocks.3.ln2.hook_normalized", "hook_name_out": "blocks.3.mlp_out"}
    formats.save(sae, tmp_path, format="saelens", metadata=metadata)
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    architecture = "transcoder" if kind == "relu" else "jumprelu_transcoder"
    assert theirs.cfg.architecture() == architecture
    assert theirs.cfg.metadata.hook_name_out == "blocks.3.mlp_out"
    x = samples(13)
    assert_same_outputs(sae, x, theirs.encode(torch.tensor(x)), theirs(torch.tensor(x)))
    assert_read_as_written(sae, tmp_path, x)


@pytest.mark.parametrize("architecture", ["transcoder", "jumprelu_transcoder"])
@pytest.mark.parametrize("d_out", [5, 8])
def test_transcoders_from_saelens(tmp_path, sae_lens, architecture, d_out):
    theirs = saelens_sae(sae_lens, architecture, d_out=d_out, apply_b_dec_to_input=False)
    theirs.save_model(tmp_path)
    x = samples(10)
    assert_same_outputs(
        formats.load(tmp_path), x, theirs.encode(torch.tensor(x)), theirs(torch.tensor(x))
    )


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


def saelens_sae(sae_lens, architecture, **options):
    """A SAELens SAE of random parameters, the architecture's own among them."""
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class(architecture)
    theirs = sae_class(config_class(d_in=8, d_sae=24, **options))
    p, out = random_params(10), random_params(10, options.get("d_out", 8))
    ours = {"W_enc": p["w_enc"], "b_enc": p["b_enc"], "W_dec": out["w_dec"], "b_dec": out["b_dec"]}
    ours |= random_gates(10) | {"threshold": np.linspace(-0.5, 1.0, 24).astype(np.float32)}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.tensor(ours[name]))
    return theirs


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu"])
@pytest.mark.parametrize("center, normalize", FLAGS)
def test_other_architectures_from_saelens(tmp_path, sae_lens, architecture, center, normalize):
    theirs = saelens_sae(
        sae_lens,
        architecture,
        apply_b_dec_to_input=center,
        normalize_activations="layer_norm" if normalize else "none",
    )
    theirs.save_model(tmp_path)
    x = samples(10)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(formats.load(tmp_path), x, latents, theirs.decode(latents))


def test_attention_heads_from_saelens(tmp_path, sae_lens):
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name="blocks.3.attn.hook_z")
    theirs = saelens_sae(sae_lens, "standard", reshape_activations="hook_z", metadata=metadata)
    theirs.save_model(tmp_path)
    x = samples(10)
    latents = theirs.encode(torch.tensor(x.reshape(-1, 2, 4)))  # Two heads of width 4.
    x_hat = theirs.decode(latents).flatten(1)
    assert_same_outputs(formats.load(tmp_path), x, latents, x_hat)


# Configs as versions 2 to 5 wrote them, which the installed version still opens.
OLD = {
    "d_in": 8,
    "d_sae": 24,
    "activation_fn_str": "relu",
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "context_size": 128,
    "model_name": "gpt2-small",
    "hook_name": "blocks.8.hook_resid_pre",
    "prepend_bos": True,
    "normalize_activations": "none",
    "dtype": "float32",
    "device": "cpu",
    "sae_lens_training_version": "3.22.1",
}


@pytest.mark.parametrize(
    "architecture, config",
    [
        ("standard", {}),
        ("standard", {"normalize_activations": None}),
        ("standard", {"normalize_activations": False, "apply_b_dec_to_input": False}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6}}),
        ("topk", {"activation_fn": "topk", "activation_fn_kwargs": {"k": 6}}),
        ("jumprelu", {"architecture": "jumprelu", "normalize_activations": False}),
        ("jumprelu", {"architecture": "jumprelu", "normalize_activations": None}),
        ("gated", {"architecture": "gated", "activation_fn_kwargs": {}}),
    ],
)
def test_from_saelens_before_6(tmp_path, sae_lens, architecture, config):
    from safetensors.torch import save_file

    made = saelens_sae(sae_lens, architecture)
    save_file(made.state_dict(), tmp_path / "sae_weights.safetensors")
    config = OLD | config
    if config.get("activation_fn"):
        del config["activation_fn_str"]
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    assert theirs.cfg.architecture() == architecture
    x = samples(10)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(formats.load(tmp_path), x, latents, theirs.decode(latents))
    assert formats.load_metadata(tmp_path)["hook_name"] == theirs.cfg.metadata.hook_name


TRAINED = ["standard", "gated", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk"]


@pytest.mark.parametrize("architecture", TRAINED)
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("saver", ["save_inference_model", "save_model"])
def test_what_saelens_training_leaves(tmp_path, sae_lens, architecture, rescale, saver):
    """As training ends, or as it writes checkpoints; compared with the inference SAE of it."""
    from sae_lens.registry import get_sae_training_class

    sae_class, config_class = get_sae_training_class(architecture)
    options = {"rescale_acts_by_decoder_norm": rescale} if "topk" in architecture else {}
    options |= {"k": 6} if "topk" in architecture else {}
    options |= {"matryoshka_widths": [8, 24]} if "matryoshka" in architecture else {}
    trained = sae_class(config_class(d_in=8, d_sae=24, **options))
    p = random_params(11)
    ours = {"W_enc": p["w_enc"], "b_enc": p["b_enc"], "W_dec": p["w_dec"], "b_dec": p["b_dec"]}
    ours |= random_gates(11) | {"threshold": np.linspace(0.1, 1.0, 24).astype(np.float32)}
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(torch.tensor(ours[name]))
        if "batchtopk" in architecture:
            trained.topk_threshold.fill_(0.7)
    getattr(trained, saver)(tmp_path / "theirs")
    trained.save_inference_model(tmp_path / "inference")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "inference")
    x = samples(11)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(formats.load(tmp_path / "theirs"), x, latents, theirs.decode(latents))


@pytest.mark.parametrize("architecture", ["skip_transcoder", "jumprelu_skip_transcoder"])
def test_skip_connections_of_saelens_are_named(tmp_path, sae_lens, architecture):
    from sae_lens.registry import get_sae_class

    sae_class, config_class = get_sae_class(architecture)
    config = config_class(d_in=8, d_sae=24, d_out=8, apply_b_dec_to_input=False)
    sae_class(config).save_model(tmp_path)
    with pytest.raises(ValueError, match="is a transcoder of SAELens with a skip"):
        formats.load(tmp_path)


@pytest.mark.parametrize("with_config", [False, True])
def test_gemma_scope_2_computes_what_saelens_makes_of_it(
    tmp_path, sae_lens, monkeypatch, with_config
):
    """By the library's loader of Gemma Scope 2, which downloads; here it finds the files."""
    from huggingface_hub.utils import EntryNotFoundError
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from safetensors.torch import save_file

    state = saelens_jumprelu(sae_lens, center=False).state_dict()
    folder = tmp_path / "resid_post" / "layer_12_width_16k_l0_medium"
    folder.mkdir(parents=True)
    lower = {name.lower(): tensor.contiguous() for name, tensor in state.items()}
    save_file(lower, folder / "params.safetensors")
    if with_config:
        config = {
            "hf_hook_point_in": "model.layers.12.output",
            "hf_hook_point_out": "model.layers.12.output",
            "model_name": "gemma-v3-1b-pt",
            "architecture": "jump_relu",
            "affine_connection": False,
            "type": "sae",
        }
        (folder / "config.json").write_text(json.dumps(config))

    def hf_hub_download(repo_id, filename, subfolder=None, force_download=False):
        file = tmp_path / (subfolder or "") / filename
        if not file.exists():
            raise EntryNotFoundError(f"no {filename}")
        return str(file)

    monkeypatch.setattr(loaders, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(
        loaders,
        "get_safetensors_tensor_shapes",
        lambda repo_id, filename: {name: list(tensor.shape) for name, tensor in lower.items()},
    )
    config, weights, _ = loaders.gemma_3_sae_huggingface_loader(
        "google/gemma-scope-2-1b-pt", str(folder.relative_to(tmp_path)), "cpu"
    )
    theirs = sae_lens.JumpReLUSAE(
        sae_lens.JumpReLUSAEConfig(
            d_in=8, d_sae=24, apply_b_dec_to_input=config["apply_b_dec_to_input"]
        )
    )
    theirs.load_state_dict(weights)
    x = samples(5)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(formats.load(folder), x, latents, theirs.decode(latents))


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


IN_DICTIONARY_LEARNING = {
    "batch_topk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
    "jumprelu": "JumpReluAutoEncoder",
    "gated": "GatedAutoEncoder",
    "relu": "AutoEncoderNew",
}


def dictionary_outputs(dictionary_utils, folder, x):
    """The class and what it makes of samples, as the library loads it."""
    theirs, _ = dictionary_utils.load_dictionary(str(folder), device="cpu")
    latents = theirs.encode(torch.tensor(x))
    return theirs, latents, theirs.decode(latents)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d_in, d_sae, k", SIZES[::3])
@pytest.mark.parametrize("center", [False, True])
def test_every_kind_to_dictionary_learning(
    tmp_path, dictionary_utils, kind, d_in, d_sae, k, center
):
    sae = random_saes(14, d_in, d_sae, center_input=center)[kind]
    formats.save(sae, tmp_path, format="dictionary_learning")
    x = samples(14, d_in)
    theirs, latents, x_hat = dictionary_outputs(dictionary_utils, tmp_path, x)
    assert type(theirs).__name__ == IN_DICTIONARY_LEARNING[kind]
    assert_same_outputs(sae, x, latents, x_hat)
    assert_read_as_written(sae, tmp_path, x)
    if kind in ("batch_topk", "matryoshka"):
        assert theirs.k == 5
    if kind == "matryoshka":
        # Without its last group it is the first prefix alone.
        theirs.active_groups = 1
        first = theirs.encode(torch.tensor(x)).detach().numpy()
        np.testing.assert_array_equal(first[:, : d_sae // 4], latents.detach()[:, : d_sae // 4])
        assert not first[:, d_sae // 4 :].any()


@pytest.mark.parametrize("k", [5, None])
@pytest.mark.parametrize("threshold", [-1.0, 0.7])
def test_a_batch_topk_that_knows_little(tmp_path, sae_lens, dictionary_utils, k, threshold):
    """Neither k, perhaps, nor an estimate of its threshold."""
    sae = BatchTopKSAE(random_params(15), threshold, k=k, center_input=True)
    x = samples(15)
    formats.save(sae, tmp_path / "dictionary", format="dictionary_learning")
    _, latents, x_hat = dictionary_outputs(dictionary_utils, tmp_path / "dictionary", x)
    assert_same_outputs(sae, x, latents, x_hat)
    formats.save(sae, tmp_path / "lens", format="saelens")
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "lens")
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


DICTIONARIES = {
    "AutoEncoder": "dictionary_learning.dictionary",
    "AutoEncoderNew": "dictionary_learning.dictionary",
    "GatedAutoEncoder": "dictionary_learning.dictionary",
    "JumpReluAutoEncoder": "dictionary_learning.dictionary",
    "BatchTopKSAE": "dictionary_learning.trainers.batch_top_k",
    "MatryoshkaBatchTopKSAE": "dictionary_learning.trainers.matryoshka_batch_top_k",
}
NAMED = {
    "encoder.weight": "w_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "w_dec",
    "W_enc": "w_enc",
    "b_enc": "b_enc",
    "W_dec": "w_dec",
    "bias": "b_dec",
    "b_dec": "b_dec",
    "decoder.bias": "b_dec",
    "decoder_bias": "b_dec",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
    "r_mag": "r_mag",
    "threshold": "threshold",
}


def random_dictionary(name, threshold=0.7):
    module = pytest.importorskip(DICTIONARIES[name], reason=IN_ENVIRONMENT)
    counts = {"k": 6} if "TopK" in name else {}
    counts |= {"group_sizes": [8, 16]} if "Matryoshka" in name else {}
    theirs = getattr(module, name)(8, 24, **counts)
    p = random_params(12) | random_gates(12)
    p["threshold"] = np.linspace(0.001, 1.0, 24).astype(np.float32)
    set_params(p, **{NAMED[entry]: tensor for entry, tensor in theirs.named_parameters()})
    if "TopK" in name:
        theirs.threshold.fill_(threshold)
    return theirs


def save_dictionary(theirs, file):
    """As the library's `trainSAE` does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.cpu() for name, tensor in theirs.state_dict().items()}, file)


@pytest.mark.parametrize(
    "name, with_config",
    # A batch top-k without a config looks like a top-k, and is refused.
    [(name, True) for name in DICTIONARIES]
    + [(name, False) for name in DICTIONARIES if name != "BatchTopKSAE"],
)
@pytest.mark.parametrize("place", ["ae.pt", "checkpoints/ae_100.pt"])
def test_other_dictionaries(tmp_path, name, place, with_config):
    theirs = random_dictionary(name)
    save_dictionary(theirs, tmp_path / place)
    if with_config:
        config = {"trainer": {"dict_class": name, "k": 6}}
        (tmp_path / "config.json").write_text(json.dumps(config))
    x = samples(12)
    latents = theirs.encode(torch.tensor(x))
    assert_same_outputs(formats.load(tmp_path / place), x, latents, theirs.decode(latents))


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionaries_as_the_library_loads_them(tmp_path, dictionary_utils, name):
    """Of an `AutoEncoder` it scales decoder rows to norm 1 and latents by the same norms."""
    theirs = random_dictionary(name)
    save_dictionary(theirs, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "k": 6}}))
    loaded, _ = dictionary_utils.load_dictionary(str(tmp_path), device="cpu")
    x = samples(12)
    latents = loaded.encode(torch.tensor(x))
    x_hat = loaded.decode(latents)
    if name == "AutoEncoder":
        latents = latents / theirs.decoder.weight.norm(dim=0)
    assert_same_outputs(formats.load(tmp_path), x, latents, x_hat)


@pytest.mark.parametrize("name", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_dictionaries_before_their_threshold_is_estimated(tmp_path, name):
    theirs = random_dictionary(name, threshold=-1.0)
    save_dictionary(theirs, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "k": 6}}))
    x = samples(12)
    latents = theirs.encode(torch.tensor(x))
    assert (latents >= 0).all()
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
