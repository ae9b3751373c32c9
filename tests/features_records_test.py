import json

import numpy as np
import pytest

from sae_jax.architectures.topk import TopKSAE
from sae_jax.features.firing import Firing
from sae_jax.features.records import feature_records, feature_summary
from sae_jax.problems import Problem

STEPS = (("8/2=4",), ("1+2=3", "3*4=12"), ("20-5=15",), ("9-2=7", "7*5=35", "1+1=2"))


def problems(n=200):
    return [Problem(id=f"p{i}", question="", steps=STEPS[i % 4]) for i in range(n)]


def latents(n=200):
    """Five latents: division problems, every problem, dead, a singleton, a sign apart."""
    z = np.zeros((n, 5), np.float32)
    z[np.arange(n) % 4 == 0, 0] = np.linspace(1, 2, n // 4)
    z[:, 1] = 1
    z[2, 3] = -0.5
    z[np.arange(n) % 4 == 1, 4] = -3
    return z


def test_summary_hand_computed():
    got = feature_summary(latents(), problems())
    # Alive: 0 (division alone), 1 (all: no operation above 70 %), 3 (subtraction and
    # "20") and 4 (addition ties with multiplication, "12").
    assert got["published_rate"] == 3 / 4
    assert got["published_rate_rarer_half"] == 1.0  # latents 4 and 3; 0 and 4 fire equally often
    assert got["published_rate_supported"] == 2 / 3
    assert got["published_singleton_share"] == 1 / 3
    assert got["num_singletons"] == 1
    assert got["num_supported"] == 3
    # 0 and 4 fire exactly on the problems with division and with 12.
    assert got["calibrated_rate"] == 2 / 4
    assert got["calibrated_rate_supported"] == 2 / 3
    assert got["calibrated_null"] < 0.02
    # The singleton passes on three of the four kinds of problem; the others hold many.
    assert got["published_null"] == pytest.approx(0.75 / 4, abs=0.1)


def test_summary_of_a_dead_dictionary():
    got = feature_summary(np.zeros((8, 3)), problems(8))
    assert got["num_singletons"] == got["num_supported"] == 0
    assert np.isnan(got["published_rate"])
    assert np.isnan(got["calibrated_rate_supported"])


def test_records_have_the_recorded_layout_and_the_calibrated_fields():
    records = feature_records(latents(), problems())
    assert [(r["rank"], r["feature_id"]) for r in records] == [(1, 1), (2, 0), (3, 4), (4, 3)]
    division = records[1]
    assert division["activation_freq"] == 0.25
    assert division["mean_magnitude"] == pytest.approx(1.5 / 4)
    assert division["scores"]["operations"]["division"] == 100.0
    assert division["scores"]["total_samples"] == 50
    assert (division["type"], division["description"]) == ("operation-specialized", "division")
    assert division["calibrated"]["specialized"] == ["division"]
    assert division["calibrated"]["lift"] == pytest.approx(4.0)
    assert division["taxonomy"] == {
        "type": "operation-level",
        "confidence": "medium",
        "patterns": ["division"],
    }
    assert division["top_samples"][0] == {
        "problem_id": "p196",
        "text": "8/2=4",
        "activation": 2.0,
    }
    assert len(division["top_samples"]) == 10
    assert records[3]["description"] == "subtraction + number 20"
    assert records[3]["calibrated"]["specialized"] == []
    json.dumps(records, allow_nan=False)


def test_records_of_a_range_of_ranks_test_the_whole_dictionary():
    everything = feature_records(latents(), problems())
    assert feature_records(latents(), problems(), start_rank=2, end_rank=3) == everything[1:3]
    assert feature_records(latents(), problems(), start_rank=5) == []  # the dead one


@pytest.mark.parametrize("ranks", [(0, 3), (4, 3), (1, 6)])
def test_ranks_outside_the_dictionary_are_named(ranks):
    with pytest.raises(ValueError, match=rf"ranks {ranks[0]} to {ranks[1]} are not within 1 to 5"):
        feature_records(latents(), problems(), start_rank=ranks[0], end_rank=ranks[1])


def test_samples_and_problems_must_match():
    with pytest.raises(ValueError, match="latents of 200 samples do not fit 199 problems"):
        feature_summary(latents(), problems(199))


def test_published_specialization_survives_sparse_latents():
    z = latents()
    assert feature_summary(Firing(z).z, problems()) == feature_summary(z, problems())


def test_finds_the_planted_latent_of_an_sae():
    """The SAE's latent 3 reads a direction that holds whether a problem has a division."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(4, size=600)
    samples = [Problem(id=f"p{i}", question="", steps=STEPS[kind]) for i, kind in enumerate(kinds)]
    directions = np.linalg.qr(rng.normal(size=(32, 32)))[0].astype(np.float32)
    strengths = rng.normal(size=(600, 32)).astype(np.float32)
    strengths[:, 3] = np.where(kinds == 0, 10, 0)
    sae = TopKSAE(
        {"w_enc": directions, "b_enc": np.zeros(32), "w_dec": directions.T, "b_dec": np.zeros(32)},
        k=4,
    )
    z = np.asarray(sae.encode(strengths @ directions.T))
    records = feature_records(z, samples)
    found = {r["feature_id"]: r["calibrated"] for r in records if r["calibrated"]["specialized"]}
    assert list(found) == [3]
    assert found[3]["specialized"] == ["division"]
    assert found[3]["lift"] == pytest.approx(600 / (kinds == 0).sum())
    assert feature_summary(z, samples)["calibrated_rate"] == 1 / 32
