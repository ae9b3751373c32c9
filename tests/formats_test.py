import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from random_saes import (
    activation_of,
    forward,
    jump,
    keep_largest,
    random_jumprelu,
    random_params,
    random_saes,
    random_topk,
    samples,
)

import sae_jax
from sae_jax import formats
from sae_jax.architectures.base import SAE
from sae_jax.architectures.batch_topk import BatchTopKSAE
from sae_jax.architectures.gated import GatedSAE
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats import kinds, native
from sae_jax.sweep.result import Member

torch = pytest.importorskip("torch", reason="the .pt formats need PyTorch")

OTHERS = tuple(random_saes().values())
TRANSCODER = TopKSAE(random_params(1) | {"w_dec": np.ones((24, 5)), "b_dec": np.ones(5)}, 5)
METADATA = {"layer": 14, "position": 3, "metrics": {"mse": 0.25}, "model": "tiny"}
FLAGS = ("center_input", "normalize_input")


def assert_same(found, expected):
    assert type(found) is type(expected)
    for name, array in expected.params.items():
        np.testing.assert_array_equal(found.params[name], array, err_msg=name)
    for name in FLAGS:
        assert getattr(found, name) == getattr(expected, name)
    for name in ("k", "rule", "prefix_sizes"):
        assert getattr(found, name, None) == getattr(expected, name, None)
    for name in ("threshold", "b_mag", "r_mag"):
        if hasattr(expected, name):
            own, same = getattr(found, name), getattr(expected, name)
            np.testing.assert_array_equal(own[...], same[...], err_msg=name)


def assert_computes(sae, expected, x):
    """Latents and reconstructions are the given ones."""
    z, x_hat = expected
    np.testing.assert_allclose(sae.encode(x), z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae(x), x_hat, rtol=1e-5, atol=1e-5)


def write_json(path, content):
    path.write_text(json.dumps(content))


# Round trips. Files hold float32, so what needs no arithmetic comes back bit for bit.


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    d_in=st.integers(1, 12),
    d_sae=st.integers(1, 40),
    data=st.data(),
    rule=st.sampled_from(["abs", "relu"]),
    center=st.booleans(),
    normalize=st.booleans(),
    format=st.sampled_from(["native", "saelens"]),
)
def test_topk_comes_back_bit_for_bit(
    tmp_path_factory, seed, d_in, d_sae, data, rule, center, normalize, format
):
    k = data.draw(st.integers(1, d_sae))
    options = {"rule": rule, "center_input": center, "normalize_input": normalize}
    sae = random_topk(seed, d_in, d_sae, k, **options)
    folder = tmp_path_factory.mktemp("sae")
    formats.save(sae, folder, format=format, metadata=METADATA)
    assert_same(formats.load(folder), sae)
    assert formats.load_metadata(folder) == METADATA


