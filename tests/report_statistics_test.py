from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sae_jax.report.statistics import (
    compare_paired,
    compare_rows,
    summarize,
    summarize_crossed,
    summarize_pairs,
    summarize_ratio,
    summarize_rows,
)


def test_summary_hand_computed():
    got = summarize([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (got.mean, got.num_values) == (3.0, 5)
    # Variance 2.5, standard error sqrt(2.5 / 5); t(0.975, 4 degrees of freedom) is 2.776.
    assert got.half_width == pytest.approx(2.776 * 0.5**0.5, abs=1e-3)


def test_interval_covers_the_mean_95_percent_of_the_time():
    rng = np.random.default_rng(0)
    draws = rng.normal(7.0, 2.0, size=(2000, 5))
    summaries = [summarize(row) for row in draws]
    coverage = np.mean([abs(s.mean - 7.0) <= s.half_width for s in summaries])
    assert coverage == pytest.approx(0.95, abs=0.015)


def test_float32_scores_are_averaged_in_float64():
    # float32 has no 25,000,000.75.
    assert summarize(np.array([1e8, 1, 1, 1], np.float32)).mean == 25_000_000.75


@pytest.mark.filterwarnings("error")
def test_one_value_has_no_interval():
    got = summarize([4.0])
    assert got.mean == 4.0
    assert np.isnan(got.half_width)
    with pytest.raises(ValueError, match="one or more values"):
        summarize([])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("gap", [None, np.nan])
def test_missing_values_leave_the_interval_of_the_others(gap):
    got = summarize([1.0, gap, 2.0, 3.0])
    others = summarize([1.0, 2.0, 3.0])
    assert (got.mean, got.half_width) == (2.0, others.half_width)
    assert (got.num_values, got.num_missing) == (3, 1)
    nothing = summarize([gap, gap])
    assert (nothing.num_values, nothing.num_missing) == (0, 2)
    assert np.isnan([nothing.mean, nothing.half_width]).all()


@pytest.mark.filterwarnings("error")
def test_infinite_values_have_an_infinite_mean_and_no_interval():
    got = summarize([1.0, np.inf])
    assert got.mean == np.inf
    assert np.isnan(got.half_width)


def jackknife(score):
    """Mean over the pairs of a symmetric matrix, and its standard error by definition."""
    n = len(score)
    everything = np.mean([score[i, j] for i, j in combinations(range(n), 2)])
    without = [
        np.mean([score[i, j] for i, j in combinations(set(range(n)) - {left_out}, 2)])
        for left_out in range(n)
    ]
    return everything, ((n - 1) / n * np.sum((without - np.mean(without)) ** 2)) ** 0.5


@given(st.integers(3, 7), st.integers(0, 2**32 - 1))
def test_pairs_of_seeds_have_the_interval_of_a_jackknife(n, seed):
    score = np.random.default_rng(seed).random((n, n))
    score = score + score.T
    means = (score.sum(axis=1) - np.diag(score)) / (n - 1)
    got = summarize_pairs(means)
    mean, error = jackknife(score)
    assert got.mean == pytest.approx(mean)
    assert got.half_width == pytest.approx(stats.t.ppf(0.975, n - 1) * error, abs=1e-9)


@pytest.mark.filterwarnings("error")
def test_one_pair_has_no_interval():
    for values in ([0.3, 0.3], [0.2, 0.4]):
        got = summarize_pairs(values)
        assert (got.mean, got.num_values) == (pytest.approx(0.3), 2)
        assert np.isnan(got.half_width)
    missing = summarize_pairs([0.3, None, 0.5, 0.4])
    assert (missing.num_values, missing.num_missing) == (3, 1)
    assert missing.half_width == summarize_pairs([0.3, 0.5, 0.4]).half_width


def test_pairs_cover_the_mean_where_independent_values_would_not():
    """Scores u_i + u_j of random u have mean 2 E[u]; a ring of pairs is not independent."""
    rng = np.random.default_rng(0)
    summaries = []
    for _ in range(2000):
        u = rng.normal(size=5)
        score = u[:, None] + u[None, :]
        summaries.append(summarize_pairs((score.sum(axis=1) - np.diag(score)) / 4))
    coverage = np.mean([abs(s.mean) <= s.half_width for s in summaries])
    assert 0.93 <= coverage <= 0.975


def test_crossed_summary_hand_computed():
    got = summarize_crossed([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]])
    # Means of seeds 3 and 5: squared error 2 / 2 = 1, 1 degree of freedom. Of problems 2, 3 and
    # 7: variance 7, squared error 7 / 3, 2 degrees of freedom.
    freedom = (1 + 7 / 3) ** 2 / (1 + (7 / 3) ** 2 / 2)
    error = (1 + 7 / 3) ** 0.5
    low, high = stats.t.interval(0.95, freedom, loc=4, scale=error)
    assert got.mean == 4
    assert got.half_width == pytest.approx((high - low) / 2)
    assert got.p_value == pytest.approx(2 * stats.t.cdf(-4 / error, freedom))


def test_values_that_seeds_share_have_the_interval_of_problems_alone():
    problems = np.random.default_rng(0).normal(1, 2, size=30)
    got, of_problems = summarize_crossed([problems] * 3), summarize(problems)
    assert got.mean == pytest.approx(of_problems.mean)
    assert got.half_width == pytest.approx(of_problems.half_width)
    assert got.p_value == pytest.approx(stats.ttest_1samp(problems, 0).pvalue)


@pytest.mark.parametrize(("of_seeds", "of_problems"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.0)])
def test_crossed_intervals_cover_the_mean_of_other_seeds_and_problems(of_seeds, of_problems):
    rng = np.random.default_rng(0)
    covered, rejected = [], []
    for _ in range(1000):
        values = (
            of_seeds * rng.normal(size=(5, 1))
            + of_problems * rng.normal(size=(1, 40))
            + rng.normal(size=(5, 40))
        )
        got = summarize_crossed(values)
        covered.append(abs(got.mean) <= got.half_width)
        rejected.append(got.p_value <= 0.05)
    # Hardly too narrow, and the test rejects where the interval leaves out zero.
    assert 0.92 <= np.mean(covered) <= 0.99
    assert np.mean(rejected) == pytest.approx(1 - np.mean(covered))


