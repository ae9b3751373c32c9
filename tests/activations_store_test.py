import json
import pickle
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from sae_jax.activations.selection import Selection, Split
from sae_jax.activations.store import ActivationStore, open_shard
from sae_jax.activations.writer import StorePlan, StoreWriter, lock, write_store
from sae_jax.problems import Problem


def make_problems(num_problems):
    return [
        Problem(f"p{i}", f"How many are {i} and 1?", str(i + 1), (f"{i}+1={i + 1}",))
        for i in range(num_problems)
    ]


def make_arrays(num_rows, d_in=3, layers=(2, 5), positions=(0, 3)):
    rng = np.random.default_rng(0)
    return {
        (layer, position): rng.standard_normal((num_rows, d_in)).astype(np.float32)
        for layer in layers
        for position in positions
    }


def test_written_slices_are_read_back(tmp_path):
    arrays, problems = make_arrays(700), make_problems(700)
    write_store(tmp_path / "store", arrays, problems, {"feedback": "soft"}, model="tiny")

    store = ActivationStore.open(tmp_path / "store")
    store.verify()
    assert store.layers == (2, 5)
    assert store.positions == (0, 3)
    assert store.problems == problems
    assert store.manifest["settings"] == {"feedback": "soft"}
    assert len(store.manifest["shards"]) == 2
    for (layer, position), array in arrays.items():
        selection = store.select(layer=layer, position=position)
        np.testing.assert_array_equal(selection.activations, array)
        assert selection.activations.dtype == np.float32
        assert selection.problems == tuple(problems)


def test_rows_are_read_in_the_order_asked_for(tmp_path):
    arrays = make_arrays(700)
    store = write_store(tmp_path, arrays, make_problems(700))
    selection = store.select(5, 3)
    indices = np.array([699, 0, 512, 511, 0])
    np.testing.assert_array_equal(selection.read(indices), arrays[5, 3][indices])
    np.testing.assert_array_equal(selection.read(slice(500, 520)), arrays[5, 3][500:520])
    assert Selection(store, 5, 3, [7, 2]).rows.dtype == np.int64


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([-1], "row -1 is not in .*, which has rows 0 to 699"),
        ([3, 700], "row 700 is not in"),
        (np.array([2**63], np.uint64), "row 9223372036854775808 is not in"),
        ([0.0, 1.0], "rows are float64; expected integers"),
        ([True, False], "rows are bool; expected integers"),
        ([[0, 1]], r"rows have shape \(1, 2\); expected one axis"),
        (3, r"rows have shape \(\); expected one axis"),
    ],
)
def test_rows_that_a_store_does_not_have_are_refused(tmp_path, rows, message):
    store = write_store(tmp_path, make_arrays(700), make_problems(700))
    with pytest.raises(ValueError, match=message):
        store.read(5, 3, rows)
    with pytest.raises(ValueError, match=message):
        Selection(store, 5, 3, np.asarray(rows))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_selection_is_indexed_as_numpy_indexes_its_rows(small_store, data):
    store, array = small_store
    rows = data.draw(st.lists(st.integers(0, 29), min_size=1, max_size=20))
    selection = Selection(store, 0, 0, np.array(rows))
    indices = data.draw(
        st.one_of(
            st.slices(len(rows)),
            st.lists(st.integers(-25, 25), max_size=8).map(lambda x: np.array(x, np.int64)),
            st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)).map(np.array),
        )
    )
    try:
        expected = array[rows][indices]
    except IndexError:
        with pytest.raises(IndexError):
            selection.read(indices)
    else:
        np.testing.assert_array_equal(selection.read(indices), expected)


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    """A store of 30 rows in 8 shards, and its one slice."""
    root = tmp_path_factory.mktemp("store")
    array = np.arange(60, dtype=np.float32).reshape(30, 2)
    write_in_shards(root, array, shard_size=4)
    return ActivationStore.open(root), array


def write_in_shards(root, array, shard_size):
    problems = make_problems(len(array))
    plan = StorePlan(
        "tiny", [0], [0], array.shape[1], problems, dtype="float32", shard_size=shard_size
    )
    writer = StoreWriter(root, plan)
    writer.prepare()
    for shard in writer.missing_shards():
        rows = plan.shard_problems(shard)
        writer.write_shard(shard, array[None, None, rows.start : rows.stop])
    return writer.finish()


