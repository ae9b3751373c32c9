import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from sae_jax.features.probing import cross_validated_auc, sparse_probing


@pytest.fixture(scope="module")
def planted():
    """Latent 7 fires on most samples with property 0; property 1 is the sum of 1, 2 and 3."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 30)) * (rng.random((400, 30)) < 0.3)
    first = rng.random(400) < 0.4
    z[:, 7] = first * (rng.random(400) < 0.8) * rng.uniform(1, 2, 400)
    second = z[:, 1] + z[:, 2] + z[:, 3] + 0.1 * rng.normal(size=400) > 0
    rotation = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    return z, z @ rotation + 5.0, np.stack([first, second], axis=1)


def test_probing_finds_planted_latents(planted):
    z, x, properties = planted
    rows = sparse_probing(z, x, properties, ["first", "second"])
    assert [(row["property"], row["num_features"]) for row in rows] == [
        ("first", 1),
        ("first", 5),
        ("second", 1),
        ("second", 5),
    ]
    single, _, alone, several = rows
    assert single["latents"] == [7]
    # The area of a latent that fires on 80 % of the positives and no negative is about
    # 0.9; folds only average it.
    expected = roc_auc_score(properties[:, 0], z[:, 7])
    assert single["auc_latents"] == pytest.approx(expected, abs=0.02)
    assert set(several["latents"]) >= {1, 2, 3}
    best = roc_auc_score(properties[:, 1], z[:, 1] + z[:, 2] + z[:, 3])
    assert several["auc_latents"] == pytest.approx(best, abs=0.02)
    assert alone["auc_latents"] < best - 0.1
    for row in rows:
        assert row["auc_permuted"] == pytest.approx(0.5, abs=0.1)
        assert row["auc_activations"] < row["auc_latents"]  # the rotation spreads it


def test_selection_does_not_see_the_held_out_fold():
    """Of 2,000 features of noise some fit 60 labels well; held out, they are chance."""
    rng = np.random.default_rng(1)
    areas = [
        cross_validated_auc(rng.normal(size=(60, 2000)), rng.random(60) < 0.5, seed=seed)[1]
        for seed in range(6)
    ]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.1)


def test_sparse_latents_are_probed_without_filling_them(planted):
    z, _, properties = planted
    dense = cross_validated_auc(z, properties[:, 0])
    got = cross_validated_auc(sparse.csr_array(z), properties[:, 0])
    np.testing.assert_allclose(got, dense, atol=0.02)


def test_latents_that_the_selection_drops_are_not_reported():
    """Latents 0 to 7 never fire; only latent 8 tells the labels apart."""
    rng = np.random.default_rng(2)
    labels = rng.random(200) < 0.5
    z = np.zeros((200, 9))
    z[:, 8] = np.where(labels, 1.0, -1.0)
    _, row = sparse_probing(z, z, labels[:, None], ["property"])
    assert row["latents"] == [8]
    assert row["auc_latents"] == 1.0


def test_a_probe_without_features_is_chance():
    labels = np.arange(60) < 30
    for row in sparse_probing(np.zeros((60, 4)), np.ones((60, 2)), labels[:, None], ["property"]):
        assert row["latents"] == []
        assert (row["auc_latents"], row["auc_activations"], row["auc_permuted"]) == (0.5, 0.5, 0.5)


def test_rare_properties_are_nan(planted):
    z, x, _ = planted
    labels = np.zeros((400, 2), bool)
    labels[:4, 0] = True
    rows = sparse_probing(z, x, labels, ["in four", "in none"])
    assert all(np.isnan(row["auc_latents"]) for row in rows)
    assert [row["latents"] for row in rows if row["property"] == "in none"] == [[], []]
