"""Files from strangers: they must not run code, leave their folder, crash or deceive."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_saes import random_gates, random_jumprelu, random_params, random_saes, random_topk

from sae_jax import formats
from sae_jax.architectures.topk import TopKSAE

torch = pytest.importorskip("torch", reason="the .pt formats need PyTorch")

PLACE = {"layer": 14, "position": 3}
PUBLISHED = "pos3_layer14_d24_k5.pt"


def write_gemma_scope(folder):
    p = random_params(0)
    np.savez(
        folder / "params.npz",
        W_enc=p["w_enc"],
        b_enc=p["b_enc"],
        W_dec=p["w_dec"],
        b_dec=p["b_dec"],
        threshold=np.ones(24, np.float32),
    )


def write_openai(folder):
    p = random_params(0)
    state = {
        "pre_bias": torch.tensor(p["b_dec"]),
        "latent_bias": torch.tensor(p["b_enc"]),
        "encoder.weight": torch.tensor(p["w_enc"].T),
        "decoder.weight": torch.tensor(p["w_dec"].T),
        "activation": "TopK",
        "activation_state_dict": {"k": 5, "postact_fn": "ReLU"},
    }
    torch.save(state, folder / "openai.pt")


def write_saelens_gated(folder):
    p = random_params(0)
    weights = {"W_enc": p["w_enc"], "W_dec": p["w_dec"], "b_dec": p["b_dec"]} | random_gates(0)
    safetensors.numpy.save_file(weights, folder / "sae_weights.safetensors")
    config = {"architecture": "gated", "d_in": 8, "d_sae": 24, "apply_b_dec_to_input": True}
    config |= {"normalize_activations": "none", "metadata": {"sae_lens_version": "6.0.0"}}
    (folder / "cfg.json").write_text(json.dumps(config))


def write_gemma_scope_2(folder):
    arrays = random_params(0) | {"threshold": np.ones(24, np.float32)}
    safetensors.numpy.save_file(arrays, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "type": "sae", "hf_hook_point_in": "a"}
    (folder / "config.json").write_text(json.dumps(config | {"hf_hook_point_out": "a"}))


def write_dictionary(folder):
    p, gates = random_params(0), random_gates(0)
    state = {
        "encoder.weight": p["w_enc"].T,
        "decoder.weight": p["w_dec"].T,
        "decoder_bias": p["b_dec"],
        "r_mag": gates["r_mag"],
        "gate_bias": gates["b_gate"],
        "mag_bias": gates["b_mag"],
    }
    torch.save({name: torch.tensor(array) for name, array in state.items()}, folder / "ae.pt")


WRITE_BY_HAND = {
    "gemma_scope": write_gemma_scope,
    "gemma_scope_2": write_gemma_scope_2,
    "openai": write_openai,
    "saelens_gated": write_saelens_gated,
    "dictionary": write_dictionary,
}


def write(format, folder):
    """A valid SAE of each readable format."""
    folder.mkdir(parents=True)
    if format in WRITE_BY_HAND:
        WRITE_BY_HAND[format](folder)
    elif format == "saelens_jumprelu":
        formats.save(random_jumprelu(), folder, format="saelens")
    elif format == "saelens_transcoder":
        formats.save(random_saes(d_out=5)["jumprelu"], folder, format="saelens")
    elif format == "native_matryoshka":
        formats.save(random_saes()["matryoshka"], folder, format="native")
    else:
        sae = random_topk(rule="abs" if format == "published" else "relu")
        formats.save(sae, folder, format=format, metadata=PLACE)
    return folder


READABLE = (
    *formats.WRITABLE,
    *WRITE_BY_HAND,
    "saelens_jumprelu",
    "saelens_transcoder",
    "native_matryoshka",
)
FILES = [
    ("native", "sae.safetensors"),
    ("native", "config.json"),
    ("saelens", "sae_weights.safetensors"),
    ("saelens", "cfg.json"),
    ("dictionary_learning", "ae.pt"),
    ("dictionary_learning", "config.json"),
    ("sparsify", "sae.safetensors"),
    ("sparsify", "cfg.json"),
    ("published", PUBLISHED),
    ("gemma_scope", "params.npz"),
    ("gemma_scope_2", "params.safetensors"),
    ("openai", "openai.pt"),
    ("saelens_gated", "sae_weights.safetensors"),
    ("dictionary", "ae.pt"),
]
CONFIGS = [(format, name) for format, name in FILES if name.endswith(".json")]
WEIGHTS = [(format, name) for format, name in FILES if not name.endswith(".json")]


# Code.


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def as_pickle(payload, path):
    path.write_bytes(pickle.dumps(payload))


def as_torch(payload, path):
    torch.save({"model_state_dict": payload, "pre_bias": payload, "k": payload}, path)


def as_old_torch(payload, path):
    torch.save({"model_state_dict": payload}, path, _use_new_zipfile_serialization=False)


def as_npz(payload, path):
    with path.open("wb") as file:
        np.savez(file, W_enc=np.array([payload], dtype=object))


def as_npy(payload, path):
    with path.open("wb") as file:
        np.save(file, np.array([payload], dtype=object))


@pytest.mark.parametrize("disguise", [as_pickle, as_torch, as_old_torch, as_npz, as_npy])
@pytest.mark.parametrize("format, name", FILES)
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, format, name, disguise):
    folder = write(format, tmp_path / "sae")
    marker = tmp_path / "ran"
    disguise(Payload(marker), folder / name)
    with pytest.raises(ValueError):
        formats.load(folder)
    with pytest.raises(ValueError):
        formats.load(folder / name)
    if (format, name) in [*CONFIGS, ("published", PUBLISHED)]:
        with pytest.raises(ValueError):
            formats.load_metadata(folder / name if format == "published" else folder)
    assert not marker.exists()


def test_the_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


# Paths.


def test_paths_in_archives_and_configs_lead_nowhere(tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("untouched")
    folder = write("gemma_scope", tmp_path / "a" / "sae")
    with zipfile.ZipFile(folder / "params.npz", "a") as archive:
        member = io.BytesIO()
        np.save(member, np.zeros(3, np.float32))
        archive.writestr("../../outside.txt", member.getvalue())
        archive.writestr("/tmp/outside.npy", member.getvalue())
    with pytest.raises(ValueError, match="outside"):
        formats.load(folder)

    folder = write("saelens", tmp_path / "b" / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    config |= {"path": "../../outside.txt", "weights": str(outside)}
    config["metadata"]["hook_name"] = "../../outside.txt"
    (folder / "cfg.json").write_text(json.dumps(config))
    assert formats.load(folder).k == 5

    before = sorted(tmp_path.rglob("*"))
    for place in ({"layer": 14, "position": "../../x"}, {"layer": "/tmp/x", "position": 3}):
        with pytest.raises(ValueError, match="an integer from 0"):
            formats.save(random_topk(), tmp_path / "a", format="published", metadata=place)
    assert sorted(tmp_path.rglob("*")) == before
    assert outside.read_text() == "untouched"


# Damage. Whatever a file says, it is a ValueError or an SAE that means what the file says.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FUZZ = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    root = tmp_path_factory.mktemp("valid")
    return {format: write(format, root / format) for format in READABLE}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def copy(folder, scratch):
    shutil.rmtree(scratch)
    shutil.copytree(folder, scratch)
    return scratch


def paths_to_entries(config, prefix=()):
    for name, value in config.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from paths_to_entries(value, (*prefix, name))


def load_or_none(folder):
    try:
        return formats.load(folder)
    except ValueError:
        return None


def assert_params_of(found, original):
    for name, array in original.params.items():
        np.testing.assert_array_equal(found.params[name], array)


OTHER_CONFIGS = [
    ("saelens_jumprelu", "cfg.json"),
    ("saelens_gated", "cfg.json"),
    ("saelens_transcoder", "cfg.json"),
    ("native_matryoshka", "config.json"),
    ("gemma_scope_2", "config.json"),
]


@pytest.mark.parametrize("format, name", CONFIGS + OTHER_CONFIGS)
@FUZZ
@given(data=st.data())
def test_a_config_with_one_wrong_entry(valid, scratch, format, name, data):
    original = formats.load(valid[format])
    folder = copy(valid[format], scratch)
    config = json.loads((folder / name).read_text())
    *parents, last = data.draw(st.sampled_from(sorted(paths_to_entries(config))))
    owner = config
    for parent in parents:
        owner = owner[parent]
    if data.draw(st.booleans()):
        del owner[last]
    else:
        owner[last] = data.draw(JSON)
    (folder / name).write_text(json.dumps(config))

    sae = load_or_none(folder)
    if sae is None:
        return
    assert type(sae) is type(original)
    if config.get("rescale_acts_by_decoder_norm") is True:  # Folded into the weights.
        norms = np.linalg.norm(original.params["w_dec"], axis=1)
        np.testing.assert_allclose(
            sae.params["w_enc"], original.params["w_enc"] * norms, rtol=1e-5, atol=1e-6
        )
    else:
        assert_params_of(sae, original)
    if isinstance(sae, TopKSAE):
        stated = config["trainer"]["k"] if format == "dictionary_learning" else config["k"]
        assert type(stated) is int and sae.k == stated
        assert sae.rule == original.rule
    if format == "native":
        assert sae.center_input is config["center_input"]
        assert sae.normalize_input is config["normalize_input"]
    if format.startswith("saelens"):
        assert sae.center_input is config.get("apply_b_dec_to_input", True)


@pytest.mark.parametrize("format, name", CONFIGS)
@FUZZ
@given(content=JSON.map(json.dumps) | st.text() | st.just("[" * 100_000))
def test_a_config_that_is_something_else(valid, scratch, format, name, content):
    folder = copy(valid[format], scratch)
    (folder / name).write_bytes(content.encode("utf-8", errors="surrogatepass"))
    assert load_or_none(folder) is None


@pytest.mark.parametrize("format, name", WEIGHTS)
@FUZZ
@given(data=st.data())
def test_weights_cut_short(valid, scratch, format, name, data):
    folder = copy(valid[format], scratch)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert load_or_none(folder) is None


@pytest.mark.parametrize("format, name", [item for item in WEIGHTS if "safetensors" in item[1]])
@FUZZ
@given(data=st.data())
def test_a_safetensors_header_with_wrong_bytes(valid, scratch, format, name, data):
    original = formats.load(valid[format])
    folder = copy(valid[format], scratch)
    content = bytearray((folder / name).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content)
    sae = load_or_none(folder)
    if sae is not None:
        assert_params_of(sae, original)


@pytest.mark.parametrize("format, name", [item for item in WEIGHTS if "safetensors" not in item[1]])
@FUZZ
@given(data=st.data())
def test_an_archive_with_wrong_bytes(valid, scratch, format, name, data):
    original = formats.load(valid[format])
    folder = copy(valid[format], scratch)
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content)
    sae = load_or_none(folder)
    if sae is not None:
        assert_params_of(sae, original)


# Quantized and nested tensors, of which PyTorch warns, are among the wrong entries.
@pytest.mark.filterwarnings("ignore:(torch.quantize|The PyTorch API of nested)")
@pytest.mark.parametrize("format", ["published", "dictionary_learning", "openai", "dictionary"])
@FUZZ
@given(data=st.data())
def test_a_torch_dict_with_one_wrong_entry(valid, scratch, format, data):
    original = formats.load(valid[format])
    folder = copy(valid[format], scratch)
    path = next(folder.glob("*.pt"))
    content = torch.load(path, weights_only=True)
    *parents, last = data.draw(st.sampled_from(sorted(paths_to_entries(content))))
    owner = content
    for parent in parents:
        owner = owner[parent]
    tensors = st.sampled_from(
        [
            torch.zeros(3, 3),
            torch.zeros(()),
            torch.tensor(7, dtype=torch.int32),
            torch.zeros(24, 8, dtype=torch.int64),
            torch.zeros(24, 8, dtype=torch.complex64),
            torch.zeros(24, 8).to_sparse(),
            torch.zeros(1).expand(24, 8),
            torch.empty(24, 8, device="meta"),
            torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
            torch.quantize_per_tensor(torch.zeros(24, 8), 0.1, 0, torch.qint8),
        ]
    )
    if data.draw(st.booleans()):
        del owner[last]
    else:
        owner[last] = data.draw(JSON | tensors)
    torch.save(content, path)
    sae = load_or_none(folder)
    if sae is not None:
        assert_params_of(sae, original)
        if format == "published":
            assert type(content["config"]["k"]) is int and sae.k == content["config"]["k"]


@pytest.mark.parametrize("format, name", FILES)
def test_what_the_system_does_not_let_read_is_not_damage(tmp_path, monkeypatch, format, name):
    folder = write(format, tmp_path / "sae")
    path_open = Path.open

    def refuse(path, *arguments, **options):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return path_open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        formats.load(folder)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    folder = write("openai", tmp_path / "sae")
    state = torch.load(folder / "openai.pt", weights_only=True)
    state["encoder.weight"] = torch.zeros(1).expand(1 << 30, 1 << 20)
    torch.save(state, folder / "openai.pt")
    with pytest.raises(ValueError, match="more than the file holds"):
        formats.load(folder)


def test_an_array_larger_than_its_file_is_refused(tmp_path):
    folder = write("gemma_scope", tmp_path / "sae")
    member = io.BytesIO()
    np.save(member, np.zeros(1, np.float32))
    claims_much = member.getvalue().replace(b"(1,), }" + b" " * 12, b"(1152921504606,), }")
    assert len(claims_much) == len(member.getvalue())
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", claims_much)
    with pytest.raises(ValueError):
        formats.load(folder)