INPUT = [(False, False), (True, False), (False, True), (True, True)]
KINDS = list(random_saes())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("center, normalize", INPUT)
def test_native_files_hold_every_kind(tmp_path, kind, center, normalize):
    sae = random_saes(center_input=center, normalize_input=normalize)[kind]
    native.save(sae, tmp_path, METADATA)
    loaded = formats.load(tmp_path)
    assert_same(loaded, sae)
    x = samples()
    np.testing.assert_array_equal(loaded.encode(x), sae.encode(x))
    np.testing.assert_array_equal(loaded(x), sae(x))
    activate = activation_of(sae)
    expected = forward(sae.params, x, activate, center=center, normalize=normalize)
    np.testing.assert_allclose(loaded.encode(x), expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(loaded(x), expected[1], rtol=1e-4, atol=1e-4)
    assert formats.load_metadata(tmp_path) == METADATA


@pytest.mark.parametrize(
    "sae", [TRANSCODER, *random_saes(d_out=5).values()], ids=lambda s: type(s).__name__
)
def test_native_files_hold_transcoders(tmp_path, sae):
    native.save(sae, tmp_path)
    assert_same(formats.load(tmp_path), sae)


def test_a_batch_topk_that_does_not_know_its_k(tmp_path):
    native.save(BatchTopKSAE(random_params(0), -1.0), tmp_path)
    assert formats.load(tmp_path).k is None


SWEPT = [
    sae_jax.SAEConfig(24, 5, architecture="abs_topk"),
    sae_jax.SAEConfig(24, 5, architecture="topk", normalize="layer_norm"),
    sae_jax.SAEConfig(24, 5, architecture="batch_topk", center_input=True, aux_coefficient=0.1),
    sae_jax.SAEConfig(24, 5, architecture="batch_topk", preset="saelens"),
    sae_jax.SAEConfig(24, 5, architecture="matryoshka", prefix_fractions=(0.25, 0.5, 1.0)),
    sae_jax.SAEConfig(24, architecture="jumprelu", target_l0=5.0),
    sae_jax.SAEConfig(24, architecture="gated", sparsity_coefficient=0.1, normalize="layer_norm"),
    sae_jax.SAEConfig(24, architecture="relu", sparsity_coefficient=0.1, normalize="center"),
]


@pytest.mark.parametrize("d_out", [8, 5])
def test_a_sweep_of_every_architecture_comes_back_bit_for_bit(tmp_path, d_out):
    fits = [c for c in SWEPT if d_out == 8 or not (c.center_input or c.normalize == "layer_norm")]
    saes = random_saes(d_out=d_out)
    members = [
        Member(
            config,
            kinds.arrays_of(saes.get(config.architecture, saes["relu"])),
            metrics={"mse": 0.25},
            firing_rate=np.zeros(24, np.float32),
            losses=np.ones(3, np.float32),
        )
        for config in fits
    ]
    result = sae_jax.SweepResult(members, sae_jax.TrainConfig())
    result.save(tmp_path / "sweep")
    read, x = sae_jax.SweepResult.load(tmp_path / "sweep"), samples()
    assert read.table() == result.table()
    for i, config in enumerate(fits):
        place = tmp_path / "sweep" / "members" / f"{i:05d}"
        for loaded in (read.sae(i), formats.load(place)):
            assert_same(loaded, result.sae(i))
            np.testing.assert_array_equal(loaded.encode(x), result.sae(i).encode(x))
            np.testing.assert_array_equal(loaded(x), result.sae(i)(x))
        assert formats.load_metadata(place)["architecture"] == config.architecture
        for other in fits[:i] + fits[i + 1 :]:
            with pytest.raises(ValueError, match="the sweep says"):
                native.check_holds(place, other)


def test_a_native_file_with_a_config_of_earlier_days_is_read(tmp_path):
    """Batch top-k and penalized SAEs were once described by what they were trained with."""
    sae = random_saes(center_input=True)["batch_topk"]
    native.save(sae, tmp_path)
    path = tmp_path / "config.json"
    described = json.loads(path.read_text())
    del described["k"]
    config = {"d_sae": 24, "k": 5, "architecture": "batch_topk", "center_input": True}
    write_json(path, described | {"config": config})
    assert_same(formats.load(tmp_path), sae)
    native.check_holds(tmp_path, sae_jax.SAEConfig(**config))
    write_json(path, described | {"config": config | {"depth": 2}})
    with pytest.raises(ValueError, match="config in .*depth"):
        formats.load(tmp_path)


@pytest.mark.parametrize(
    "entries, says",
    [
        ({"k": 0}, "k in .* 0; allowed is an integer from 1"),
        ({"k": 2.5}, "k in .* 2.5; allowed is an integer from 1"),
        ({"prefix_sizes": 3}, "prefix_sizes in .* 3; allowed is a list of integers"),
        ({"prefix_sizes": [3, "all"]}, "prefix_sizes in .*'all'; allowed is an integer from 1"),
        ({"architecture": "gated"}, "holds .*k.*expected"),
        ({"architecture": "crosscoder"}, "'crosscoder'; allowed is one of .*matryoshka"),
    ],
)
def test_a_native_config_of_what_cannot_be(tmp_path, entries, says):
    native.save(random_saes()["matryoshka"], tmp_path)
    path = tmp_path / "config.json"
    write_json(path, json.loads(path.read_text()) | entries)
    with pytest.raises(ValueError, match=says):
        formats.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_native_weights_that_lack_an_array_of_their_kind(tmp_path, kind):
    sae = random_saes()[kind]
    native.save(sae, tmp_path)
    weights = safetensors.numpy.load_file(tmp_path / "sae.safetensors")
    weights.pop({"gated": "r_mag", "relu": "b_dec"}.get(kind, "threshold"))
    safetensors.numpy.save_file(weights, tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match="expected"):
        formats.load(tmp_path)


# What other libraries are given; `formats_parity_test` opens it there.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    "format, normalize", [("saelens", False), ("saelens", True), ("dictionary_learning", False)]
)
def test_other_formats_keep_what_each_kind_computes(tmp_path, format, kind, center, normalize):
    sae = random_saes(center_input=center, normalize_input=normalize)[kind]
    formats.save(sae, tmp_path, format=format, metadata=METADATA)
    loaded, x = formats.load(tmp_path), samples()
    assert isinstance(loaded, JumpReLUSAE)
    expected = forward(sae.params, x, activation_of(sae), center=center, normalize=normalize)
    np.testing.assert_allclose(loaded.encode(x), expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(loaded(x), expected[1], rtol=1e-4, atol=1e-4)
    assert formats.load_metadata(tmp_path) == METADATA


def test_a_centered_gate_by_hand(tmp_path):
    """x = 3, b_dec = 1, w_enc = 2: h = (3 - 1) * 2 = 4 and 4 * exp(log 3) - 5 = 7, if 4 - 3 > 0.

    Without centering h is 6, and biases are -3 - 2 = -5 and -5 - 2 * 3 = -11.
    """
    one = lambda value: np.full(1, value, np.float32)  # noqa: E731
    params = {"w_enc": one(2)[None], "b_enc": one(-5), "w_dec": one(1)[None], "b_dec": one(1)}
    sae = GatedSAE(params, one(-11), one(np.log(3)))
    np.testing.assert_allclose(sae.encode(one(3)), [7.0], rtol=1e-6)
    formats.save(sae, tmp_path, format="dictionary_learning")
    state = torch.load(tmp_path / "ae.pt")
    np.testing.assert_allclose(state["gate_bias"], [-3.0], rtol=1e-6)
    np.testing.assert_allclose(state["mag_bias"], [-5.0], rtol=1e-6)
    np.testing.assert_allclose(formats.load(tmp_path).encode(one(3)), [7.0], rtol=1e-6)


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning"])
def test_a_batch_topk_before_its_first_estimate_is_a_relu(tmp_path, format):
    sae = BatchTopKSAE(random_params(2), -1.0, k=5)
    formats.save(sae, tmp_path, format=format)
    x = samples()
    assert_computes(formats.load(tmp_path), forward(sae.params, x, jump(0.0)), x)


def test_dictionary_learning_is_told_k_and_the_groups(tmp_path):
    formats.save(random_saes()["matryoshka"], tmp_path, format="dictionary_learning")
    state = torch.load(tmp_path / "ae.pt")
    assert state["group_sizes"].tolist() == [6, 18]
    assert (state["k"].item(), state["k"].dtype) == (5, torch.int32)
    assert json.loads((tmp_path / "config.json").read_text())["trainer"]["k"] == 5


def test_without_k_a_batch_topk_is_a_jumprelu_of_dictionary_learning(tmp_path):
    sae = BatchTopKSAE(random_params(3), 0.7, center_input=True)
    formats.save(sae, tmp_path, format="dictionary_learning")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["trainer"]["dict_class"] == "JumpReluAutoEncoder"
    x = samples()
    assert_computes(formats.load(tmp_path), forward(sae.params, x, jump(0.7), center=True), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d_out", [5, 8])
def test_transcoders_to_saelens_and_back(tmp_path, kind, d_out):
    """Where both widths are equal, the metadata tell that it is one."""
    sae = random_saes(d_out=d_out, center_input=d_out == 8)[kind]
    metadata = {"hook_name_out": "blocks.3.hook_mlp_out"} if d_out == 8 else {}
    formats.save(sae, tmp_path, format="saelens", metadata=metadata)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == "transcoder" if kind == "relu" else "jumprelu_transcoder"
    assert (config["d_out"], config["apply_b_dec_to_input"]) == (d_out, False)
    loaded, x = formats.load(tmp_path), samples()
    z, y_hat = forward_transcoder(sae, x)
    np.testing.assert_allclose(loaded.encode(x), z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(loaded(x), y_hat, rtol=1e-4, atol=1e-4)
    assert formats.load_metadata(tmp_path) == metadata


def forward_transcoder(sae, x):
    p = {name: np.asarray(array, np.float64) for name, array in sae.params.items()}
    h = x - p["b_dec"] if sae.center_input else x
    z = activation_of(sae)(h @ p["w_enc"] + p["b_enc"])
    return z, z @ p["w_dec"] + p["b_dec"]


@pytest.mark.parametrize(
    "entries, says",
    [
        ({"architecture": "skip_transcoder"}, "skip connection"),
        ({"architecture": "jumprelu_skip_transcoder"}, "skip connection"),
        ({"architecture": "jumprelu"}, "architecture.*'jumprelu'.*jumprelu_transcoder"),
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input.*false for a transcoder"),
        ({"normalize_activations": "layer_norm"}, "layer_norm.*none"),
        ({"reshape_activations": "hook_z"}, "hook_z.*none"),
        ({"d_out": 6}, "d_out.* 6.*5"),
    ],
)
def test_transcoders_of_saelens_that_are_not_read(tmp_path, entries, says):
    formats.save(random_saes(d_out=5)["jumprelu"], tmp_path, format="saelens")
    path = tmp_path / "cfg.json"
    write_json(path, json.loads(path.read_text()) | entries)
    with pytest.raises(ValueError, match=says):
        formats.load(tmp_path)


@pytest.mark.parametrize("format", ["native", "saelens"])
@pytest.mark.parametrize("center", [False, True])
def test_jumprelu_comes_back_bit_for_bit(tmp_path, format, center):
    sae = random_jumprelu(center_input=center, normalize_input=not center)
    formats.save(sae, tmp_path, format=format)
    assert_same(formats.load(tmp_path), sae)
    assert formats.load_metadata(tmp_path) == {}


@pytest.mark.parametrize("format", ["dictionary_learning", "sparsify"])
@pytest.mark.parametrize("rule", ["abs", "relu"])
@pytest.mark.parametrize("center", [False, True])
def test_centered_formats_keep_what_an_sae_computes(tmp_path, format, rule, center):
    sae = random_topk(rule=rule, center_input=center)
    formats.save(sae, tmp_path, format=format, metadata=METADATA)
    loaded = formats.load(tmp_path)
    assert (loaded.k, loaded.rule, loaded.d_sae) == (sae.k, sae.rule, sae.d_sae)
    assert formats.load_metadata(tmp_path) == METADATA
    x = samples()
    z, x_hat = forward(sae.params, x, keep_largest(sae.k, rule), center=center)
    assert_computes(loaded, (z, x_hat), x)
    if center:
        assert_same(loaded, sae)


def test_published_checkpoint_comes_back_bit_for_bit(tmp_path):
    sae = random_topk(d_in=8, d_sae=24, k=5)
    written = formats.save(sae, tmp_path, format="published", metadata=METADATA)
    assert written == tmp_path / "pos3_layer14_d24_k5.pt"
    assert_same(formats.load(tmp_path), sae)
    assert_same(formats.load(written), sae)
    assert formats.load_metadata(tmp_path) == METADATA


def test_metrics_of_a_diverged_sae_are_kept(tmp_path):
    native.save(random_topk(), tmp_path, {"mse": float("nan")})
    assert np.isnan(native.load_metadata(tmp_path)["mse"])


# Files as others write them, against the formulas of the specification.


def test_published_checkpoint_of_the_experiment(tmp_path):
    p = random_params(3)
    checkpoint = {
        "model_state_dict": {
            "encoder.weight": torch.tensor(p["w_enc"].T),
            "encoder.bias": torch.tensor(p["b_enc"]),
            "decoder.weight": torch.tensor(p["w_dec"].T),
            "decoder.bias": torch.tensor(p["b_dec"]),
        },
        "config": {"input_dim": 8, "latent_dim": 24, "k": 4, "position": 3, "layer": 14},
        "metrics": {"explained_variance": 0.8},
        "training_history": {"val_loss": [0.5, 0.25]},
    }
    torch.save(checkpoint, tmp_path / "pos3_layer14_d24_k4.pt")
    x = samples()
    assert_computes(formats.load(tmp_path), forward(p, x, keep_largest(4, "abs")), x)
    assert formats.load_metadata(tmp_path) == {
        "layer": 14,
        "position": 3,
        "metrics": {"explained_variance": 0.8},
        "training_history": {"val_loss": [0.5, 0.25]},
    }


def saelens_folder(folder, weights, **config):
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array) for name, array in weights.items()},
        folder / "sae_weights.safetensors",
    )
    d_in, d_sae = weights["W_enc"].shape
    defaults = {
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.14.hook_resid_post"},
    }
    write_json(folder / "cfg.json", defaults | config)


