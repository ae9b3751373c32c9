"""Files that others have on disk, made by hand, against the formulas in NumPy."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from random_saes import (
    forward,
    gate,
    jump,
    keep_largest,
    random_gates,
    random_params,
    random_topk,
    samples,
)

from sae_jax import formats
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats import files, rewriting

torch = pytest.importorskip("torch", reason="the .pt formats need PyTorch")

RELU = jump(0.0)


def assert_computes(sae, expected, x):
    """Latents and reconstructions are the given ones."""
    z, x_hat = expected
    np.testing.assert_allclose(sae.encode(x), z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae(x), x_hat, rtol=1e-4, atol=1e-4)


def without_b_enc(p):
    return p | {"b_enc": np.zeros_like(p["b_enc"])}


# SAELens.

OLD = {
    "architecture": "standard",
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "context_size": 128,
    "model_name": "gpt2-small",
    "hook_name": "blocks.8.hook_resid_pre",
    "hook_layer": 8,
    "hook_head_index": None,
    "prepend_bos": True,
    "normalize_activations": "none",
    "dtype": "torch.float32",
    "device": "cuda",
    "sae_lens_training_version": "3.22.1",
}
NEW = {
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.8.hook_resid_pre"},
}


def saelens_folder(folder, weights, config):
    safetensors.numpy.save_file(
        {name: np.array(array, order="C") for name, array in weights.items()},
        folder / "sae_weights.safetensors",
    )
    d_in, d_sae = weights["W_enc"].shape
    (folder / "cfg.json").write_text(json.dumps({"d_in": d_in, "d_sae": d_sae} | config))


def saelens_weights(p, **others):
    return {"W_enc": p["w_enc"], "b_enc": p["b_enc"], "W_dec": p["w_dec"], "b_dec": p["b_dec"]} | (
        others
    )


def gated_weights(p, gates):
    weights = saelens_weights(p, **gates)
    del weights["b_enc"]
    return weights


@pytest.mark.parametrize(
    "config",
    [
        OLD,
        {name: OLD[name] for name in ("dtype", "model_name")},  # The first configs had no more.
        {"hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8},
        OLD | {"normalize_activations": None},
        OLD | {"normalize_activations": False},
        NEW | {"architecture": "standard"},
    ],
    ids=["5.x", "least", "1.x", "null", "false", "6.x"],
)
def test_saelens_standard_is_a_jumprelu_of_threshold_zero(tmp_path, config):
    p = random_params(1)
    saelens_folder(tmp_path, saelens_weights(p), config)
    sae, x = formats.load(tmp_path), samples()
    assert isinstance(sae, JumpReLUSAE)
    np.testing.assert_array_equal(sae.threshold[...], np.zeros(24))
    assert_computes(sae, forward(p, x, RELU, center=True), x)


@pytest.mark.parametrize("name", ["activation_fn_str", "activation_fn"])
@pytest.mark.parametrize("center", [False, True])
def test_saelens_topk_before_6(tmp_path, name, center):
    p = random_params(2)
    config = {entry: value for entry, value in OLD.items() if entry != "activation_fn_str"}
    config |= {name: "topk", "activation_fn_kwargs": {"k": 6}, "apply_b_dec_to_input": center}
    saelens_folder(tmp_path, saelens_weights(p), config)
    sae, x = formats.load(tmp_path), samples()
    assert isinstance(sae, TopKSAE) and (sae.k, sae.rule) == (6, "relu")
    assert_computes(sae, forward(p, x, keep_largest(6, "relu"), center=center), x)


@pytest.mark.parametrize("normalize", ["none", False, None])
def test_saelens_jumprelu_before_6(tmp_path, normalize):
    p, threshold = random_params(3), np.linspace(-0.5, 1.0, 24, dtype=np.float32)
    config = OLD | {"architecture": "jumprelu", "normalize_activations": normalize}
    saelens_folder(tmp_path, saelens_weights(p, threshold=threshold), config)
    x = samples()
    assert_computes(formats.load(tmp_path), forward(p, x, jump(threshold), center=True), x)


@pytest.mark.parametrize("config", [OLD, NEW], ids=["5.x", "6.x"])
@pytest.mark.parametrize("center", [False, True])
def test_saelens_gated_is_a_jumprelu(tmp_path, config, center):
    p, gates = random_params(4), random_gates(4)
    config = config | {"architecture": "gated", "apply_b_dec_to_input": center}
    saelens_folder(tmp_path, gated_weights(p, gates), config)
    x = samples()
    expected = forward(without_b_enc(p), x, gate(gates), center=center)
    assert_computes(formats.load(tmp_path), expected, x)


def test_a_gate_by_hand(tmp_path):
    """One input, W = 1, exp(r) = 2, b_gate = -1, b_mag = 3.

    The gate opens above h0 = 1 and the magnitude is 2 h0 + 3, so a latent jumps from 0 to 5:
    the threshold is b_mag - exp(r) b_gate = 5.
    """
    weights = {
        "W_enc": np.ones((1, 1), np.float32),
        "W_dec": np.full((1, 1), 10.0, np.float32),
        "b_dec": np.zeros(1, np.float32),
        "b_gate": np.full(1, -1.0, np.float32),
        "b_mag": np.full(1, 3.0, np.float32),
        "r_mag": np.full(1, np.log(2.0), np.float32),
    }
    saelens_folder(tmp_path, weights, NEW | {"architecture": "gated"})
    sae = formats.load(tmp_path)
    np.testing.assert_allclose(sae.threshold[...], [5.0], rtol=1e-6)
    latents = sae.encode(np.array([[0.5], [0.99], [1.01], [4.0]], np.float32))
    np.testing.assert_allclose(latents, [[0.0], [0.0], [5.02], [11.0]], rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), spread=st.floats(0.1, 2.0), center=st.booleans())
def test_a_gate_is_a_threshold_whatever_its_biases(seed, spread, center):
    p = random_params(seed)
    gates = {name: array * np.float32(spread) for name, array in random_gates(seed).items()}
    weights = {name: array for name, array in p.items() if name != "b_enc"}
    sae = rewriting.gated_to_jumprelu(weights | gates, center_input=center)
    x = samples(seed)
    gate_at, _ = forward(p | {"b_enc": gates["b_gate"]}, x, lambda pre: pre, center=center)
    latents, _ = forward(without_b_enc(p), x, gate(gates), center=center)
    clear = np.abs(gate_at) > 1e-4  # Elsewhere rounding decides whether a gate is open.
    assert np.mean(clear) > 0.99
    np.testing.assert_allclose(
        np.asarray(sae.encode(x))[clear], latents[clear], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["b_gate", "b_mag", "r_mag"])
@pytest.mark.parametrize("shape", [(), (1,), (25,), (1, 24)])
def test_a_gate_of_another_shape_is_an_error(tmp_path, name, shape):
    gates = random_gates(5) | {name: np.zeros(shape, np.float32)}
    saelens_folder(
        tmp_path, gated_weights(random_params(5), gates), NEW | {"architecture": "gated"}
    )
    with pytest.raises(ValueError, match=f"{name}.*shape"):
        formats.load(tmp_path)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescale", [False, True])
def test_a_saelens_checkpoint_of_batchtopk_training(tmp_path, architecture, rescale):
    p = random_params(6)
    weights = saelens_weights(p, topk_threshold=np.asarray(0.7, np.float64))
    config = NEW | {"architecture": architecture, "k": 6.5, "rescale_acts_by_decoder_norm": rescale}
    saelens_folder(tmp_path, weights, config)
    norms = np.linalg.norm(p["w_dec"].astype(np.float64), axis=1) if rescale else 1.0
    x = samples()
    z, _ = forward(p, x, lambda pre: jump(0.7)(pre * norms), center=True)
    x_hat = (z / norms) @ p["w_dec"].astype(np.float64) + p["b_dec"]
    assert_computes(formats.load(tmp_path), (z, x_hat), x)


def test_a_saelens_checkpoint_of_older_jumprelu_training(tmp_path):
    p, threshold = random_params(7), np.linspace(0.1, 1.0, 24, dtype=np.float32)
    weights = saelens_weights(p, log_threshold=np.log(threshold))
    saelens_folder(tmp_path, weights, NEW | {"architecture": "jumprelu"})
    x = samples()
    assert_computes(formats.load(tmp_path), forward(p, x, jump(threshold), center=True), x)


def test_saelens_of_attention_heads_reads_them_side_by_side(tmp_path):
    p = random_params(8)
    saelens_folder(
        tmp_path,
        saelens_weights(p),
        NEW | {"architecture": "standard", "reshape_activations": "hook_z"},
    )
    x = samples()
    assert_computes(formats.load(tmp_path), forward(p, x, RELU, center=True), x)


def test_a_scaling_factor_of_one_is_none(tmp_path):
    p = random_params(9)
    ones = np.ones(24, np.float32)
    saelens_folder(tmp_path, saelens_weights(p, scaling_factor=ones), OLD)
    x = samples()
    assert_computes(formats.load(tmp_path), forward(p, x, RELU, center=True), x)
    (tmp_path / "other").mkdir()
    saelens_folder(tmp_path / "other", saelens_weights(p, scaling_factor=ones * 2.0), OLD)
    with pytest.raises(ValueError, match="scaling_factor.*other than 1"):
        formats.load(tmp_path / "other")


def test_metadata_of_saelens_before_6(tmp_path):
    config = OLD | {"hook_point": "blocks.8.hook_resid_pre", "sae_lens_version": "5.11.0"}
    del config["hook_name"]
    saelens_folder(tmp_path, saelens_weights(random_params(10)), config)
    metadata = formats.load_metadata(tmp_path)
    assert metadata["hook_name"] == "blocks.8.hook_resid_pre"
    assert metadata["model_name"] == "gpt2-small"
    assert not {"d_in", "architecture", "normalize_activations"} & metadata.keys()
    formats.save(formats.load(tmp_path), tmp_path / "new", format="saelens", metadata=metadata)
    assert formats.load_metadata(tmp_path / "new") == metadata


@pytest.mark.parametrize(
    "config, says",
    [
        (NEW | {"architecture": "skip_transcoder"}, "is a transcoder of SAELens.*standard.*gated"),
        (NEW | {"architecture": "jumprelu_skip_transcoder"}, "is a transcoder of SAELens"),
        (NEW | {"architecture": "temporal"}, "architecture.*'temporal'.*topk"),
        (NEW, "architecture"),
        (OLD | {"activation_fn_str": "tanh-relu"}, "activation_fn.*tanh-relu.*relu.*topk"),
        (OLD | {"activation_fn_str": "topk"}, "'k'"),
        (OLD | {"normalize_activations": True}, "normalize_activations.*expected_average_only_in"),
        (OLD | {"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale"),
    ],
)
def test_what_saelens_wrote_and_is_not_read(tmp_path, config, says):
    saelens_folder(tmp_path, saelens_weights(random_params(11)), config)
    with pytest.raises(ValueError, match=says):
        formats.load(tmp_path)


# dictionary_learning.


def linear(p, **others):
    return {
        "encoder.weight": torch.tensor(p["w_enc"].T),
        "decoder.weight": torch.tensor(p["w_dec"].T),
    } | {name: torch.tensor(array) for name, array in others.items()}


def dictionary(name, p, gates, threshold):
    """A state dict as the library's class of that name has it, its activation, its centering."""
    b = p["b_dec"]
    if name == "AutoEncoder":
        return linear(p, bias=b, **{"encoder.bias": p["b_enc"]}), RELU, True
    if name == "AutoEncoderNew":
        return linear(p, **{"encoder.bias": p["b_enc"], "decoder.bias": b}), RELU, False
    if name == "GatedAutoEncoder":
        biases = {"r_mag": gates["r_mag"], "gate_bias": gates["b_gate"], "mag_bias": gates["b_mag"]}
        return linear(p, decoder_bias=b, **biases), gate(gates), True
    own = {name: torch.tensor(array) for name, array in saelens_weights(p).items()}
    if name == "JumpReluAutoEncoder":
        return own | {"threshold": torch.tensor(threshold)}, jump(threshold), False
    counts = {"k": torch.tensor(6, dtype=torch.int), "threshold": torch.tensor(0.7)}
    if name == "MatryoshkaBatchTopKSAE":
        return own | counts | {"group_sizes": torch.tensor([8, 16])}, jump(0.7), True
    state = linear(p, b_dec=b, **{"encoder.bias": p["b_enc"]}) | counts
    return state, keep_largest(6, "relu") if name == "AutoEncoderTopK" else jump(0.7), True


