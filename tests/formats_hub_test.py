import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects
from random_saes import random_jumprelu, random_saes, random_topk, samples

from sae_jax import formats
from sae_jax.formats import hub

ABOUT = {
    "config": {"d_sae": 24, "k": 5, "learning_rate": 1e-3},
    "metrics": {"explained_variance": 0.84375, "dead_fraction": 0.25},
    "data": "Layer 14, position 3 of 7,473 problems | split by problem.",
}


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder in place of the Hub, which takes what is uploaded to it."""
    root = tmp_path / "remote"
    calls = SimpleNamespace(root=root, created=[], uploads=[])

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        calls.created.append((repo_id, private))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        for file in sorted(Path(folder_path).rglob("*")):
            if file.is_file():
                target = root / file.relative_to(folder_path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
                calls.uploads.append(str(file.relative_to(folder_path)))
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    return calls


@pytest.mark.parametrize(
    "sae",
    [
        random_topk(1),
        random_topk(2, rule="relu", center_input=True),
        random_topk(3, normalize_input=True),
        random_jumprelu(4),
    ],
    ids=["published", "centered", "normalized", "jumprelu"],
)
def test_what_is_pushed_comes_back(remote, sae):
    url = hub.push_to_hub(sae, "someone/tiny-sae", private=True, **ABOUT)
    assert url == "https://huggingface.co/someone/tiny-sae/commit/1"
    assert remote.created == [("someone/tiny-sae", True)]
    assert remote.uploads == ["README.md", "sae/cfg.json", "sae/sae_weights.safetensors"]

    loaded = hub.from_pretrained(remote.root)
    x = samples()
    np.testing.assert_array_equal(loaded.encode(x), sae.encode(x))
    np.testing.assert_array_equal(loaded(x), sae(x))
    assert formats.load_metadata(remote.root / "sae") == ABOUT


def test_card_tells_config_metrics_data_and_how_to_load(remote):
    hub.push_to_hub(random_topk(1), "someone/tiny-sae", folder="layers/14", license="mit", **ABOUT)
    _, header, body = (remote.root / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["library_name"] == "sae_jax"
    assert header["license"] == "mit"
    assert "saelens" in header["tags"]
    assert "# tiny-sae" in body
    for row in ("| k | 5 |", "| learning_rate | 0.001 |", "| explained_variance | 0.8438 |"):
        assert row in body
    assert ABOUT["data"] in body
    assert 'hub.from_pretrained("someone/tiny-sae", folder="layers/14")' in body
    assert 'SAE.from_pretrained("someone/tiny-sae", "layers/14")' in body
    assert "48 non-negative latents" in body  # 24 latents, doubled


@pytest.mark.parametrize(
    "kind, says",
    [
        ("batch_topk", "A BatchTopK sparse autoencoder of 24 latents"),
        ("matryoshka", "A Matryoshka BatchTopK sparse autoencoder of 24 latents"),
        ("jumprelu", "A JumpReLU sparse autoencoder of 24 latents"),
        ("gated", "A gated sparse autoencoder of 24 latents"),
        ("relu", "A ReLU sparse autoencoder of 24 latents"),
    ],
)
@pytest.mark.parametrize("d_out", [8, 5])
def test_every_kind_is_pushed_and_its_card_says_what_it_is(remote, kind, says, d_out):
    sae, x = random_saes(d_out=d_out)[kind], samples()
    hub.push_to_hub(sae, "someone/tiny-sae", **ABOUT)
    loaded = hub.from_pretrained(remote.root)
    np.testing.assert_allclose(loaded.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loaded(x), sae(x), rtol=1e-4, atol=1e-4)
    card = (remote.root / "README.md").read_text()
    if d_out == 5:
        says = says.replace("sparse autoencoder", "transcoder")
        assert "on activations of width 8, which predicts others of width 5, trained" in card
    assert says in card


def test_card_speaks_of_doubling_only_where_there_is_any():
    card = hub.model_card(random_topk(rule="relu"), "someone/tiny-sae", **ABOUT)
    assert "twice" not in card.text


def test_download_asks_for_the_folder_and_the_revision(tmp_path, monkeypatch):
    formats.save(random_topk(5), tmp_path / "layers" / "14", format="native")
    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    sae = hub.from_pretrained("someone/tiny-sae", folder="layers/14", revision="v1")
    assert sae.k == 5
    assert asked["repo_id"] == "someone/tiny-sae"
    assert asked["revision"] == "v1"
    assert "layers/14/*.safetensors" in asked["allow_patterns"]
    patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
    offered = ["cfg.json", "layers/13/cfg.json", "layers/14/cfg.json", "layers/14/a/cfg.json"]
    assert list(filter_repo_objects(offered, **patterns)) == ["layers/14/cfg.json"]


def test_several_saes_in_one_repository(remote):
    for layer in (13, 14):
        hub.push_to_hub(random_topk(layer), "someone/saes", folder=f"layer_{layer}", **ABOUT)
    for layer in (13, 14):
        sae = hub.from_pretrained(remote.root, folder=f"layer_{layer}")
        np.testing.assert_array_equal(sae.params["w_dec"], random_topk(layer).params["w_dec"])


@pytest.mark.parametrize("folder", ["../sae", "a/../../b", "/etc", "a\\..\\b"])
def test_a_folder_cannot_leave_the_repository(remote, folder):
    with pytest.raises(ValueError, match="inside the repository"):
        hub.push_to_hub(random_topk(), "someone/tiny-sae", folder=folder, **ABOUT)
    with pytest.raises(ValueError, match="inside the repository"):
        hub.from_pretrained(remote.root, folder=folder)
    assert remote.created == []


def test_nothing_is_created_for_an_sae_that_cannot_be_written(remote):
    with pytest.raises(ValueError, match="JSON"):
        hub.push_to_hub(random_topk(), "someone/tiny-sae", **(ABOUT | {"config": {"x": object()}}))
    assert remote.created == [] and remote.uploads == []


def test_saelens_config_is_what_saelens_expects(remote):
    hub.push_to_hub(random_topk(), "someone/tiny-sae", **ABOUT)
    config = json.loads((remote.root / "sae" / "cfg.json").read_text())
    assert config["architecture"] == "topk"
    assert config["metadata"]["metrics"] == ABOUT["metrics"]


def test_a_folder_that_is_not_there_names_those_that_are(remote):
    for layer in (13, 14):
        hub.push_to_hub(random_topk(layer), "someone/saes", folder=f"layer_{layer}", **ABOUT)
    with pytest.raises(ValueError, match=r"no file or folder.*\['layer_13', 'layer_14'\]"):
        hub.from_pretrained(remote.root)


def test_importing_hub_and_formats_loads_no_heavy_library():
    heavy = ("torch", "transformers", "pandas", "matplotlib")
    imports = "import sys, sae_jax.formats.hub, sae_jax.formats"
    code = f"{imports}; print(*[name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []
