"""The study's document says what its tables say, and its verdicts are those of the tests."""

import csv
from pathlib import Path

import numpy as np
import pytest
from paper.comparisons import Comparison, outcomes
from paper.correlation import rank_correlation
from paper.document import DOCUMENT, RESULTS, rendered
from paper.tables import Tables
from paper.verdicts import Verdicts
from scipy import stats

A = [0.10, 0.12, 0.09, 0.11, 0.13]
B = [0.20, 0.25, 0.18, 0.22, 0.21]
C = [0.11, 0.11, 0.10, 0.12, 0.12]


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    with (tmp_path / "made.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", "rate", "feature_stability", "note"])
        for arm, values in (("a", A), ("b", B), ("c", C)):
            for seed, value in enumerate(values):
                writer.writerow([arm, seed, value, value, ""])
    return Tables(tmp_path)


def test_numbers_are_those_of_the_file(tables):
    # Mean 0.11, deviation 0.0158, t(0.975, 4) = 2.776: half width 0.0196.
    assert tables.percent("made", "rate", arm="a") == "11.0 ± 2.0 %"
    assert tables.number("made", "rate", 2, arm="a") == "0.11 ± 0.02"
    assert tables.value("made", "rate", 2, arm="b", seed=1) == "0.25"
    assert tables["made"][0]["note"] is None


def test_other_rows_than_those_of_one_setting_are_refused(tables):
    with pytest.raises(ValueError, match="made has no rows with {'arm': 'd'}"):
        tables.percent("made", "rate", arm="d")
    with pytest.raises(ValueError, match="several rows of one seed"):
        tables.percent("made", "rate")
    with pytest.raises(ValueError, match="made has 5 rows with {'arm': 'a'}; expected one"):
        tables.value("made", "rate", arm="a")


def compared(*names: str, column: str = "rate") -> list[Comparison]:
    return [Comparison(b, "made", column, {"arm": "a"}, {"arm": b}) for b in names]


def test_comparisons_are_scipys_paired_test_adjusted_together(tables):
    found = outcomes(tables, compared("b", "c"))
    p = [stats.ttest_rel(A, B).pvalue, stats.ttest_rel(A, C).pvalue]
    # Benjamini and Yekutieli over two: p times 2 / rank times (1 + 1/2), from the largest down.
    largest = 1.5 * max(p)
    expected = {"b": min(2 * 1.5 * min(p), largest), "c": min(largest, 1)}
    assert p[0] < p[1]
    for name, q in expected.items():
        assert found[name].q == pytest.approx(q)
    assert found["b"].difference.mean == pytest.approx(np.mean(B) - np.mean(A))
    assert found["b"].significant
    assert not found["c"].significant


def test_no_difference_is_not_significant(tables):
    assert outcomes(tables, compared("a"))["a"].q == 1


def test_pairs_of_seeds_have_the_jackknifes_error(tables):
    # Leaving out a seed with all its pairs moves the mean over pairs more than the t test thinks.
    of_pairs = outcomes(tables, compared("b", column="feature_stability"))["b"]
    of_seeds = outcomes(tables, compared("b"))["b"]
    assert of_pairs.difference.half_width > 1.2 * of_seeds.difference.half_width
    assert of_pairs.q > of_seeds.q


def test_seeds_that_do_not_pair_are_refused(tables):
    one = Comparison("x", "made", "rate", {"arm": "a"}, {"arm": "b", "seed": 1.0})
    with pytest.raises(ValueError, match="x: seeds do not pair"):
        outcomes(tables, [one])


def test_the_rank_correlations_interval_is_wider_where_groups_are_alike():
    rng = np.random.default_rng(0)
    of_group = rng.normal(size=(2, 12))
    # Six slices a group that say the same: as many points, no more evidence.
    x, y = np.repeat(of_group[0], 6), np.repeat(of_group[0] + of_group[1], 6)
    groups = np.repeat(np.arange(12), 6)
    rho, low, high = rank_correlation(x, y, groups)
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
    _, low_alone, high_alone = rank_correlation(x, y, np.arange(72))
    assert low < rho < high
    assert high - low > 1.5 * (high_alone - low_alone)


def test_slices_of_the_map_are_counted(tmp_path):
    dead = {
        # By slice and arm, at K = 10 and 20 of d = 512.
        (5, "none"): (0.5, 0.2),
        (5, "center"): (0.3, 0.004),
        (9, "none"): (0.4, 0.009),
        (9, "center"): (0.0, 0.02),
    }
    with (tmp_path / "map.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "position", "k", "d_sae", "normalize", "dead_fraction"])
        for (layer, arm), shares in dead.items():
            writer.writerows(
                [layer, 0, k, 512, arm, s] for k, s in zip((10, 20), shares, strict=True)
            )
    tables = Tables(tmp_path)
    verdicts = Verdicts(tables, {})
    assert verdicts.critical_ks("none") == "K = 20 on 1, none tested on 1"
    assert verdicts.critical_ks("center") == "K = 10 on 1, K = 20 on 1"
    assert verdicts.pairs("map", "dead_fraction") == (3, 4)
    assert tables.count("map", "dead_fraction", 0.02, normalize="center") == 3


def test_the_document_says_what_its_tables_say():
    assert DOCUMENT.read_text(encoding="utf-8") == rendered(Tables(RESULTS))


def test_every_figure_of_the_document_is_there():
    text = DOCUMENT.read_text(encoding="utf-8")
    figures = [part.split(")")[0] for part in text.split("](")[1:] if ".png" in part.split(")")[0]]
    assert len(figures) >= 3
    for path in figures:
        assert (DOCUMENT.parent / path).read_bytes().startswith(b"\x89PNG")


def test_the_headline_is_what_another_implementation_measured():
    # Three seeds each, measured with another implementation: dead 43 and 0.1 %, fvu 0.207, 0.148.
    tables = Tables(RESULTS)
    for arm, dead, fvu in (("none", 0.43, 0.207), ("center", 0.001, 0.148)):
        of = {"normalize": arm, "k": 50, "d_sae": 512}
        for column, expected, rounding in (("dead_fraction", dead, 5e-3), ("fvu", fvu, 5e-4)):
            found = tables.summary("grid", column, **of)
            assert abs(found.mean - expected) <= found.half_width + rounding


def test_the_readme_quotes_the_tables():
    tables = Tables(RESULTS)
    readme = (DOCUMENT.parents[1] / "README.md").read_text(encoding="utf-8")
    of = {"k": 50, "d_sae": 512}
    for arm, column in (
        ("none", "dead_fraction"),
        ("center", "dead_fraction"),
        ("none", "published_rate"),
        ("none", "published_null"),
    ):
        assert tables.percent("grid", column, normalize=arm, **of) in readme