UNAMBIGUOUS = (
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKSAE",
)
DICTIONARIES = (*UNAMBIGUOUS, "AutoEncoderTopK", "BatchTopKSAE")


def made(name, seed=12):
    """A state dict of a class, a batch, and what the class makes of it."""
    p, gates = random_params(seed), random_gates(seed)
    threshold = np.linspace(0.001, 1.0, 24, dtype=np.float32)
    state, activate, center = dictionary(name, p, gates, threshold)
    x = samples(seed)
    biased = without_b_enc(p) if name == "GatedAutoEncoder" else p
    return state, x, forward(biased, x, activate, center=center)


def trainer(name):
    return json.dumps({"trainer": {"dict_class": name, "k": 6, "lm_name": "tiny"}, "buffer": {}})


@pytest.mark.parametrize("name", DICTIONARIES)
@pytest.mark.parametrize("place", ["ae.pt", "checkpoints/ae_500.pt"])
def test_dictionary_learning(tmp_path, name, place):
    state, x, expected = made(name)
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    torch.save(state, file)
    (tmp_path / "config.json").write_text(trainer(name))
    for path in (file, file.parent):  # A file, or a folder that holds it.
        assert_computes(formats.load(path), expected, x)
        assert formats.load_metadata(path)["trainer"]["lm_name"] == "tiny"