@pytest.mark.filterwarnings("error")
def test_too_few_seeds_or_problems_have_no_crossed_interval():
    for values in ([[1.0, 2.0]], [[1.0], [2.0]]):
        got = summarize_crossed(values)
        assert got.mean == 1.5 and np.isnan([got.half_width, got.p_value]).all()
    assert summarize_crossed(np.zeros((2, 3))) == (0, 0, 1)
    assert summarize_crossed(np.ones((2, 3))) == (1, 0, 0)
    with pytest.raises(ValueError, match=r"found shape \(3,\)"):
        summarize_crossed([1.0, 2.0, 3.0])


def test_a_ratio_of_problems_that_weigh_the_same_is_a_mean():
    values = np.random.default_rng(0).normal(1, 2, size=30)
    got, mean = summarize_ratio(values, np.full(30, 4.0)), summarize(values / 4)
    assert got.mean == pytest.approx(mean.mean)
    assert got.half_width == pytest.approx(mean.half_width)


def test_a_ratio_has_the_interval_of_a_bootstrap():
    rng = np.random.default_rng(0)
    below = rng.normal(2, 1, size=200)
    above = 0.5 * below + rng.normal(0, 1, size=200)
    got = summarize_ratio(above, below)
    assert got.mean == pytest.approx(above.sum() / below.sum())
    drawn = rng.integers(200, size=(4000, 200))
    ratios = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    assert got.half_width == pytest.approx(1.97 * ratios.std(), rel=0.06)


@pytest.mark.filterwarnings("error")
def test_ratios_without_a_value_or_an_interval():
    assert np.isnan(summarize_ratio([1.0, -1.0], [0.0, 0.0]).mean)
    one = summarize_ratio([1.0], [2.0])
    assert one.mean == 0.5 and np.isnan(one.half_width)
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        summarize_ratio([1.0, 2.0], [1.0, 2.0, 3.0])


def test_paired_differences_match_scipy_and_vary_less_than_unpaired_ones():
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 5, 8)  # what common random numbers cancel
    a, b = shared + rng.normal(0, 0.1, 8), shared + 0.5 + rng.normal(0, 0.1, 8)
    got = compare_paired(a, b)
    interval = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert got.mean - got.half_width == pytest.approx(interval.low)
    assert got.mean + got.half_width == pytest.approx(interval.high)
    unpaired = stats.ttest_ind(b, a).confidence_interval(0.95)
    assert unpaired.low < 0 < interval.low


