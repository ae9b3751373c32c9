"""The commands of docs/with_codi_weights.md, as they stand there, on a tiny checkpoint."""

import csv
import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sae_jax
from sae_jax.report import reference

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "with_codi_weights.md").read_text("utf-8")
NUM_LAYERS, D_IN, NUM_PROBLEMS, NUM_ANSWERED = 16, 32, 100, 8
ARMS = ("none", "center", "center_and_scale")

# How much less is trained here, by script: in place of what the document says, or added to it.
SMALLER = {
    "dictionary_scaling": {"seeds": "2", "epochs": "1"},
    # A stage that reads activations and one that trains: all compile for minutes.
    "study": {"stages": "pca,dose", "seeds": "2", "epochs": "1"},
    "train_sweep": {"layer": "0,15", "position": "5", "epochs": "1"},
}


def commands():
    """Script and flags of every command, in their order."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            python, script, *flags = shlex.split(line)
            assert python == "python"
            found.append((Path(script).stem, dict(as_pair(flag) for flag in flags)))
    return found


def as_pair(flag):
    name, _, value = flag.removeprefix("--").partition("=")
    return name, value


COMMANDS = commands()


def table(heading):
    """Cells of the rows of the table whose first row begins with `heading`."""
    rows = DOCUMENT[DOCUMENT.index(f"| {heading} |") :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def named(script, **flags):
    """The flags of the one command of a script that has these."""
    (found,) = [
        there for name, there in COMMANDS if name == script and flags.items() <= there.items()
    ]
    return found


def test_the_grid_is_the_sibling_studys():
    flags = named("train_sweep")
    numbers = {name: [int(word) for word in flags[name].split(",")] for name in ("k", "d_sae")}
    assert numbers == {"k": [5, 10, 20, 100], "d_sae": [512, 1024, 2048]}
    assert flags["layer"].split(",") == [str(layer) for layer in range(16)]
    assert flags["position"].split(",") == [str(position) for position in range(6)]


def test_published_values_are_the_references():
    rows = {(int(row[0]), int(row[1])): row for row in table("K")}
    assert rows.keys() == reference.RESULTS.keys()
    analyzed = [flags for name, flags in COMMANDS if name == "analyze_features"]
    assert len(analyzed) == len(rows)
    for (k, d_sae), row in rows.items():
        there = reference.RESULTS[k, d_sae]
        assert float(row[2]) == pytest.approx(100 * there["explained_variance"])
        assert float(row[4]) == pytest.approx(100 * there["dead_fraction"])
        specialized, of = map(int, row[5].split(" of "))
        assert specialized / of == pytest.approx(there["published_rate"])
        start, end = row[6].split("-")
        # At K = 100 four of the ranks hold latents that are dead on the validation samples.
        assert int(end) - int(start) + 1 - of == (4 if k == 100 else 0)
        named("analyze_features", k=str(k), d_sae=str(d_sae), start_rank=start, end_rank=end)


def test_costs_are_what_the_formulas_give():
    cost = {row[0].partition(" ")[0]: row[1:] for row in table("step")}
    # Decoder weights of LLaMA-3.2-1B: attention of 32 heads and 8 of keys and values, and MLP.
    decoder = 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    problem = 2 * decoder * (61 + 6) + 6 * 2 * 2 * 2048**2
    assert problem == pytest.approx(1.3e11, rel=0.01)
    assert_close(cost["2"], 7473 * problem, 2.9e11, 7473 * 16 * 6 * 2048 * 2)
    assert_close(cost["3"], 7473 * problem, 2.9e11, 7473 * 2048 * 2)
    latents = 3 * 5 * sum(sum(sizes) for sizes in reference.GRID.values())
    assert_close(cost["4"], 10 * 5978 * 25 * 2048 * latents, 3.4e11, 4 * 2 * 2048 * latents)
    latents = 16 * 6 * 4 * (512 + 1024 + 2048)
    assert_close(cost["7"], 10 * 5978 * 25 * 2048 * latents, 3.4e11, 4 * 2 * 2048 * latents)
    step = 10 * 256 * 2048 * 512  # Of the headline's setting.
    assert step / 8.0e-3 == pytest.approx(3.4e11, rel=0.02)


def assert_close(cells, flop, rate, size):
    petaflop, hours, gigabytes = map(float, cells)
    assert petaflop == pytest.approx(flop / 1e15, rel=0.05)
    assert hours == pytest.approx(flop / rate / 3600, rel=0.15)
    assert gigabytes == pytest.approx(size / 1e9, rel=0.05)


def problems():
    """Word problems as GSM8K writes them."""
    rng = np.random.default_rng(0)
    names = {"+": "gets", "-": "loses", "*": "multiplies by"}
    for _ in range(NUM_PROBLEMS):
        a, b = (int(number) for number in rng.integers(2, 60, size=2))
        operator = rng.choice(list(names))
        result = {"+": a + b, "-": a - b, "*": a * b}[operator]
        step = f"{a}{operator}{b}"
        yield {
            "question": f"Tom has {a} apples and {names[operator]} {b}. How many are there?",
            "answer": f"There are {step}=<<{step}={result}>>{result}.\n#### {result}",
        }


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What takes the place of each published name: problems, model and checkpoint."""
    from tiny_codi import random_state, save  # These import PyTorch.
    from tiny_llama import save_tiny_llama

    folder = tmp_path_factory.mktemp("published")
    lines = [json.dumps(problem) for problem in problems()]
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "test.jsonl").write_text("\n".join(lines[:NUM_ANSWERED]))
    (folder / "codi").mkdir()
    llama = save_tiny_llama(
        folder / "llama", hidden_size=D_IN, intermediate_size=48, num_hidden_layers=NUM_LAYERS
    )
    checkpoint = save(random_state(llama), folder / "codi")
    return {
        "test.jsonl": str(folder / "test.jsonl"),
        "openai/gsm8k": str(folder / "train.jsonl"),
        "meta-llama/Llama-3.2-1B-Instruct": llama,
        "zen-E/CODI-llama3.2-1b-Instruct": checkpoint,
    }