def saelens_weights(p):
    return {"W_enc": p["w_enc"], "b_enc": p["b_enc"], "W_dec": p["w_dec"], "b_dec": p["b_dec"]}


@pytest.mark.parametrize("architecture, rule", [("topk", "relu"), ("abstopk", "abs")])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_saelens_topk(tmp_path, architecture, rule, center, rescale):
    p = random_params(4)
    saelens_folder(
        tmp_path,
        saelens_weights(p),
        architecture=architecture,
        k=6,
        apply_b_dec_to_input=center,
        rescale_acts_by_decoder_norm=rescale,
    )
    norms = np.linalg.norm(p["w_dec"].astype(np.float64), axis=1) if rescale else 1.0
    activate = keep_largest(6, rule)
    x = samples()
    z, _ = forward(p, x, lambda pre: activate(pre * norms), center=center)
    x_hat = (z / norms) @ p["w_dec"].astype(np.float64) + p["b_dec"]
    assert_computes(formats.load(tmp_path), (z, x_hat), x)
    assert formats.load_metadata(tmp_path) == {"hook_name": "blocks.14.hook_resid_post"}


def test_saelens_decoder_row_of_zero_is_no_division_by_zero(tmp_path):
    p = random_params(4)
    p["w_dec"][2] = 0.0
    saelens_folder(
        tmp_path,
        saelens_weights(p),
        architecture="topk",
        k=6,
        rescale_acts_by_decoder_norm=True,
    )
    assert np.isfinite(formats.load(tmp_path)(samples())).all()


