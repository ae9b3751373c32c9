import json
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse, stats

from sae_jax.features import specialization
from sae_jax.features.firing import Firing
from sae_jax.features.interventions import swap_pairs
from sae_jax.features.permutation import calibrated_null_rates, published_null_rates
from sae_jax.features.specialization import (
    calibrated_specialization,
    classify_published,
    count_hits,
    published_marks,
    published_scores,
    published_specialized,
)

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="needs ../shared: recorded features and GSM8K problems"
)
RECORDED = ("d250_k50_ranks100-207", "d512_k50_ranks200-348", "d512_k100_ranks400-512")


def recorded(name):
    return json.loads((SHARED / f"data/recorded_features/{name}.json").read_text())


def validation_texts():
    """Steps of the 1,495 validation problems of GSM8K, split as published."""
    texts = []
    for line in (SHARED / "data/gsm8k/train.jsonl").read_text().splitlines():
        parts = json.loads(line)["answer"].split("<<")[1:]
        texts.append(" | ".join(part.split(">>")[0] for part in parts))
    rows = np.random.RandomState(42).permutation(len(texts))[:1495]
    return [texts[row] for row in rows]


@needs_shared
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_latents_get_their_recorded_labels(name):
    record = recorded(name)
    assert len(record["features"]) == record["num_analyzed"]
    for feature in record["features"]:
        label = classify_published(feature["scores"])
        assert label == (feature["type"], feature["description"]), feature["feature_id"]
    num_specialized = sum(f["type"] != "general" for f in record["features"])
    assert num_specialized == record["num_specialized"]


@needs_shared
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_swap_pairs_are_reproduced(name):
    record = recorded(name)
    assert swap_pairs(record["features"]) == record["swap_pairs"]


@needs_shared
def test_published_rule_calls_nearly_every_single_problem_specialized():
    """Why its rate counts latents that fire once: 97 % of lone problems pass."""
    texts = validation_texts()
    rate = np.mean([classify_published(published_scores([text]))[0] != "general" for text in texts])
    assert 0.96 < rate < 0.98
    rng = np.random.default_rng(0)

    def rate_of(num_texts, repeats):
        rows = rng.integers(len(texts), size=(repeats, num_texts))
        counts = published_marks(texts)[rows].sum(axis=1)
        return published_specialized(counts, np.full(repeats, num_texts)).mean()

    assert rate_of(2, 5000) == pytest.approx(0.12, abs=0.02)
    assert rate_of(20, 20000) < 0.002


def test_published_scores_hand_computed():
    texts = ["12+3=15 | 15*2=30", "The SUM is 3120", "5 - 200", "Divide by 4 × 2"]
    assert published_scores(texts) == {
        "operations": {
            "addition": 50.0,
            "subtraction": 25.0,
            "multiplication": 50.0,
            "division": 25.0,
        },
        "values": {"12": 2, "20": 2, "30": 1, "50": 0, "100": 0},
        "total_samples": 4,
    }


@pytest.mark.parametrize(
    ("mark", "operation"),
    [("+", 0), ("sum", 0), ("-", 1), ("difference", 1)]
    + [("*", 2), ("multiply", 2), ("×", 2), ("/", 3), ("divide", 3), ("÷", 3)],
)
def test_an_operation_is_marked_by_its_sign_or_word(mark, operation):
    for text in (f"a{mark}b", f"A{mark.upper()}B"):
        assert np.flatnonzero(published_marks([text])).tolist() == [operation]
    nothing = published_marks([])
    assert (nothing.shape, nothing.dtype) == ((0, 9), bool)


def test_each_latent_is_held_to_its_own_maximum():
    counts = np.array([[8, 2, 0, 0], [15, 0, 0, 0], [6, 0, 0, 0], [0, 0, 0, 0]])
    got = published_specialized(np.pad(counts, ((0, 0), (0, 5))), np.array([10, 20, 10, 10]))
    assert got.tolist() == [True, True, False, False]