@pytest.fixture(scope="module")
def done(names, tmp_path_factory):
    """The folder in which every command has run, and what each printed."""
    folder = tmp_path_factory.mktemp("run")
    printed = []
    for script, flags in COMMANDS:
        there = {name: names.get(value, value) for name, value in flags.items()}
        there |= SMALLER.get(script, {})
        words = [f"--{name}={value}" if value else f"--{name}" for name, value in there.items()]
        run = subprocess.run(
            [sys.executable, ROOT / "experiments" / f"{script}.py", *words],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, (script, words, run.stderr[-3000:])
        printed.append(run.stdout + run.stderr)
    return folder / "runs" / "codi", printed


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_checkpoint_is_evaluated_and_said_to_be_read_whole(done):
    _, printed = done
    assert re.search(rf"\d+ of {NUM_ANSWERED} right: ", printed[0])
    # 7 matrices a layer. The rank, the width and the vocabulary are those of the tiny checkpoint.
    assert f"{7 * NUM_LAYERS} LoRA products of rank 4 and alpha 32" in printed[0]
    assert "with LayerNorm, vocabulary 100 + 3; every weight loaded" in printed[0]
    assert "its shapes alone, with random weights" in printed[2]


@pytest.mark.slow
def test_every_layer_and_position_is_extracted_and_an_untrained_slice(done):
    folder, _ = done
    store = sae_jax.ActivationStore.open(folder / "activations")
    assert store.layers == tuple(range(NUM_LAYERS))
    assert store.positions == tuple(range(6))
    assert (len(store.problems), store.d_in) == (NUM_PROBLEMS, D_IN)
    assert store.manifest["settings"]["feedback"] == "codi"
    baseline = sae_jax.ActivationStore.open(folder / "untrained")
    assert (baseline.layers, baseline.positions) == ((14,), (3,))
    trained, untrained = (s.select(layer=14, position=3).read() for s in (store, baseline))
    assert trained.shape == untrained.shape
    assert not np.allclose(trained, untrained, atol=0.1)


@pytest.mark.slow
def test_the_published_experiment_has_its_14_settings_in_each_arm(done):
    folder, _ = done
    rows = read_csv(folder / "published" / "results.csv")
    published = [(k, d) for k, sizes in reference.GRID.items() for d in sizes]
    assert len(published) == 14
    assert [(r["normalize"], int(r["k"]), int(r["d_sae"]), r["seed"]) for r in rows] == [
        (arm, k, d, seed) for arm in ARMS for k, d in published for seed in ("0", "1")
    ]
    assert all(r["data_seed"] == r["seed"] for r in rows)
    assert all(math.isfinite(float(r["fvu"])) for r in rows)
    assert "published" in (folder / "published" / "results.md").read_text("utf-8")
    assert (folder / "published" / "page.html").is_file()


@pytest.mark.slow
def test_the_raw_arm_is_analyzed_at_the_published_ranks(done):
    folder, _ = done
    analyses = folder / "published" / "sweep" / "features"
    for k, d_sae in reference.RESULTS:
        (path,) = analyses.glob(f"layer14_position3_d{d_sae}_k{k}_seed0_ranks*.json")
        analysis = json.loads(path.read_text("utf-8"))
        of = [row for row in table("K") if (row[0], row[1]) == (str(k), str(d_sae))][0][6]
        assert "{}-{}".format(*analysis["rank_range"]) == of


@pytest.mark.slow
def test_the_studys_tables_are_there(done):
    folder, _ = done
    pca = read_csv(folder / "study" / "tables" / "pca.csv")
    assert [row["k"] for row in pca] == ["25"]  # 32 dimensions have no more of the published K.
    dose = read_csv(folder / "study" / "tables" / "dose.csv")
    assert [(row["dose"], row["seed"]) for row in dose] == [
        (dose, seed) for dose in ("0", "0.25", "0.5", "0.75", "1", "1.5", "2") for seed in "01"
    ]
    settings = json.loads((folder / "study" / "run.json").read_text("utf-8"))
    assert settings["map_layers"] == ["2", "5", "8", "11", "14", "15"]


@pytest.mark.slow
def test_the_grid_is_trained_on_every_slice_and_shown(done):
    folder, _ = done
    rows = read_csv(folder / "grid" / "results.csv")
    found = {tuple(int(r[name]) for name in ("layer", "position", "k", "d_sae")) for r in rows}
    assert len(rows) == len(found) == 24
    assert found == {
        (layer, 5, k, d) for layer in (0, 15) for k in (5, 10, 20, 100) for d in (512, 1024, 2048)
    }
    assert "All layers and positions" in (folder / "grid.html").read_text("utf-8")