def test_saelens_layer_norm_is_input_normalization(tmp_path):
    p = random_params(5)
    saelens_folder(
        tmp_path, saelens_weights(p), architecture="topk", k=6, normalize_activations="layer_norm"
    )
    x = samples()
    expected = forward(p, x, keep_largest(6, "relu"), center=True, normalize=True)
    assert_computes(formats.load(tmp_path), expected, x)


def test_saelens_jumprelu(tmp_path):
    p = random_params(6)
    threshold = np.linspace(-0.5, 1.0, 24, dtype=np.float32)
    weights = saelens_weights(p) | {"threshold": threshold}
    saelens_folder(tmp_path, weights, architecture="jumprelu", apply_b_dec_to_input=False)
    x = samples()
    assert_computes(formats.load(tmp_path), forward(p, x, jump(threshold)), x)


@pytest.mark.parametrize(
    "size",
    [{"num_latents": 24}, {"num_latents": 0, "expansion_factor": 3}, {"expansion_factor": 3}],
)
def test_sparsify(tmp_path, size):
    p = random_params(7)
    weights = {
        "encoder.weight": np.ascontiguousarray(p["w_enc"].T),
        "encoder.bias": p["b_enc"],
        "W_dec": p["w_dec"],
        "b_dec": p["b_dec"],
    }
    safetensors.numpy.save_file(weights, tmp_path / "sae.safetensors")
    write_json(tmp_path / "cfg.json", {"k": 6, "d_in": 8} | size)
    x = samples()
    expected = forward(p, x, keep_largest(6, "relu"), center=True)
    assert_computes(formats.load(tmp_path), expected, x)