def test_bounds_are_strict():
    def label(operations, values, total):
        names = ("addition", "subtraction", "multiplication", "division")
        return classify_published(
            {
                "operations": dict(zip(names, operations, strict=True)),
                "values": dict(zip(("12", "20", "30", "50", "100"), values, strict=True)),
                "total_samples": total,
            }
        )

    assert label((70.0, 0, 0, 0), (0,) * 5, 10) == ("general", "mixed patterns")
    assert label((71.0, 30.0, 0, 0), (0,) * 5, 10) == ("general", "mixed patterns")
    assert label((71.0, 29.9, 0, 0), (0,) * 5, 10) == ("operation-specialized", "addition")
    assert label((40.0, 40.0, 0, 0), (6, 2, 0, 0, 0), 10) == ("general", "mixed patterns")
    assert label((40.0, 40.0, 0, 0), (1, 6, 0, 0, 0), 10) == ("value-specialized", "number 20")
    assert label((40.0, 40.0, 0, 0), (0, 5, 0, 0, 0), 10) == ("general", "mixed patterns")
    assert label((0, 80.0, 80.0, 0), (0, 0, 6, 6, 0), 10) == (
        "highly-specialized",
        "subtraction + number 30",
    )
    assert label((0, 0, 0, 0), (0,) * 5, 0) == ("general", "mixed patterns")


@given(
    st.lists(
        st.text(alphabet="+-*/×÷1230 sumSUM|", max_size=12)
        | st.sampled_from(["", "50", "multiply"]),
        max_size=8,
    )
)
def test_many_latents_at_once_agree_with_one(texts):
    counts = published_marks(texts).sum(axis=0)
    together = published_specialized(counts[None], np.array([len(texts)]))
    assert together[0] == (classify_published(published_scores(texts))[0] != "general")


@pytest.fixture
def rule(monkeypatch):
    """Changes what the rule asks for, as small tables cannot reach it."""

    def changed(q=0.05, min_support=5, min_lift=1.5):
        values = {"FALSE_DISCOVERY_RATE": q, "MIN_SUPPORT": min_support, "MIN_LIFT": min_lift}
        for name, value in values.items():
            monkeypatch.setattr(specialization, name, value)

    return changed


def test_tables_hand_computed(rule):
    # 6 samples; the latent fires on the first 3; 2 of these and no other have the property.
    fires = np.array([[1, 1, 1, 0, 0, 0]], bool).T
    properties = np.array([[1, 1, 0, 0, 0, 0]], bool).T
    rule(q=0.5, min_support=3)
    got = calibrated_specialization(fires, properties)
    # C(3,2) C(3,0) of the C(6,2) = 15 ways to place the property: p = 3 / 15.
    np.testing.assert_allclose(got.p_value, [[0.2]])
    np.testing.assert_allclose(got.lift, [[(2 / 3) / (2 / 6)]])
    assert got.specialized.tolist() == [[True]]
    for stricter in (
        {"q": 0.5, "min_support": 4},
        {"q": 0.5, "min_support": 3, "min_lift": 2.1},
        {"q": 0.1, "min_support": 3},
    ):
        rule(**stricter)
        assert not calibrated_specialization(fires, properties).specialized.any()


def test_adjustment_is_over_every_latent_that_fires_even_once():
    fires = np.array([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6], bool).T
    properties = np.array([[1, 1, 0, 0, 0, 0]], bool).T
    got = calibrated_specialization(fires, properties)
    # 3 / 15 and 2 / 6; Benjamini-Hochberg of two: min(2 / 1 * 1 / 5, 2 / 2 * 1 / 3) = 1 / 3.
    np.testing.assert_allclose(got.p_value, [[1 / 5], [1 / 3], [1]])
    np.testing.assert_allclose(got.q_value, [[1 / 3], [1 / 3], [1]])


