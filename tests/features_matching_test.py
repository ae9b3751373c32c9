"""Matches, examples, ablations and tokens are what plain NumPy finds."""

import numpy as np
import pytest
from scipy import sparse

import sae_jax
from sae_jax.features.ablation import fvu_without
from sae_jax.features.examples import examples, histograms
from sae_jax.features.logit_lens import Vocabulary, logit_lens
from sae_jax.features.matching import (
    Matches,
    best_cosine_by_chance,
    best_matches,
    nearest_latents,
    shared_labels,
)


def cosines(a, b):
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_match_has_the_largest_absolute_cosine_among_those_that_fire(rng, monkeypatch):
    # By blocks of a few rows, as of many latents.
    monkeypatch.setattr("sae_jax.features.matching._BLOCK", 3)
    a, b = rng.normal(size=(10, 6)), rng.normal(size=(8, 6))
    alive_a, alive_b = rng.random(10) < 0.8, rng.random(8) < 0.6
    found = best_matches(a, b, alive_a, alive_b)
    expected = np.where(alive_b, cosines(a, b), 0)
    for f in range(10):
        if not alive_a[f]:
            assert found.latent[f] == -1
            assert np.isnan(found.cosine[f])
            continue
        assert found.latent[f] == np.abs(expected[f]).argmax()
        assert found.cosine[f] == pytest.approx(expected[f, found.latent[f]], abs=1e-6)
    assert (found.cosine < 0).any()


def test_no_match_where_nothing_fires_and_a_refusal_of_other_widths(rng):
    a = rng.normal(size=(3, 4))
    found = best_matches(a, a, np.ones(3, bool), np.zeros(3, bool))
    assert found.latent.tolist() == [-1] * 3
    with pytest.raises(ValueError, match="different widths: 4 and 5"):
        best_matches(a, rng.normal(size=(3, 5)), np.ones(3, bool), np.ones(3, bool))


def test_neighbors_leave_out_the_latent_itself(rng, monkeypatch):
    monkeypatch.setattr("sae_jax.features.matching._BLOCK", 4)
    a, alive = rng.normal(size=(9, 5)), np.arange(9) != 3
    latents, found = nearest_latents(a, alive, 3)
    table = np.abs(cosines(a, a))
    np.fill_diagonal(table, -1)
    table[:, ~alive] = -1
    for f in np.flatnonzero(alive):
        assert latents[f].tolist() == np.argsort(-table[f])[:3].tolist()
        assert np.abs(found[f]) == pytest.approx(np.sort(table[f])[::-1][:3], abs=1e-6)
    assert latents[3].tolist() == [-1] * 3
    few, _ = nearest_latents(a[:2], np.ones(2, bool), 3)
    assert few.tolist() == [[1, -1, -1], [0, -1, -1]]


def test_chance_is_what_random_directions_have(rng):
    assert best_cosine_by_chance(5, 1) == pytest.approx(1)
    assert np.isnan(best_cosine_by_chance(0, 8))
    # One of two dimensions: |cos| of a uniform angle is 2 / pi on average.
    assert best_cosine_by_chance(1, 2, seed=3) == pytest.approx(2 / np.pi, abs=0.05)
    drawn = [
        np.abs(cosines(rng.normal(size=(1, 32)), rng.normal(size=(50, 32)))).max()
        for _ in range(400)
    ]
    assert best_cosine_by_chance(50, 32) == pytest.approx(np.mean(drawn), abs=0.02)


def test_a_label_is_shared_if_the_match_has_it_too():
    labels = [np.array([[1, 0], [1, 1], [0, 1]], bool), np.array([[1, 0], [0, 1]], bool)]
    nan = np.full(3, np.nan)
    matches = [[None, Matches(np.array([0, 0, -1]), nan)], [Matches(np.array([1, 2]), nan), None]]
    a, b = shared_labels(labels, matches)
    assert a.tolist() == [[1, 0], [1, 0], [0, 0]]
    assert b.tolist() == [[1, 0], [0, 1]]


def test_examples_take_each_problem_once_and_ties_by_sample():
    z = np.zeros((40, 3))
    z[:, 0] = np.repeat(np.arange(20, 0, -1), 2)
    z[5, 1] = -2
    found = examples(sparse.csc_array(z), np.arange(40) // 2)
    # 20 problems: the 10 strongest, then those around ranks 10 (the median) and 14 (a quarter);
    # ranks 4 to 6 and 9 are there already.
    assert found.start.tolist() == [0, 15, 16, 16]
    ranks = [*range(10), 10, 11, 13, 14, 15]
    assert found.sample[:15].tolist() == [2 * rank for rank in ranks]
    assert found.quantile[:15].tolist() == [1] * 10 + [0.5] * 2 + [0.25] * 3
    assert (found.sample[15], found.activation[15]) == (5, -2)


def test_histograms_are_numpys(rng):
    z = rng.normal(size=(300, 4)) * (rng.random((300, 4)) < 0.3)
    z[:, 2] = 0
    z[:, 3] = np.where(np.arange(300) < 7, 1.5, 0)
    matrix = sparse.csc_array(z)
    matrix.eliminate_zeros()
    low, high, counts = histograms(matrix)
    for f in (0, 1):
        values = z[:, f][z[:, f] != 0]
        assert counts[f].tolist() == np.histogram(values, 20)[0].tolist()
        assert (low[f], high[f]) == (values.min(), values.max())
    assert np.isnan(low[2])
    assert counts[2].sum() == 0
    assert counts[3].tolist() == [7] + [0] * 19


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
def test_the_rise_of_fvu_is_that_of_decoding_without_the_latent(rng, normalize):
    x = rng.normal(size=(60, 6)).astype(np.float32) + 1
    result = sae_jax.train_sweep(
        [sae_jax.SAEConfig(9, 3, normalize=normalize)],
        x,
        x,
        sae_jax.TrainConfig(epochs=2, batch_size=20),
        progress=False,
    )
    sae, mse = result.sae(0), result.members[0].metrics["mse"]
    z = np.asarray(sae.encode(x))
    found = fvu_without(sae, sparse.csc_array(z), x, mse)
    variance = ((x - x.mean(axis=0)) ** 2).sum()
    for f in range(9):
        without = z.copy()
        without[:, f] = 0
        error = [((x - np.asarray(sae.decode(latents, x))) ** 2).sum() for latents in (z, without)]
        assert found[f] == pytest.approx((error[1] - error[0]) / variance, abs=1e-5)
    # A transcoder's recorded error is of its targets.
    assert np.isnan(fvu_without(sae, sparse.csc_array(z), x, 2 * mse)).all()


def test_tokens_are_those_of_the_largest_products(rng, monkeypatch):
    monkeypatch.setattr("sae_jax.features.logit_lens._BLOCK", 2)
    w_dec, rows = rng.normal(size=(5, 4)), rng.normal(size=(30, 4))
    lens = logit_lens(w_dec, Vocabulary([str(i) for i in range(30)], rows))
    logits = w_dec @ rows.T
    order = np.argsort(logits, axis=1)
    assert np.array_equal(lens.raised, order[:, ::-1][:, :8])
    assert np.array_equal(lens.lowered, order[:, :8])
    assert lens.lowered_by == pytest.approx(np.sort(logits, axis=1)[:, :8])
    few = logit_lens(w_dec, Vocabulary(["a", "b"], rows[:2]))
    assert few.raised.shape == (5, 2)
