import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sae_jax
from sae_jax.activations.writer import write_store
from sae_jax.features.records import feature_records
from sae_jax.problems import Problem

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "analyze_features.py"
STEPS = (("8/2=4",), ("1+2=3", "3*4=12"), ("20-5=15",), ("9-2=7", "7*5=35", "1+1=2"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A small sweep on activations whose first dimensions tell the kinds of problem apart."""
    folder = tmp_path_factory.mktemp("analyze")
    rng = np.random.default_rng(0)
    kinds = rng.integers(4, size=300)
    problems = [Problem(id=f"p{i}", question="?", steps=STEPS[k]) for i, k in enumerate(kinds)]
    x = rng.normal(size=(300, 12)).astype(np.float32)
    x[np.arange(300), kinds] += 6
    store = write_store(folder / "store", {(2, 3): x}, problems)
    split = store.select(layer=2, position=3).split(train_fraction=0.8, seed=42)
    result = sae_jax.train_sweep(
        sae_jax.grid(d_sae=(16,), k=(3,), seed=range(2)),
        split.train,
        split.val,
        sae_jax.TrainConfig(epochs=3, batch_size=32),
        progress=False,
    )
    result.save(folder / "sweep")
    return folder / "sweep", result, split.val


def run_script(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=240
    )


def test_writes_what_the_library_says_of_the_member(sweep):
    folder, result, val = sweep
    run = run_script(
        f"--sweep={folder}",
        "--d_sae=16",
        "--k=3",
        "--seed=1",
        "--start_rank=2",
        "--end_rank=9",
        "--rule=calibrated",
        "--probe",
    )
    assert run.returncode == 0, run.stderr
    name = "layer2_position3_d16_k3_seed1_ranks2-9"
    analysis = json.loads((folder / "features" / f"{name}.json").read_text())
    z = np.asarray(result.sae(1).encode(val.activations))
    expected = feature_records(z, val.problems, start_rank=2, end_rank=9)
    assert analysis["features"] == expected
    assert analysis["num_analyzed"] == len(expected)
    assert analysis["num_specialized"] == sum(r["type"] != "general" for r in expected)
    assert analysis["rank_range"] == [2, 9]
    assert (analysis["k"], analysis["d_sae"], analysis["layer"], analysis["position"]) == (
        3,
        16,
        2,
        3,
    )
    assert [row["property"] for row in analysis["probes"][::2]] == [
        "addition",
        "subtraction",
        "multiplication",
        "division",
    ]
    with (folder / "features" / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["feature_id"]) for row in rows] == [r["feature_id"] for r in expected]
    assert [int(row["support"]) for row in rows] == [
        np.count_nonzero(z[:, r["feature_id"]]) for r in expected
    ]
    listed = [line for line in run.stdout.splitlines() if line.strip().startswith("rank ")]
    assert len(listed) == analysis["num_specialized_calibrated"] > 0
    assert f"{analysis['summary']['published_null']:.1%}" in run.stdout


def test_an_unknown_member_is_named_with_those_there_are(sweep):
    run = run_script(f"--sweep={sweep[0]}", "--d_sae=16", "--k=4")
    assert run.returncode == 1
    message = " ".join(run.stderr.split() + run.stdout.split())
    assert "error: 0 members have {'d_sae': 16, 'k': 4, 'seed': 0}" in message
    assert "SAEConfig(d_sae=16, k=3, seed=1" in message


def test_activations_are_named_where_the_sweep_does_not_say(sweep, tmp_path):
    """A sweep trained in Python on plain arrays, and saved without a word on them."""
    folder, _, val = sweep
    split = val.store.select(2, 3).split()
    result = sae_jax.train_sweep(
        [sae_jax.SAEConfig(16, 3)],
        split.train.activations,
        split.val.activations,
        sae_jax.TrainConfig(epochs=1, batch_size=64),
        progress=False,
    )
    result.save(tmp_path / "sweep")
    refused = run_script(f"--sweep={tmp_path / 'sweep'}", "--member=0")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: the sweep in")
    assert "(--activations)" in refused.stderr
    given = ["--activations=" + str(val.store.path), "--layer=2", "--position=3"]
    given += ["--train_fraction=0.8", "--split_seed=42"]
    done = run_script(f"--sweep={tmp_path / 'sweep'}", "--member=0", *given)
    assert done.returncode == 0, done.stderr
    other = run_script(f"--sweep={folder}", "--member=0", f"--activations={tmp_path / 'sweep'}")
    assert other.returncode == 1
    assert "no activation store" in other.stderr.splitlines()[-1]