@pytest.mark.filterwarnings("error")
def test_equal_differences():
    equal, single = compare_paired([1.0, 2.0], [3.0, 4.0]), compare_paired([1.0], [3.0])
    assert (equal.mean, equal.half_width) == (2.0, 0.0)
    assert single.mean == 2.0
    assert np.isnan(single.half_width)
    infinite = compare_paired([np.inf, 1.0], [np.inf, 3.0])
    assert (infinite.mean, infinite.num_values, infinite.num_missing) == (2.0, 1, 1)
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
    # Of a score that is no mean over pairs, two seeds have an interval.
    assert small["fvu"] == summarize([0.4, 0.5])
    assert summarize_rows(rows()[:1], ["fvu"])[0]["fvu"].mean == 0.4
    got = compare_rows(rows(), "fvu", {"d_sae": 250}, {"d_sae": 512})
    # Seed 0: 0.1 - 0.4; seed 1: 0.3 - 0.5.
    assert got == summarize([0.1 - 0.4, 0.3 - 0.5])


def test_only_seeds_are_pooled():
    """A learning rate, a layer or a position more is another setting, not another seed."""
    for field, values in (("layer", (3, 4)), ("learning_rate", (1e-3, 1e-2)), ("position", (0, 1))):
        table = [row | {field: value, "fvu": 10 * value} for value in values for row in rows()]
        got = summarize_rows(table, ["fvu"])
        assert [(row["d_sae"], row[field], row["fvu"].mean) for row in got] == [
            (d_sae, value, 10 * value) for value in values for d_sae in (250, 512)
        ]
        assert all(row["fvu"].half_width == 0 for row in got)
        message = f"{{'d_sae': 250}} matches 4 rows of several settings, which differ in {field}"
        with pytest.raises(ValueError, match=message):
            compare_rows(table, "fvu", {"d_sae": 250}, {"d_sae": 512})


def test_a_data_seed_repeats_a_setting():
    table = [row | {"data_seed": row["seed"] + 7} for row in rows()]
    assert [row["fvu"].num_values for row in summarize_rows(table, ["fvu"])] == [2, 2]


@pytest.mark.parametrize("column", ["feature_stability", "feature_stability_matched"])
def test_stability_is_summarized_by_pairs(column):
    table = [
        {"d_sae": 8, "k": 2, "seed": seed, column: value}
        for seed, value in enumerate([0.2, 0.3, 0.7])
    ]
    got = summarize_rows(table, [column])[0][column]
    assert got == summarize_pairs([0.2, 0.3, 0.7])


def test_pairs_with_a_gap_are_missing():
    got = compare_paired([1.0, None, 2.0, 3.0], [2.0, 5.0, np.nan, 5.0])
    assert got == summarize([1.0, None, None, 2.0])


def test_rows_that_do_not_pair_are_named():
    with pytest.raises(ValueError, match=r"seeds do not pair: \[0, 1\] and \[0\]"):
        compare_rows(
            [row for row in rows() if (row["d_sae"], row["seed"]) != (512, 1)],
            "fvu",
            {"d_sae": 250},
            {"d_sae": 512},
        )
    with pytest.raises(ValueError, match=r"'k': 50} matches 4 rows of several .* differ in d_sae;"):
        compare_rows(rows(), "fvu", {"k": 50}, {"d_sae": 512})
    two_k = rows() + [row | {"k": 8} for row in rows()]
    with pytest.raises(ValueError, match=r"'seed': 0} matches 4 rows of .* differ in d_sae, k;"):
        compare_rows(two_k, "fvu", {"seed": 0}, {"d_sae": 512})
    with pytest.raises(ValueError, match=r"'d_sae': 250} matches 4 rows of 2 seeds"):
        compare_rows(rows() + rows(), "fvu", {"d_sae": 250}, {"d_sae": 512})
    with pytest.raises(ValueError, match="matches 0 rows"):
        compare_rows(rows(), "fvu", {"d_sae": 250}, {"d_sae": 1})