@pytest.mark.parametrize("name", UNAMBIGUOUS)
@pytest.mark.parametrize("file", ["ae.pt", "layer_3.pt"])
def test_dictionary_learning_without_a_config(tmp_path, name, file):
    state, x, expected = made(name)
    torch.save(state, tmp_path / file)
    for path in (tmp_path, tmp_path / file):
        assert_computes(formats.load(path), expected, x)
        assert formats.load_metadata(path) == {}


def test_top_k_and_batch_top_k_cannot_be_told_apart_without_a_config(tmp_path):
    torch.save(made("BatchTopKSAE")[0], tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="AutoEncoderTopK.*BatchTopKSAE.*config.json"):
        formats.load(tmp_path)


@pytest.mark.parametrize("in_file", [False, True])
def test_a_top_k_of_before_there_was_a_threshold(tmp_path, in_file):
    state, x, expected = made("AutoEncoderTopK")
    del state["threshold"]
    if not in_file:
        del state["k"]
    torch.save(state, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(trainer("AutoEncoderTopK"))
    assert_computes(formats.load(tmp_path), expected, x)


def test_batch_top_k_without_an_estimated_threshold_is_a_relu(tmp_path):
    """The library starts at -1, and encodes by `f * (f > threshold)` of what a ReLU leaves."""
    state, x, _ = made("BatchTopKSAE")
    torch.save(state | {"threshold": torch.tensor(-1.0)}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(trainer("BatchTopKSAE"))
    assert_computes(formats.load(tmp_path), forward(random_params(12), x, RELU, center=True), x)


@pytest.mark.parametrize("threshold", [torch.zeros(1), torch.zeros(24), torch.tensor(1)])
def test_a_batch_top_k_threshold_is_one_number(tmp_path, threshold):
    torch.save(made("BatchTopKSAE")[0] | {"threshold": threshold}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(trainer("BatchTopKSAE"))
    with pytest.raises(ValueError, match="threshold"):
        formats.load(tmp_path)


@pytest.mark.parametrize(
    "config, says",
    [
        (trainer("CrossCoder"), "dict_class.*CrossCoder.*AutoEncoderTopK"),
        (trainer("AutoEncoderNew"), "bias.*decoder.bias"),  # The file holds an AutoEncoder.
        ("[]", "config.json.*list"),
    ],
)
def test_a_config_of_another_dictionary(tmp_path, config, says):
    torch.save(made("AutoEncoder")[0], tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=says):
        formats.load(tmp_path)


def test_a_pickled_module_is_not_built(tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "ae.pt")
    with pytest.raises(ValueError, match="state_dict"):
        formats.load(tmp_path)


# Gemma Scope.

SCOPE_2 = {
    "hf_hook_point_in": "model.layers.12.output",
    "hf_hook_point_out": "model.layers.12.output",
    "width": 24,
    "model_name": "gemma-v3-1b-pt",
    "architecture": "jump_relu",
    "l0": 60,
    "affine_connection": False,
    "type": "sae",
}


def scope_2_folder(folder, config, **others):
    p, threshold = random_params(13), np.linspace(0.1, 1.0, 24, dtype=np.float32)
    safetensors.numpy.save_file(
        p | {"threshold": threshold} | others, folder / "params.safetensors"
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    x = samples(13)
    return x, forward(p, x, jump(threshold))


@pytest.mark.parametrize("config", [SCOPE_2, None])
def test_gemma_scope_2(tmp_path, config):
    x, expected = scope_2_folder(tmp_path, config)
    for path in (tmp_path, tmp_path / "params.safetensors"):
        sae = formats.load(path)
        assert isinstance(sae, JumpReLUSAE) and not sae.center_input
        assert_computes(sae, expected, x)
        assert formats.load_metadata(path) == (config or {})


def test_gemma_scope_under_lower_case_names(tmp_path):
    p = random_params(14)
    np.savez(tmp_path / "params.npz", threshold=np.ones(24, np.float32), **p)
    x = samples(14)
    assert_computes(formats.load(tmp_path), forward(p, x, jump(1.0)), x)


@pytest.mark.parametrize(
    "config, others, says",
    [
        (SCOPE_2 | {"type": "transcoder"}, {}, "is a transcoder of Gemma Scope"),
        (SCOPE_2 | {"hf_hook_point_out": "elsewhere"}, {}, "is a transcoder of Gemma Scope"),
        (None, {"affine_skip_connection": np.eye(8, dtype=np.float32)}, "is a transcoder"),
        (None, {"w_dec": np.ones((24, 3, 8), np.float32)}, "is a transcoder"),
        (SCOPE_2 | {"architecture": "topk"}, {}, "architecture.*topk.*jump_relu"),
        (None, {"W_enc": np.ones((8, 24), np.float32)}, "W_enc"),  # Beside w_enc.
    ],
)
def test_what_gemma_scope_has_and_is_not_read(tmp_path, config, others, says):
    scope_2_folder(tmp_path, config, **others)
    with pytest.raises(ValueError, match=says):
        formats.load(tmp_path)


# Files as other programs write them, and weights that are named instead of their folder.


@pytest.mark.parametrize("format", ["native", "saelens", "sparsify", "dictionary_learning"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_configs_as_other_programs_write_them(tmp_path, format, encoding):
    formats.save(random_topk(rule="relu", center_input=True), tmp_path, format=format)
    path = next(tmp_path.glob("*.json"))
    content = json.loads(path.read_text())
    text = json.dumps(content | {"metadata": content.get("metadata", {}) | {"mse": float("nan")}})
    path.write_bytes(("\n" + text.replace(", ", ",\r\n") + "\r\n\r\n").encode(encoding))
    assert formats.load(tmp_path).k == 5
    assert np.isnan(files.read_json(path)["metadata"]["mse"])


@pytest.mark.parametrize("format", ["native", "saelens", "sparsify", "dictionary_learning"])
def test_a_weights_file_instead_of_its_folder(tmp_path, format):
    sae = random_topk(rule="relu", center_input=True)
    formats.save(sae, tmp_path, format=format, metadata={"layer": 3})
    (file,) = (path for path in tmp_path.iterdir() if path.suffix != ".json")
    np.testing.assert_array_equal(formats.load(file).params["w_dec"], sae.params["w_dec"])
    assert formats.load_metadata(file) == {"layer": 3}


@pytest.mark.parametrize("format", ["native", "saelens", "sparsify"])
def test_a_weights_file_without_its_config(tmp_path, format):
    formats.save(random_topk(), tmp_path, format=format)
    next(tmp_path.glob("*.json")).unlink()
    with pytest.raises(ValueError, match=r"(cfg|config)\.json beside it"):
        formats.load(next(tmp_path.iterdir()))