def dictionary_learning_folder(folder, p, k=6, **trainer):
    state = {
        "encoder.weight": torch.tensor(p["w_enc"].T),
        "encoder.bias": torch.tensor(p["b_enc"]),
        "decoder.weight": torch.tensor(p["w_dec"].T),
        "b_dec": torch.tensor(p["b_dec"]),
        "k": torch.tensor(k, dtype=torch.int),
        "threshold": torch.tensor(0.7),
    }
    torch.save(state, folder / "ae.pt")
    trainer = {"dict_class": "AutoEncoderTopK", "k": k, "lm_name": "tiny"} | trainer
    write_json(folder / "config.json", {"trainer": trainer, "buffer": {}})


def test_dictionary_learning(tmp_path):
    p = random_params(8)
    dictionary_learning_folder(tmp_path, p)
    x = samples()
    expected = forward(p, x, keep_largest(6, "relu"), center=True)
    assert_computes(formats.load(tmp_path), expected, x)
    assert formats.load_metadata(tmp_path)["trainer"]["lm_name"] == "tiny"


def test_gemma_scope(tmp_path):
    p = random_params(9)
    threshold = np.linspace(0.0, 1.0, 24, dtype=np.float32)
    np.savez(tmp_path / "params.npz", threshold=threshold, **saelens_weights(p))
    x = samples()
    sae = formats.load(tmp_path)
    assert isinstance(sae, JumpReLUSAE)
    assert_computes(sae, forward(p, x, jump(threshold)), x)
    assert_same(formats.load(tmp_path / "params.npz"), sae)
    assert formats.load_metadata(tmp_path) == {}


