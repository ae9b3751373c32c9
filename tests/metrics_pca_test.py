import numpy as np
import pytest

from sae_jax.metrics.pca import pca_fvu


def test_by_hand():
    # Most of the variance lies along the first axis, then along the second.
    train = np.array([[2, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0]], np.float32)
    val = train[:, [1, 0, 2]]  # Of these, along the second: 8 of 10.
    found = pca_fvu(train, val, [1, 2])
    assert found == pytest.approx({1: 0.8, 2: 0.0}, abs=1e-12)


def test_a_shifted_mean_is_missed():
    train = np.array([[1, 0], [-1, 0]], np.float32)
    val = train + np.array([0, 3], np.float32)
    # 9 for each of 2 samples, beside a variance of 1 for each.
    assert pca_fvu(train, val, [1])[1] == pytest.approx(9.0)


def test_against_the_singular_values():
    x = np.random.default_rng(0).normal(size=(50, 8)) * np.arange(1, 9)
    squares = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    for rank, fvu in pca_fvu(x, x, [1, 3, 8]).items():
        assert fvu == pytest.approx(squares[rank:].sum() / squares.sum(), abs=1e-12)


@pytest.mark.parametrize("rank", [0, 9])
def test_ranks_beyond_the_data_are_named(rank):
    x = np.random.default_rng(0).normal(size=(50, 8))
    with pytest.raises(ValueError, match=rf"ranks \[{rank}\] are not within 1 to 8"):
        pca_fvu(x, x, [rank])