READ_MANY_SHARDS = """
import os, resource, sys
import numpy as np
from sae_jax.activations.store import ActivationStore
from sae_jax.activations.writer import StoreWriter

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
store = ActivationStore.open(sys.argv[1])
before = len(os.listdir("/proc/self/fd"))
kept = [store.read(0, 0, np.array([row])) for row in range(0, 600, 2)]
assert np.array_equal(np.concatenate(kept)[:, 0], np.arange(0, 600, 2))
assert np.array_equal(store.select(0, 0).activations[:, 0], np.arange(600))
store.verify()
print(len(os.listdir("/proc/self/fd")) - before)
"""


def test_300_shards_are_read_with_few_file_descriptors(tmp_path):
    write_in_shards(tmp_path, np.arange(600, dtype=np.float32)[:, None], shard_size=2)
    done = subprocess.run(
        [sys.executable, "-c", READ_MANY_SHARDS, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1


def test_a_row_is_read_from_its_own_shard_alone(tmp_path):
    store = write_in_shards(tmp_path, np.arange(10, dtype=np.float32)[:, None], shard_size=2)
    for shard in (0, 1, 2, 4):
        (tmp_path / f"shards/{shard:05d}.npy").unlink()
    np.testing.assert_array_equal(store.read(0, 0, np.array([7, 6])), [[7], [6]])
    with pytest.raises(FileNotFoundError, match=r"00004\.npy"):
        store.read(0, 0, np.array([8]))


def test_a_shard_is_mapped_rather_than_read(tmp_path):
    np.save(tmp_path / "shard.npy", np.zeros((1, 1, 4, 3), np.float32))
    shard = open_shard(tmp_path / "shard.npy", [1, 1, 4, 3], "float32")
    assert isinstance(shard, np.memmap)
    assert not shard.flags.writeable


class TouchesAFile:
    """What runs code when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_shard_is_never_unpickled(tmp_path):
    (tmp_path / "shard.npy").write_bytes(pickle.dumps(TouchesAFile(tmp_path / "touched")))
    with pytest.raises(ValueError, match="pickled"):
        open_shard(tmp_path / "shard.npy", [1], "float32")
    assert not (tmp_path / "touched").exists()


def test_problems_are_kept_as_readable_text(tmp_path):
    problems = [Problem("p0", "Wie groß ist 6×7?", "42", ("6×7=42",))]
    store = write_store(tmp_path, {(0, 0): np.zeros((1, 1), np.float32)}, problems)
    assert store.problems == problems
    assert "Wie groß ist 6×7?" in (tmp_path / "problems.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("array", [np.zeros((4, 3), int), np.zeros((4, 3), complex)])
def test_a_store_is_not_written_from_what_is_no_float(tmp_path, array):
    with pytest.raises(ValueError, match=r"\(2, 0\) has dtype"):
        write_store(tmp_path / "store", {(2, 0): array}, make_problems(4))
    assert not (tmp_path / "store").exists()


def test_bfloat16_is_stored_by_its_values(tmp_path):
    array = np.random.default_rng(0).standard_normal((4, 3)).astype(ml_dtypes.bfloat16)
    store = write_store(tmp_path, {(2, 0): array.view("V2")}, make_problems(4))
    np.testing.assert_array_equal(store.select(2, 0).activations, array.astype(np.float32))


def test_float16_storage_reads_as_float32(tmp_path):
    arrays = make_arrays(4)
    store = write_store(tmp_path, arrays, make_problems(4), dtype="float16")
    read = store.select(2, 0).activations
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, arrays[2, 0].astype(np.float16).astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.integers(2, 300),
    train_fraction=st.sampled_from([0.5, 0.7, 0.8, 0.9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_is_scikit_learns(tmp_path_factory, num_rows, train_fraction, seed):
    store = write_store(
        tmp_path_factory.mktemp("store"), make_arrays(num_rows), make_problems(num_rows)
    )
    split = store.select(2, 0).split(train_fraction, seed)
    train, val = train_test_split(
        np.arange(num_rows), train_size=train_fraction, random_state=seed, shuffle=True
    )
    np.testing.assert_array_equal(split.train.rows, train)
    np.testing.assert_array_equal(split.val.rows, val)


def test_the_published_split_has_its_published_sizes(tmp_path):
    arrays = {(14, 3): np.arange(7473, dtype=np.float32)[:, None]}
    split = write_store(tmp_path, arrays, make_problems(7473)).select(14, 3).split()
    assert (len(split.train), len(split.val)) == (5978, 1495)
    for side in (split.train, split.val):
        assert side.settings == {"train_fraction": 0.8, "split_seed": 42}
    order = np.random.RandomState(42).permutation(7473)
    np.testing.assert_array_equal(split.val.activations[:, 0], order[:1495])
    np.testing.assert_array_equal(split.train.activations[:, 0], order[1495:])
    assert split.val.problems[0].id == f"p{order[0]}"


def test_rows_of_one_problem_stay_on_one_side(tmp_path):
    problems = make_problems(20)
    counts = [1 + i % 4 for i in range(20)]
    plan = StorePlan("tiny", [0], ["all"], 1, problems, shard_size=8, rows_per_problem=counts)
    writer = StoreWriter(tmp_path, plan)
    writer.prepare()
    owners = np.repeat(np.arange(20), counts)
    for shard in writer.missing_shards():
        rows = owners[np.isin(owners, plan.shard_problems(shard))]
        writer.write_shard(shard, rows[None, None, :, None].astype(np.float32))
    selection = writer.finish().select(0, "all")
    assert [p.id for p in selection.problems] == [f"p{i}" for i in owners]

    split = selection.split()
    train, val = split.train.activations[:, 0], split.val.activations[:, 0]
    assert len(train) + len(val) == sum(counts)
    assert set(val) == set(np.random.RandomState(42).permutation(20)[:4])
    assert not set(train) & set(val)
    for problem in val:
        assert np.count_nonzero(val == problem) == counts[int(problem)]


@pytest.mark.parametrize(
    ("layer", "position", "message"),
    [(3, 0, "layer 3 .*layers 2, 5"), (2, 6, "position 6 .*positions 0, 3")],
)
def test_unknown_slice_lists_those_there_are(tmp_path, layer, position, message):
    store = write_store(tmp_path, make_arrays(4), make_problems(4))
    with pytest.raises(ValueError, match=f"^{message}"):
        store.select(layer, position)
    with pytest.raises(ValueError, match=f"^{message}"):
        store.read(layer, position, np.array([0]))


@pytest.mark.parametrize(
    ("positions", "text", "expected"),
    [
        (("all",), "all", "all"),
        ((-1,), "last", -1),
        ((-1,), "-1", -1),
        ((-2, 3), "-2", -2),
        ((-2, 3), "3", 3),
        (("last",), "last", "last"),
        ((3, "3"), "3", 3),
    ],
)
def test_a_word_names_the_stored_position(tmp_path, positions, text, expected):
    arrays = {(0, position): np.full((2, 1), i) for i, position in enumerate(positions)}
    arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    store = write_store(tmp_path, arrays, make_problems(2))
    position = store.parse_position(text)
    assert type(position) is type(expected)
    assert position == expected
    np.testing.assert_array_equal(store.select(0, position).activations, arrays[0, expected])


@pytest.mark.parametrize("text", ["all", "0", "first", "", "1.0"])
def test_a_word_that_names_no_position_lists_those_there_are(tmp_path, text):
    arrays = {(0, position): np.zeros((2, 1), np.float32) for position in (-1, 3)}
    store = write_store(tmp_path, arrays, make_problems(2))
    with pytest.raises(
        ValueError, match=f"position {text!r} is not in .*positions -1 \\(or last\\), 3$"
    ):
        store.parse_position(text)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("layers", [True]),
        ("layers", [-1]),
        ("layers", ["2"]),
        ("positions", [1.5]),
        ("positions", [True]),
        ("positions", [""]),
    ],
)
def test_a_store_names_its_slices_by_plain_values(name, values):
    arguments = {"layers": [0], "positions": [0], name: values}
    with pytest.raises(ValueError, match=f"{name} has {values[0]!r}"):
        StorePlan("tiny", d_in=1, problems=make_problems(1), **arguments)


class TestFingerprint:
    def test_it_is_that_of_the_content(self, tmp_path):
        arrays, problems = make_arrays(4), make_problems(4)
        store = write_store(tmp_path / "a", arrays, problems, {"feedback": "soft"})
        assert len(bytes.fromhex(store.fingerprint)) == 32
        (tmp_path / "a").rename(tmp_path / "b")
        assert ActivationStore.open(tmp_path / "b").fingerprint == store.fingerprint
        again = write_store(tmp_path / "c", arrays, problems, {"feedback": "other words"})
        assert again.fingerprint == store.fingerprint

    @pytest.mark.parametrize("change", ["value", "problem", "layer", "position", "dtype"])
    def test_any_other_content_has_another(self, tmp_path, change):
        arrays, problems, dtype = make_arrays(4), make_problems(4), "float32"
        arrays = {key: array.astype(np.float16) for key, array in arrays.items()}
        store = write_store(tmp_path / "a", arrays, problems, dtype=dtype)
        if change == "value":
            arrays[5, 3][2, 1] += 1
        elif change == "problem":
            problems[1] = Problem("p1", "How many are 1 and 2?", "2", ("1+1=2",))
        elif change == "layer":
            arrays = {(layer + 1, position): a for (layer, position), a in arrays.items()}
        elif change == "position":
            arrays = {(layer, position - 4): a for (layer, position), a in arrays.items()}
        else:
            dtype = "float16"
        other = write_store(tmp_path / "b", arrays, problems, dtype=dtype)
        assert other.fingerprint != store.fingerprint

    def test_rows_of_other_problems_have_another(self, tmp_path):
        fingerprints = set()
        for counts in ([1, 2], [2, 1]):
            plan = StorePlan("tiny", [0], ["all"], 1, make_problems(2), rows_per_problem=counts)
            root = tmp_path / f"{counts[0]}"
            root.mkdir()
            writer = StoreWriter(root, plan)
            writer.prepare()
            writer.write_shard(0, np.ones((1, 1, 3, 1), np.float32))
            fingerprints.add(writer.finish().fingerprint)
        assert len(fingerprints) == 2


def test_rows_of_one_problem_stay_in_order(tmp_path):
    plan = StorePlan("tiny", [0], ["all"], 1, make_problems(4), rows_per_problem=[40] * 4)
    writer = StoreWriter(tmp_path, plan)
    writer.prepare()
    writer.write_shard(0, np.arange(160, dtype=np.float32).reshape(1, 1, 160, 1))
    split = writer.finish().select(0, "all").split(0.5)
    order = np.random.RandomState(42).permutation(4)
    rows = [row for problem in order for row in range(40 * problem, 40 * problem + 40)]
    assert [*split.val.rows, *split.train.rows] == rows


def test_rows_beyond_so_many_median_norms_of_training_are_left_out(tmp_path):
    norms = [20, 1, 3, 6, 2] + [6, 50, 1, 6.5]
    x = np.outer(norms, [0.6, 0.8]).astype(np.float32)
    store = write_store(tmp_path, {(0, 0): x}, make_problems(9))
    train, val = (Selection(store, 0, 0, np.arange(*rows), {"a": 1}) for rows in ((5,), (5, 9)))
    # The median of training is 3.
    kept = Split(train, val).within_norm(2)
    assert kept.train.rows.tolist() == [1, 2, 3, 4]
    assert kept.val.rows.tolist() == [5, 7]
    assert kept.train.settings == kept.val.settings == {"a": 1, "max_norm_ratio": 2}
    assert Split(train, val).within_norm(1).val.rows.tolist() == [7]
    tail = Selection(store, 0, 0, np.array([5, 6]))
    assert Split(train, tail).within_norm(2).val.rows.tolist() == [5]
    with pytest.raises(ValueError, match=r"^max_norm_ratio=1.9 leaves none of 2 validation rows$"):
        Split(train, tail).within_norm(1.9)
    for ratio in (0.99, -3, float("nan")):
        with pytest.raises(ValueError, match=f"max_norm_ratio is {ratio}; allowed is 1 or more"):
            Split(train, val).within_norm(ratio)


@pytest.mark.parametrize("train_fraction", [0.0, 0.1, 1.0])
def test_a_split_with_an_empty_side_is_refused(tmp_path, train_fraction):
    store = write_store(tmp_path, make_arrays(4), make_problems(4))
    with pytest.raises(ValueError, match="of 4 problems leaves"):
        store.select(2, 0).split(train_fraction)


LIST_OF_4 = r"has \[2, 2, 4, 3, 1\] as shards\[0\].shape; expected a list of 4 integers"


class TestFilesThatDoNotMatchTheManifest:
    @pytest.fixture
    def root(self, tmp_path):
        write_store(tmp_path, make_arrays(4), make_problems(4))
        return tmp_path

    def test_missing_shard(self, root):
        (root / "shards/00000.npy").unlink()
        with pytest.raises(ValueError, match=r"00000\.npy is missing; the manifest says \d+ bytes"):
            ActivationStore.open(root)

    def test_truncated_shard(self, root):
        shard = root / "shards/00000.npy"
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"00000\.npy has \d+ bytes; the manifest says"):
            ActivationStore.open(root)

    def test_changed_value_is_found_by_verify(self, root):
        shard = root / "shards/00000.npy"
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        with pytest.raises(ValueError, match="sha256"):
            ActivationStore.open(root).verify()

    def test_changed_problems(self, root):
        file = root / "problems.jsonl"
        file.write_text(file.read_text().replace("How many", "Why many"))
        with pytest.raises(ValueError, match=r"problems\.jsonl has sha256"):
            ActivationStore.open(root)

    def test_shape_that_is_not_the_manifests(self, root):
        file = root / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["shards"][0]["shape"][2] = 5
        file.write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match="holds float32.*the manifest says"):
            _ = ActivationStore.open(root).select(2, 0).activations

    @pytest.mark.parametrize(
        "key",
        [
            "finished",
            "model",
            "layers",
            "positions",
            "dtype",
            "d_in",
            "settings",
            "problems",
            "problems.bytes",
            "problems.sha256",
            "num_problems",
            "shard_size",
            "shards",
            "shards.0.shape",
            "shards.0.rows_per_problem",
            "shards.0.bytes",
            "shards.0.sha256",
        ],
    )
    def test_a_key_that_is_missing_or_of_another_type_is_named(self, root, key):
        file = root / "manifest.json"
        whole = file.read_text()
        named = key.replace("shards.0", r"shards\[0\]")
        for change in ("missing", "wrong"):
            manifest = record = json.loads(whole)
            *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
            for part in parents:
                record = record[part]
            found = "no"
            if change == "missing":
                del record[last]
            else:
                record[last] = 1.5
                found = "1.5 as"
            file.write_text(json.dumps(manifest))
            with pytest.raises(ValueError, match=rf"manifest\.json has {found} {named}; expected"):
                ActivationStore.open(root)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("finished", 1, "has 1 as finished; expected true or false"),
            ("layers", [0, "1"], r"has \[0, '1'\] as layers; expected a list of integers"),
            ("d_in", True, "has True as d_in; expected an integer"),
            ("dtype", "int8", "has 'int8' as dtype; expected float16 or float32"),
            ("shards", [{"shape": [2, 2, 4, 3, 1], "rows_per_problem": None}], LIST_OF_4),
            ("shards", [3], r"has 3 as shards\[0\]; expected an object"),
            ("layers", [2, 5, 7], r"has shards\[0\] of shape .*; expected \[3, 2, rows, 3\]"),
            ("d_in", 4, r"has shards\[0\] of shape .*; expected \[2, 2, rows, 4\]"),
        ],
    )
    def test_values_that_are_not_a_stores(self, root, key, value, message):
        file = root / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
        with pytest.raises(ValueError, match=message):
            ActivationStore.open(root)

    def test_rows_of_problems_that_do_not_add_up(self, root):
        file = root / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["shards"][0]["rows_per_problem"] = [1, 1, 1, 2]
        file.write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=r"has 5 rows of problems in shards\[0\]; .* 4 rows"):
            ActivationStore.open(root)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"schema_version": 99}', "has schema_version 99; this reads 1$"),
            ("[]", "has schema_version None; this reads 1$"),
            ("{", "is not valid JSON: Expecting property name"),
            ('{"schema_version": 1}', "has no finished; expected true or false$"),
        ],
    )
    def test_what_is_no_manifest(self, root, text, message):
        (root / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=rf"manifest\.json {message}"):
            ActivationStore.open(root)

    def test_no_store(self, tmp_path):
        with pytest.raises(ValueError, match="no activation store at"):
            ActivationStore.open(tmp_path / "elsewhere")


class TestWriting:
    PLAN = StorePlan("tiny", [2], [0], 1, make_problems(5), {"feedback": "soft"}, shard_size=2)

    def write(self, writer, shards):
        for shard in shards:
            writer.write_shard(shard, np.full(self.PLAN.shard_shape(shard), shard + 0.5))

    def test_an_unfinished_store_is_not_opened(self, tmp_path):
        StoreWriter(tmp_path, self.PLAN).prepare()
        with pytest.raises(ValueError, match="unfinished; .* --resume"):
            ActivationStore.open(tmp_path)

    def test_a_resumed_store_has_the_bytes_of_an_uninterrupted_one(self, tmp_path):
        whole, resumed = tmp_path / "whole", tmp_path / "resumed"
        for root in (whole, resumed):
            root.mkdir()
        writer = StoreWriter(whole, self.PLAN)
        writer.prepare()
        self.write(writer, writer.missing_shards())
        writer.finish()

        interrupted = StoreWriter(resumed, self.PLAN)
        interrupted.prepare()
        self.write(interrupted, [1])
        (resumed / "shards/00002.npy.tmp").write_bytes(b"half a shard")
        again = StoreWriter(resumed, self.PLAN)
        again.prepare(resume=True)
        assert again.missing_shards() == [0, 2]
        with pytest.raises(ValueError, match=r"misses shards \[0, 2\]"):
            again.finish()
        self.write(again, [0, 2])
        again.finish()

        files = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
        assert sorted(files) == sorted(
            p.relative_to(resumed) for p in resumed.rglob("*") if p.is_file()
        )
        for file in files:
            assert (whole / file).read_bytes() == (resumed / file).read_bytes()

    def test_a_folder_with_a_run_is_left_alone(self, tmp_path):
        store = write_store(tmp_path, make_arrays(4), make_problems(4))
        with pytest.raises(ValueError, match="finished store.*--resume.*--overwrite"):
            StoreWriter(tmp_path, self.PLAN).prepare()
        with pytest.raises(ValueError, match="another d_in: 3 there, 1 now"):
            StoreWriter(tmp_path, self.PLAN).prepare(resume=True)
        store.verify()

    def test_overwrite_replaces_a_store(self, tmp_path):
        write_store(tmp_path, make_arrays(700), make_problems(700))
        store = write_store(tmp_path, make_arrays(4), make_problems(4), overwrite=True)
        assert store.num_rows == 4
        assert [p.name for p in (tmp_path / "shards").iterdir()] == ["00000.npy"]

    def test_a_folder_that_is_no_store_is_never_replaced(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError, match=r"thesis\.tex.*no store"):
                StoreWriter(tmp_path, self.PLAN).prepare(**options)
        assert (tmp_path / "thesis.tex").read_text() == "years of work"

    def test_a_second_writer_is_refused(self, tmp_path):
        with lock(tmp_path), pytest.raises(ValueError, match="another process"), lock(tmp_path):
            pass
        with lock(tmp_path):
            pass

    def test_a_value_beyond_the_storage_dtype_is_refused(self, tmp_path):
        writer = StoreWriter(tmp_path, self.PLAN)
        writer.prepare()
        with pytest.raises(ValueError, match="70000.0 at layer 2, position 0, row 1.*float32"):
            writer.write_shard(0, np.array([1, 70000.0]).reshape(1, 1, 2, 1))
        assert writer.missing_shards() == [0, 1, 2]

    def test_a_full_disk_leaves_a_resumable_store(self, tmp_path, monkeypatch):
        writer = StoreWriter(tmp_path, self.PLAN)
        writer.prepare()
        self.write(writer, [0])

        def no_space(*args, **kwargs):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(np, "save", no_space)
            with pytest.raises(OSError, match="No space left"):
                self.write(writer, [1])
        assert [p.name for p in (tmp_path / "shards").iterdir()] == ["00000.npy"]
        writer.prepare(resume=True)
        assert writer.missing_shards() == [1, 2]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dtype": "int8"}, "storage dtype is 'int8'"),
            ({"layers": []}, "at least one of its layers"),
            ({"positions": [1, 1]}, "name one twice"),
            ({"shard_size": 0}, "shard_size is 0"),
        ],
    )
    def test_wrong_plans(self, change, message):
        arguments = {
            "model": "tiny",
            "layers": [0],
            "positions": [0],
            "d_in": 1,
            "problems": make_problems(1),
        }
        with pytest.raises(ValueError, match=message):
            StorePlan(**{**arguments, **change})


def test_write_store_names_what_does_not_fit(tmp_path):
    arrays = make_arrays(4)
    with pytest.raises(ValueError, match=r"\(4, 3\); expected \(5, 3\)"):
        write_store(tmp_path, arrays, make_problems(5))
    del arrays[5, 0]
    with pytest.raises(ValueError, match=r"\[\(5, 0\)\] are missing"):
        write_store(tmp_path, arrays, make_problems(4))