def openai_state(p, k=6, **entries):
    return {
        "pre_bias": torch.tensor(p["b_dec"]),
        "latent_bias": torch.tensor(p["b_enc"]),
        "encoder.weight": torch.tensor(p["w_enc"].T),
        "decoder.weight": torch.tensor(p["w_dec"].T),
        "stats_last_nonzero": torch.zeros(24, dtype=torch.long),
        "latents_activation_frequency": torch.ones(24),
        "latents_mean_square": torch.zeros(24),
        "activation": "TopK",
        "activation_state_dict": {"k": k, "postact_fn": "ReLU"},
    } | entries


def test_openai(tmp_path):
    p = random_params(10)
    torch.save(openai_state(p), tmp_path / "7.pt")
    x = samples()
    expected = forward(p, x, keep_largest(6, "relu"), center=True, normalize=True)
    assert_computes(formats.load(tmp_path), expected, x)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types_are_read_as_float32(tmp_path, dtype):
    # Multiples of 1/8 up to 8 are exact in every one of these types.
    rng = np.random.default_rng(11)
    values = {
        name: np.round(rng.uniform(-8, 8, size=array.shape) * 8) / 8
        for name, array in random_params(11).items()
    }
    state = {
        name: tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in {
            "pre_bias": torch.tensor(values["b_dec"]),
            "latent_bias": torch.tensor(values["b_enc"]),
            "encoder.weight": torch.tensor(values["w_enc"].T),
            "decoder.weight": torch.tensor(values["w_dec"].T),
        }.items()
    }
    state["activation_state_dict"] = {"k": 6}
    torch.save(state, tmp_path / "sae.pt")
    sae = formats.load(tmp_path)
    for name, array in values.items():
        assert sae.params[name].dtype == np.float32
        np.testing.assert_array_equal(sae.params[name], array)


# Doubling.


def test_doubling_by_hand(tmp_path):
    """One input, two latents: pre-activations (-3, 2) keep -3, and -3 * 10 + 1 = -29."""
    params = {
        "w_enc": np.array([[-3.0, 2.0]], np.float32),
        "b_enc": np.zeros(2, np.float32),
        "w_dec": np.array([[10.0], [20.0]], np.float32),
        "b_dec": np.array([1.0], np.float32),
    }
    formats.save(TopKSAE(params, k=1), tmp_path, format="saelens")
    weights = safetensors.numpy.load_file(tmp_path / "sae_weights.safetensors")
    np.testing.assert_array_equal(weights["W_enc"], [[-3.0, 2.0, 3.0, -2.0]])
    np.testing.assert_array_equal(weights["W_dec"], [[10.0], [20.0], [-10.0], [-20.0]])
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["architecture"], config["k"], config["d_sae"]) == ("topk", 1, 4)
    assert config["metadata"]["sae_jax"] == {"rewritten": ["doubled"]}
    sae = formats.load(tmp_path)
    np.testing.assert_array_equal(sae.encode(np.ones((1, 1), np.float32)), [[-3.0, 0.0]])
    np.testing.assert_array_equal(sae(np.ones((1, 1), np.float32)), [[-29.0]])


