"""What is written for other tools is what their own classes, and NumPy, read back."""

import csv
import json

import numpy as np
import planted
import pytest

from sae_jax import SAEConfig, SweepResult, TrainConfig, formats
from sae_jax.activations.writer import write_store
from sae_jax.features.logit_lens import Vocabulary
from sae_jax.report.neuronpedia import SKIPPED_NAME, write_neuronpedia
from sae_jax.report.saedashboard import write_saedashboard
from sae_jax.report.tables import write_csv, write_parquet


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return planted.planted(tmp_path_factory.mktemp("store") / "store")


def batches(paths):
    return [json.loads(path.read_text("utf-8")) for path in paths if path.name != SKIPPED_NAME]


def test_neuronpedia_files_are_what_saedashboard_itself_writes(sweep, tmp_path):
    dashboard = pytest.importorskip(
        "sae_dashboard.neuronpedia.neuronpedia_dashboard",
        reason="sae-dashboard is not installed: pip install --no-deps sae-dashboard",
    )
    store, result, _ = sweep
    vocabulary = Vocabulary(
        [f"t{i}" for i in range(20)], np.eye(20, planted.D_IN, dtype=np.float32)
    )
    paths = write_neuronpedia(
        result.members[0],
        store.select(3, 1),
        tmp_path / "out",
        model_id="tiny",
        sae_set="planted",
        vocabulary=vocabulary,
    )
    (batch,) = batches(paths)
    # Its own classes take every field, and have none that is missing; SAEs have no `vector`.
    again = dashboard.NeuronpediaDashboardBatch(**batch).to_dict()
    for feature in again["features"]:
        assert feature.pop("vector", []) == []
    assert again == batch


def test_a_latents_numbers_are_numpys(sweep, tmp_path):
    store, result, latents = sweep
    paths = write_neuronpedia(
        result.members[0], store.select(3, 1), tmp_path / "out", model_id="tiny", sae_set="planted"
    )
    (batch,) = batches(paths)
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("tiny", 3, "planted")
    features = {feature["feature_index"]: feature for feature in batch["features"]}
    z = latents[0]
    fires = (z != 0).any(axis=0)
    assert sorted(features) == np.flatnonzero(fires).tolist()
    skipped = json.loads((tmp_path / "out" / SKIPPED_NAME).read_text())
    assert skipped["skipped_indexes"] == np.flatnonzero(~fires).tolist()
    latent = int(np.flatnonzero(planted.order_of(0) == planted.DIVISION)[0])
    feature, values = features[latent], z[:, latent][z[:, latent] != 0]
    assert feature["frac_nonzero"] == 0.5
    counts, edges = np.histogram(values, 20)
    assert feature["freq_hist_data_bar_heights"] == counts.tolist()
    middles = (edges[:-1] + edges[1:]) / 2
    assert feature["freq_hist_data_bar_values"] == pytest.approx(middles, abs=1e-3)
    assert feature["neuron_alignment_indices"][0] == planted.DIVISION
    assert feature["neuron_alignment_l1"][0] == 1
    assert feature["pos_str"] == []
    strongest = feature["activations"][0]
    assert "".join(strongest["tokens"]) == f"{planted.HOSTILE} [1]"
    assert strongest["values"] == [0] * (len(strongest["tokens"]) - 1) + [10.8]
    assert strongest["qualifying_token_index"] == len(strongest["tokens"]) - 1
    assert (strongest["bin_min"], strongest["bin_contains"]) == (-1, -1)
    median = feature["activations"][10]
    # Ranks 13 to 15 of 30, from the strongest 10.8 down by 0.2.
    assert (median["bin_min"], median["bin_max"]) == pytest.approx((7.8, 8.2))
    assert median["bin_contains"] == pytest.approx(0.1)


def test_tokens_carry_their_own_activations(tmp_path):
    store, samples = planted.token_store(tmp_path / "store")
    val = store.select(3, "all")
    config = SAEConfig(d_sae=8, k=2, layer=3, position="all", architecture="topk")
    member, _ = planted.member(config, samples, planted.order_of(0))
    names = {"model_id": "tiny", "sae_set": "planted"}
    with pytest.raises(ValueError, match="several samples, which are tokens; give their texts"):
        write_neuronpedia(member, val, tmp_path / "out", **names)
    tokens = {problem.id: ["one", " two"] for problem in store.problems}
    wrong = tokens | {"p-3": ["one"]}
    with pytest.raises(ValueError, match="problem p-3 has 2 samples and 1 tokens"):
        write_neuronpedia(member, val, tmp_path / "out", tokens=wrong, **names)
    (batch,) = batches(write_neuronpedia(member, val, tmp_path / "out", tokens=tokens, **names))
    latent = int(np.flatnonzero(planted.order_of(0) == planted.DIVISION)[0])
    feature = next(f for f in batch["features"] if f["feature_index"] == latent)
    assert feature["activations"][0]["tokens"] == ["one", " two"]
    assert feature["activations"][0]["values"] == pytest.approx([5.4, 10.8], abs=1e-3)
    assert feature["activations"][0]["qualifying_token_index"] == 1


def test_saedashboard_gets_a_saelens_sae_and_prompts(sweep, tmp_path):
    store, result, _ = sweep
    member = result.members[0]
    sae, prompts = write_saedashboard(
        member, store.select(3, 1), tmp_path / "out", model_name="tiny"
    )
    x = planted.activations()
    assert np.allclose(formats.load(sae)(x), member.sae()(x), atol=1e-5)
    assert formats.load_metadata(sae)["hook_name"] == "blocks.3.hook_resid_post"
    texts = [json.loads(line)["text"] for line in prompts.read_text("utf-8").splitlines()]
    assert texts == [problem.question for problem in planted.problems()]
    with pytest.raises(ValueError, match="already holds"):
        write_saedashboard(member, store.select(3, 1), tmp_path / "out", model_name="tiny")


def test_thoughts_are_refused_where_the_model_has_none(sweep, tmp_path):
    _, result, _ = sweep
    settings = {"feedback": "soft"}
    store = write_store(
        tmp_path / "store", {(3, 1): planted.activations()}, planted.problems(), settings
    )
    with pytest.raises(ValueError, match="continuous thoughts"):
        write_saedashboard(
            result.members[0], store.select(3, 1), tmp_path / "out", model_name="tiny"
        )


def test_tables_read_back_as_they_were(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    x = planted.activations()
    members = [
        planted.member(SAEConfig(d_sae=8, k=2, layer=3, position=p), x, planted.order_of(0))[0]
        for p in (1, "last")
    ]
    rows = SweepResult(members, TrainConfig()).table()
    write_parquet(rows, tmp_path / "rows.parquet")
    read = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    for row, of_file in zip(rows, read, strict=True):
        assert of_file == row | {"position": str(row["position"])}
    write_csv(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [float(row["fvu"]) for row in csv.DictReader(file)] == [row["fvu"] for row in rows]
    with pytest.raises(ValueError, match="there are no rows"):
        write_parquet([], tmp_path / "none.parquet")
