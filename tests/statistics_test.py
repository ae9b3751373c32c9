import numpy as np
import pytest
from scipy import stats

from sae_jax.statistics import compare_paired, compare_rows, summarize, summarize_rows


def test_summary_hand_computed():
    got = summarize([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (got.mean, got.num_values) == (3.0, 5)
    assert got.sd == pytest.approx(2.5**0.5)
    # t(0.975, 4 degrees of freedom) = 2.776 in any table; standard error sqrt(2.5 / 5).
    assert got.half_width == pytest.approx(2.776 * 0.5**0.5, abs=1e-3)
    assert (got.low + got.high) / 2 == pytest.approx(3.0)


def test_interval_covers_the_mean_95_percent_of_the_time():
    rng = np.random.default_rng(0)
    draws = rng.normal(7.0, 2.0, size=(2000, 5))
    summaries = [summarize(row) for row in draws]
    coverage = np.mean([s.low <= 7.0 <= s.high for s in summaries])
    assert coverage == pytest.approx(0.95, abs=0.015)


def test_one_value_has_no_interval():
    got = summarize([4.0])
    assert got.mean == 4.0
    assert np.isnan([got.sd, got.low, got.high]).all()
    with pytest.raises(ValueError, match="one or more values"):
        summarize([])


def test_paired_comparison_matches_scipy_and_beats_the_unpaired_test():
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 5, 8)  # what common random numbers cancel
    a, b = shared + rng.normal(0, 0.1, 8), shared + 0.5 + rng.normal(0, 0.1, 8)
    got = compare_paired(a, b)
    expected = stats.ttest_rel(b, a)
    assert got.p_value == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (got.difference.low, got.difference.high) == pytest.approx((interval.low, interval.high))
    assert got.p_value < 0.001 < 0.5 < stats.ttest_ind(a, b).pvalue


def test_equal_differences():
    assert compare_paired([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
    assert compare_paired([1.0, 2.0], [3.0, 4.0]).p_value == 0.0
    assert np.isnan(compare_paired([1.0], [3.0]).p_value)
    with pytest.raises(ValueError, match="equally many"):
        compare_paired([1.0], [1.0, 2.0])


def rows():
    return [
        {"d_sae": d, "k": 50, "seed": seed, "fvu": value}
        for d, seed, value in [(250, 0, 0.4), (512, 1, 0.3), (250, 1, 0.5), (512, 0, 0.1)]
    ]


def test_rows_are_grouped_and_paired_by_seed():
    small, large = summarize_rows(rows(), ["fvu"])
    assert (small["d_sae"], small["k"], small["fvu"].mean) == (250, 50, pytest.approx(0.45))
    assert (large["d_sae"], large["fvu"].mean) == (512, pytest.approx(0.2))
    got = compare_rows(rows(), "fvu", {"d_sae": 250}, {"d_sae": 512})
    # Seed 0: 0.1 - 0.4; seed 1: 0.3 - 0.5.
    assert got.difference == summarize([0.1 - 0.4, 0.3 - 0.5])


def test_rows_that_do_not_pair_are_named():
    with pytest.raises(ValueError, match=r"seeds do not pair: \[0, 1\] and \[0\]"):
        compare_rows(
            [row for row in rows() if (row["d_sae"], row["seed"]) != (512, 1)],
            "fvu",
            {"d_sae": 250},
            {"d_sae": 512},
        )
    with pytest.raises(ValueError, match=r"'k': 50} matches 4 rows of 2 seeds"):
        compare_rows(rows(), "fvu", {"k": 50}, {"d_sae": 512})
    with pytest.raises(ValueError, match="matches 0 rows"):
        compare_rows(rows(), "fvu", {"d_sae": 250}, {"d_sae": 1})