def test_a_note_of_doubling_that_the_weights_deny_is_an_error(tmp_path):
    note = {"sae_jax": {"rewritten": ["doubled"]}}
    saelens_folder(
        tmp_path, saelens_weights(random_params(12)), architecture="topk", k=6, metadata=note
    )
    with pytest.raises(ValueError, match="not mirrored"):
        formats.load(tmp_path)


# What a format cannot hold.


@pytest.mark.parametrize(
    "format, sae, says",
    [
        *((format, sae, "TopKSAE") for format in ("sparsify", "published") for sae in OTHERS),
        *(
            (format, sae, says)
            for format in ("dictionary_learning", "sparsify", "published")
            for sae, says in (
                (random_topk(normalize_input=True), "normalize_input is True"),
                (TRANSCODER, "transcoder.*width 8 .*width 5"),
            )
        ),
        *(("dictionary_learning", sae, "transcoder") for sae in random_saes(d_out=5).values()),
        ("saelens", TRANSCODER, "no transcoder that is a TopKSAE"),
        ("saelens", SAE(random_params(0)), "cannot save a SAE without its config; .*GatedSAE"),
    ],
)
def test_what_cannot_be_held_is_an_error(tmp_path, format, sae, says):
    with pytest.raises(ValueError, match=says):
        formats.save(sae, tmp_path, format=format, metadata=METADATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options, says", [({"rule": "relu"}, "rule"), ({"center_input": True}, "center_input")]
)
def test_published_format_holds_the_published_rule_only(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        formats.save(random_topk(**options), tmp_path, format="published", metadata=METADATA)


@pytest.mark.parametrize("metadata", [{}, {"layer": 14}, {"layer": 14, "position": "../3"}])
def test_published_format_needs_layer_and_position(tmp_path, metadata):
    with pytest.raises(ValueError, match="position|layer"):
        formats.save(random_topk(), tmp_path, format="published", metadata=metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["native", "saelens"])
def test_an_unknown_architecture_cannot_be_saved(tmp_path, format):
    with pytest.raises(ValueError, match="SAE"):
        formats.save(SAE(random_params(0)), tmp_path, format=format)


@pytest.mark.parametrize("format", formats.WRITABLE)
def test_saving_never_overwrites(tmp_path, format):
    formats.save(random_topk(0), tmp_path, format=format, metadata=METADATA)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="exists already"):
        formats.save(random_topk(1), tmp_path, format=format, metadata=METADATA)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("format", formats.WRITABLE)