@pytest.mark.filterwarnings("error")
def test_silent_latents_and_absent_properties_are_not_specialized():
    fires, properties = np.ones((6, 2), bool), np.ones((6, 2), bool)
    fires[:, 1] = properties[:, 1] = False
    got = calibrated_specialization(fires, properties)
    np.testing.assert_array_equal(got.lift, [[1, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(got.p_value, np.ones((2, 2)))
    assert not got.specialized.any()
    dead = calibrated_specialization(np.zeros((6, 2), bool), properties)
    assert (dead.q_value == 1).all()
    assert not dead.specialized.any()
    assert calibrated_specialization(fires, np.ones((6, 0), bool)).q_value.shape == (2, 0)


def lone_table(num_samples, num_with_property, support, hits):
    """One latent that fires on `support` samples and one property, which share `hits`."""
    fires = np.arange(num_samples)[:, None] < support
    properties = np.roll(np.arange(num_samples)[:, None] < num_with_property, support - hits, 0)
    assert (fires & properties).sum() == hits
    return fires, properties


@pytest.mark.parametrize(
    ("table", "options", "specialized"),
    [
        # By chance C(10, 5) / C(1000, 5) = 3e-11 and C(10, 4) / C(1000, 4) = 5e-9.
        ((1000, 10, 5, 5), {}, True),
        ((1000, 10, 4, 4), {}, False),
        # 300 of 400 have what half of all have: exactly 1.5 times as many.
        ((1000, 500, 400, 300), {}, True),
        ((1000, 500, 400, 299), {}, False),
        # By chance 1 in 21, 4.8 %, and 1 in 19, 5.3 %.
        ((21, 1, 1, 1), {"min_support": 1}, True),
        ((19, 1, 1, 1), {"min_support": 1}, False),
        # By chance 1 in 4, which may be at q and not above it.
        ((4, 1, 1, 1), {"min_support": 1, "q": 0.25}, True),
        ((4, 1, 1, 1), {"min_support": 1, "q": 0.24}, False),
    ],
)
def test_by_default_5_samples_a_lift_of_one_and_a_half_and_5_percent_are_enough(
    table, options, specialized, rule
):
    rule(**options)
    assert calibrated_specialization(*lone_table(*table)).specialized == specialized


def random_tables(n=400, num_latents=60, num_properties=5, seed=0):
    rng = np.random.default_rng(seed)
    fires = rng.random((n, num_latents)) < rng.uniform(0, 0.3, num_latents)
    fires[:, -3:] = False
    return fires, rng.random((n, num_properties)) < rng.uniform(0.05, 0.7, num_properties)


def test_p_values_are_fishers_and_adjustment_is_over_alive_latents():
    fires, properties = random_tables()
    got = calibrated_specialization(fires, properties)
    for latent in range(0, 60, 7):
        for prop in range(5):
            table = [
                [
                    int((fires[:, latent] == a) @ (properties[:, prop] == b).astype(int))
                    for b in (True, False)
                ]
                for a in (True, False)
            ]
            expected = stats.fisher_exact(table, alternative="greater").pvalue
            np.testing.assert_allclose(got.p_value[latent, prop], expected, rtol=1e-8)
    alive = fires.any(axis=0)
    assert alive.sum() < 60
    expected = stats.false_discovery_control(got.p_value[alive].ravel())
    np.testing.assert_allclose(got.q_value[alive].ravel(), expected)
    assert (got.p_value[~alive] == 1).all()
    assert not got.specialized[~alive].any()


def test_sparse_firing_equals_dense():
    fires, properties = random_tables(seed=1)
    dense = calibrated_specialization(fires, properties)
    got = calibrated_specialization(sparse.csc_array(fires), properties)
    for name in ("specialized", "p_value", "lift"):
        np.testing.assert_array_equal(getattr(got, name), getattr(dense, name))


def test_p_values_over_three_million_samples(rule):
    rule(min_support=4)
    n, properties = 3_000_000, np.zeros((3_000_000, 2), bool)
    properties[:10, 0] = properties[2_000_000:, 1] = True
    # Latent 0 fires on 3 of the 10 samples and 2 others, latent 1 on the 4 last samples.
    rows, columns = [0, 4, 9, 10, 11, n - 4, n - 3, n - 2, n - 1], [0] * 5 + [1] * 4
    fires = sparse.csc_array((np.ones(9, bool), (rows, columns)), shape=(n, 2))
    got = calibrated_specialization(fires, properties)
    at_least_3 = sum(comb(10, i) * comb(n - 10, 5 - i) for i in (3, 4, 5)) / comb(n, 5)
    all_4 = comb(1_000_000, 4) / comb(n, 4)
    np.testing.assert_allclose(got.p_value, [[at_least_3, 1], [1, all_4]], rtol=1e-9)
    np.testing.assert_array_equal(got.specialized, [[True, False], [False, True]])


def test_hits_beyond_what_float32_counts():
    n = 2**24 + 2
    fires = sparse.csc_array(np.ones((n, 1), bool))
    properties = np.ones((n, 1), bool)
    properties[0] = False
    assert count_hits(fires, properties) == n - 1


def test_finds_planted_latents_only():
    """One latent fires exactly on division problems, one mostly on those with 12."""
    fires, properties = random_tables(n=1495, num_latents=300, seed=2)
    rng = np.random.default_rng(0)
    fires[:, 10] = properties[:, 3]
    fires[:, 20] = properties[:, 1] & (rng.random(1495) < 0.3)
    fires[:, 20] |= rng.random(1495) < 0.005
    fires[:, 30] = np.arange(1495) == np.flatnonzero(properties[:, 3])[0]  # a singleton
    got = calibrated_specialization(fires, properties).specialized
    assert got[10, 3]
    assert got[20, 1]
    assert not got[30].any()
    assert got.sum() <= 3  # at most one chance find


def test_permuted_labels_give_under_5_percent_false_discoveries():
    """Every find is false when labels are shuffled; Benjamini-Hochberg bounds their share."""
    rng = np.random.default_rng(3)
    fires, properties = random_tables(n=1495, num_latents=250, num_properties=9, seed=3)
    fires[:, :9] = properties  # strong ties, which shuffling must break
    runs = [
        calibrated_specialization(fires, properties[rng.permutation(1495)]).specialized
        for _ in range(100)
    ]
    assert np.mean([run.any() for run in runs]) < 0.05
    assert np.mean(runs) < 1e-4


def test_null_rates():
    fires, properties = random_tables(n=1495, num_latents=250, num_properties=9, seed=4)
    fires[:, :9] = properties
    firing = Firing(fires.astype(np.float32))
    observed = calibrated_specialization(firing.fires, properties)
    assert observed.specialized.any(axis=1)[:9].mean() > 0.5
    null = calibrated_null_rates(firing, properties)
    assert null.shape == (20,)
    assert null.mean() < 0.001

    # 30 latents fire once and 10 on everything: the first pass with a lone text's chance.
    lone = np.zeros((400, 40), np.float32)
    lone[np.arange(30), np.arange(30)] = 1
    lone[:, 30:] = 1
    texts = ["1+1=2" if i % 2 else "1+1=2 | 3*4=7 | 1-1=0 | 9/9=1" for i in range(400)]
    null = published_null_rates(Firing(lone), published_marks(texts))
    # A lone text of either kind ties or wins and passes; all 400 have addition at 100 %
    # and the rest at 50 %, so the latents that always fire never pass.
    np.testing.assert_allclose(null, 30 / 40)


def test_null_rates_equal_the_rule_on_shuffled_problems():
    """Ten latents that fire on the same 20 samples are all found where one is, by chance."""
    rng = np.random.default_rng(3)
    fires = np.zeros((300, 12), bool)
    fires[rng.permutation(300)[:20], :10] = True
    fires[:, 10] = rng.random(300) < 0.5  # Latent 11 is dead.
    properties = rng.random((300, 1)) < 0.2
    rates = calibrated_null_rates(Firing(fires.astype(np.float32)), properties)
    rng = np.random.default_rng(0)
    expected = [
        calibrated_specialization(fires, properties[rng.permutation(300)]).specialized[:11].mean()
        for _ in range(20)
    ]
    np.testing.assert_array_equal(rates, expected)
    assert rates.min() == 0 < rates.max() < 1


@pytest.mark.parametrize(
    ("fires", "properties", "message"),
    [
        (np.ones((4, 2)), np.ones((4, 3), bool), "fires must be a boolean matrix.*float64"),
        (np.ones((4, 2), bool), np.ones(4, bool), r"properties must be.*\(4,\)"),
        (np.ones((4, 2), bool), np.ones((5, 3), bool), "4 samples and properties has 5"),
    ],
)
def test_bad_input_is_named(fires, properties, message):
    with pytest.raises(ValueError, match=message):
        calibrated_specialization(fires, properties)
