"""The stages of the study that replace thoughts, with a tiny model."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from stages import causality, loss_recovered, thoughts
from stages.study import Study

from sae_jax.extraction import patching
from sae_jax.extraction.extract import extract
from sae_jax.extraction.models import load_model
from sae_jax.problems import Problem

OPERATIONS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}
NUM_PROBLEMS = 120


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def study(tiny_llama_folder, tmp_path_factory):
    """Problems whose questions are little but an operation, so that latents are tied to it."""
    rng = np.random.default_rng(0)
    symbols = list(OPERATIONS.values())
    problems = []
    for i in range(NUM_PROBLEMS):
        symbol = symbols[i % 4]
        step = f"{rng.integers(2, 10)}{symbol}{rng.integers(2, 10)}"
        problems.append(
            Problem(id=str(i), question=step + 9 * symbol, answer=str(i), steps=(f"{step}=1",))
        )
    folder = tmp_path_factory.mktemp("study")
    model = load_model(tiny_llama_folder, device="cpu")
    store = extract(problems, model, folder / "store", layers=[1], positions=[0, 2], progress=False)
    return Study(
        store=store,
        untrained_store=None,
        load_model=lambda: model,
        layer=1,
        position=2,
        map_layers=(),
        seeds=2,
        epochs=5,
        map_epochs=1,
        output=Path(folder),
    )


@pytest.fixture(scope="module")
def effects(study):
    return causality.rows(study)


def test_a_reconstruction_recovers_what_the_library_says(study):
    rows = loss_recovered.rows(study)
    # Two positions, three arms, two seeds.
    assert [(row["position"], row["normalize"], row["seed"]) for row in rows] == [
        (position, arm, seed)
        for position in (0, 2)
        for arm in ("none", "center", "center_and_scale")
        for seed in (0, 1)
    ]
    i = 9
    split = study.split((1, 2))
    answers = patching.PatchedAnswers(study.load_model(), split.val.problems, layer=1, position=2)
    expected = patching.loss_recovered(
        answers,
        np.asarray(thoughts.sweep(study).sae(i)(split.val.read())),
        split.train.read().mean(axis=0),
    )
    row = rows[i]
    # Fractions divide by small differences, so that roundings count: cross-entropies are compared.
    ce = {name: value for name, value in expected.items() if name.startswith("ce_")}
    assert {name: row[name] for name in ce} == pytest.approx(ce, rel=1e-5)
    bounds = row["ce_clean"], row["ce_zero"]
    of_sae, of_mean = (
        patching.loss_recovered_fraction(*bounds, row[name]) for name in ("ce_sae", "ce_mean")
    )
    assert row["loss_recovered"] == pytest.approx(of_sae, rel=1e-6)
    assert row["loss_recovered_mean"] == pytest.approx(of_mean, rel=1e-6)
    assert row["gain_over_mean"] == pytest.approx(of_sae - of_mean, rel=1e-6)
    assert row["rise_sae"] == pytest.approx(row["ce_sae"] - row["ce_clean"], abs=1e-9)
    assert row["num_problems"] == NUM_PROBLEMS // 5
    change = np.abs(answers.log_probability(np.zeros((24, 16))) - answers.unpatched).mean()
    assert row["change_zero"] == pytest.approx(change, rel=1e-3)


def test_every_edit_has_a_row_with_and_without_its_operations(effects):
    # Two positions, two arms, four ablations and two swaps, with and without.
    assert len(effects) == 2 * 2 * 6 * 2
    assert len({tuple(row) for row in effects}) == 1
    tested = [row for row in effects if np.isfinite(row["p_value"])]
    assert len(tested) > 20
    assert {row["num_tests"] for row in effects} == {len(tested)}
    assert all(row["q_value"] >= row["p_value"] for row in tested)
    for row in effects:
        assert (row["num_seeds"] == 0) == (row["num_latents"] == 0) == np.isnan(row["effect"])


def test_an_effect_is_what_the_library_measures_edit_by_edit(study, effects):
    """The first position, raw, of the operation that most latents are tied to."""
    row = max(
        (r for r in effects[:12] if r["edit"] == "ablate" and r["problems"] == "with"),
        key=lambda r: r["num_latents"],
    )
    assert row["num_latents"] > 1
    split = study.split((1, 0))
    answers = patching.PatchedAnswers(study.load_model(), split.val.problems, layer=1, position=0)
    symbol = OPERATIONS[row["operation"]]
    having = np.array([symbol in problem.steps[0] for problem in split.val.problems])
    assert having.sum() == row["num_problems"]
    operation = list(OPERATIONS).index(row["operation"])
    found, sizes = [], []
    for i in (0, 1):
        sae = thoughts.sweep(study).sae(i)
        fires = np.asarray(sae.encode(split.train.read())) != 0
        chosen = chosen_by_hand(fires, split.train.problems, operation)
        z = np.array(sae.encode(split.val.read()))
        x_hat = np.asarray(sae.decode(z))
        z[:, chosen] = 0
        edited = np.asarray(sae.decode(z))
        if chosen.size:
            found.append(patching.causal_effect(answers, x_hat, edited)[having])
            sizes.append(np.linalg.norm(edited - x_hat, axis=1)[having])
    assert len(found) == row["num_seeds"]
    assert row["effect"] == pytest.approx(np.mean(found), rel=1e-3)
    assert row["size"] == pytest.approx(np.mean(sizes), rel=1e-5)


def chosen_by_hand(fires, problems, operation):
    """Latents with the smallest p-values of SciPy's exact test of 2 x 2 tables."""
    has = np.array([[s in p.steps[0] for s in OPERATIONS.values()] for p in problems])
    alive = np.flatnonzero(fires.any(axis=0))
    tables = [
        [[(f & h).sum(), (f & ~h).sum(), (~f & h).sum(), (~f & ~h).sum()] for h in has.T]
        for f in fires[:, alive].T
    ]
    p = np.array(
        [
            [stats.fisher_exact(np.reshape(t, (2, 2)), "greater").pvalue for t in of_latent]
            for of_latent in tables
        ]
    )
    # Five numbers that no problem has are tested too.
    tests = np.concatenate([p, np.ones((len(alive), 5))], axis=1)
    q = stats.false_discovery_control(tests.ravel()).reshape(tests.shape)
    tied = (q[:, operation] <= 0.05) & (fires[:, alive].sum(axis=0) >= 5)
    own = np.flatnonzero(tied & (p.argmin(axis=1) == operation))
    return alive[own[np.argsort(p[own, operation], kind="stable")[:5]]]


def test_what_cannot_be_replaced_is_named(study):
    with pytest.raises(ValueError, match="needs the model that the activations come from"):
        causality.rows(dataclasses.replace(study, load_model=None))
    other = dataclasses.replace(study.load_model(), prompt_template="Q: {question}")
    with pytest.raises(ValueError, match="come from another model.*prompt_template was None"):
        loss_recovered.rows(dataclasses.replace(study, load_model=lambda: other))