def test_metadata_that_is_not_json_is_an_error(tmp_path, format):
    with pytest.raises(ValueError, match="JSON"):
        formats.save(random_topk(), tmp_path, format=format, metadata=METADATA | {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_reserved_metadata_of_saelens_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="sae_lens_version"):
        formats.save(random_topk(), tmp_path, format="saelens", metadata={"sae_lens_version": "7"})


def test_unknown_format_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'onnx'.*native"):
        formats.save(random_topk(), tmp_path, format="onnx")


# What others wrote and cannot be held here.


@pytest.mark.parametrize(
    "config, says",
    [
        ({"architecture": "matching_pursuit"}, "architecture.*'matching_pursuit'.*topk"),
        ({"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale.*layer_norm"),
        ({"normalize_activations": "expected_average_only_in"}, "expected_average_only_in"),
        ({"reshape_activations": "hook_q"}, "reshape_activations.*hook_q"),
        ({"k": 25}, "k is 25"),
        ({"k": True}, "k in .* True"),
        ({"d_sae": 25}, "d_sae.*25.*24"),
        ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input.*true or false"),
        ({"metadata": {"sae_jax": {"rewritten": ["rotated"]}}}, "rotated"),
    ],
)
def test_saelens_config_that_cannot_be_held(tmp_path, config, says):
    weights = saelens_weights(random_params(0))
    saelens_folder(tmp_path, weights, **({"architecture": "topk", "k": 6} | config))
    with pytest.raises(ValueError, match=says):
        formats.load(tmp_path)


@pytest.mark.parametrize(
    "config, says",
    [
        ({"activation": "groupmax"}, "groupmax"),
        ({"transcode": True}, "transcode"),
        ({"skip_connection": True}, "skip_connection"),
        ({"signed": True}, "signed"),
        ({"num_latents": 0}, "expansion_factor"),
        ({"num_latents": 0, "expansion_factor": 32}, "expansion_factor.*32"),
        ({"num_latents": 25}, "num_latents.*25"),
    ],
)
def test_sparsify_config_that_cannot_be_held(tmp_path, config, says):
    formats.save(random_topk(rule="relu"), tmp_path, format="sparsify")
    path = tmp_path / "cfg.json"
    write_json(path, json.loads(path.read_text()) | config)
    with pytest.raises(ValueError, match=says):
        formats.load(tmp_path)


@pytest.mark.parametrize(
    "trainer, says", [({"dict_class": "CrossCoder"}, "CrossCoder"), ({"k": 5}, "k in .* 5.*6")]
)
def test_dictionary_learning_config_that_cannot_be_held(tmp_path, trainer, says):
    dictionary_learning_folder(tmp_path, random_params(0))
    config = json.loads((tmp_path / "config.json").read_text())
    config["trainer"] |= trainer
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=says):
        formats.load(tmp_path)


@pytest.mark.parametrize(
    "entries, says",
    [
        ({"activation": "ReLU"}, "activation.*ReLU"),
        ({"activation_state_dict": {"k": 6, "postact_fn": "Identity"}}, "Identity"),
        ({"activation_state_dict": {}}, "'k'"),
        ({"decoder.bias": torch.zeros(8)}, "decoder.bias"),
    ],
)
def test_openai_state_that_cannot_be_held(tmp_path, entries, says):
    torch.save(openai_state(random_params(0), **entries), tmp_path / "sae.pt")
    with pytest.raises(ValueError, match=says):
        formats.load(tmp_path)


# Finding the format.


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        formats.load(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds 0 SAEs.*sae_weights.safetensors"):
        formats.load(tmp_path)


@pytest.mark.parametrize("format", ["native", "saelens", "dictionary_learning", "sparsify"])
def test_half_a_pair_is_not_an_sae(tmp_path, format):
    formats.save(random_topk(), tmp_path, format=format)
    for file in sorted(tmp_path.iterdir()):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(ValueError, match="SAE|expected"):
            formats.load(tmp_path)
        file.write_bytes(content)
    formats.load(tmp_path)


def test_several_in_one_folder(tmp_path):
    formats.save(random_topk(), tmp_path, format="saelens")
    formats.save(random_topk(), tmp_path, format="native")
    with pytest.raises(ValueError, match="holds 3 SAEs"):  # cfg.json serves sparsify's pair too
        formats.load(tmp_path)


def test_several_checkpoints_in_one_folder(tmp_path):
    for layer in (13, 14):
        formats.save(
            random_topk(), tmp_path, format="published", metadata={"layer": layer, "position": 0}
        )
    with pytest.raises(ValueError, match="holds 2 SAEs"):
        formats.load(tmp_path)
    assert formats.load(tmp_path / "pos0_layer13_d24_k5.pt").k == 5


def test_a_torch_file_of_something_else(tmp_path):
    torch.save({"optimizer": {}}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="optimizer.*model_state_dict"):
        formats.load(tmp_path)


def test_a_config_instead_of_its_folder(tmp_path):
    formats.save(random_topk(), tmp_path, format="native")
    with pytest.raises(ValueError, match="name the weights or the folder"):
        formats.load(tmp_path / "config.json")
