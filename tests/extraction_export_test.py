import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file as save_torch_file
from torch.torch_version import TorchVersion

from sae_jax.activations.writer import write_store
from sae_jax.extraction.export import export_slice, import_published, import_slice
from sae_jax.problems import Problem

LAYERS, POSITIONS, NUM_PROBLEMS, D_IN = (3, 14), (0, 3, 5), 4, 2


def value(problem, layer, position):
    return 100 * layer + 10 * position + problem


def published_content(problems=range(NUM_PROBLEMS), seed=0):
    """The experiment's layout, its rows shuffled."""
    rows = [(p, layer, position) for p in problems for layer in LAYERS for position in POSITIONS]
    # Every problem first appears in order, as in the experiment; the rest is mixed.
    firsts = [(p, LAYERS[1], POSITIONS[1]) for p in problems]
    rest = [row for row in rows if row not in firsts]
    np.random.default_rng(seed).shuffle(rest)
    rows = firsts + [tuple(map(int, row)) for row in rest]
    return {
        "activations": torch.tensor([[value(*row), -value(*row)] for row in rows]).float(),
        "metadata": {
            "problem_ids": [f"gsm8k_{p}" for p, _, _ in rows],
            "layers": [layer for _, layer, _ in rows],
            "positions": [position for _, _, position in rows],
            "cot_sequences": [[f"{p}+1={p + 1}", f"{p}*2={2 * p}"] for p, _, _ in rows],
        },
    }


def test_shuffled_rows_give_the_right_slices(tmp_path):
    torch.save(published_content(), tmp_path / "full_val_activations.pt")
    store = import_published([tmp_path / "full_val_activations.pt"], tmp_path / "store")
    assert store.layers == LAYERS
    assert store.positions == POSITIONS
    for layer in LAYERS:
        for position in POSITIONS:
            selection = store.select(layer, position)
            expected = [value(p, layer, position) for p in range(NUM_PROBLEMS)]
            np.testing.assert_array_equal(selection.activations[:, 0], expected)
            np.testing.assert_array_equal(-selection.activations[:, 1], expected)
    assert store.problems[2] == Problem("gsm8k_2", "", "", ("2+1=3", "2*2=4"))
    assert store.manifest["settings"] == {"imported_from": ["full_val_activations.pt"]}


def test_two_files_follow_one_another(tmp_path):
    torch.save(published_content(range(2)), tmp_path / "full_train_activations.pt")
    torch.save(published_content(range(2, 4), seed=1), tmp_path / "full_val_activations.pt")
    files = [tmp_path / f"full_{side}_activations.pt" for side in ("train", "val")]
    store = import_published(files, tmp_path / "store")
    assert [problem.id for problem in store.problems] == [f"gsm8k_{p}" for p in range(4)]
    np.testing.assert_array_equal(
        store.select(14, 3).activations[:, 0], [value(p, 14, 3) for p in range(4)]
    )


def test_a_missing_row_is_an_error(tmp_path):
    content = published_content()
    content["activations"] = content["activations"][:-1]
    for values in content["metadata"].values():
        values.pop()
    torch.save(content, tmp_path / "short.pt")
    with pytest.raises(ValueError, match=r"layer \d+, position \d has 3 of 4 problems"):
        import_published([tmp_path / "short.pt"], tmp_path / "store")


def test_a_repeated_row_is_an_error(tmp_path):
    torch.save(published_content(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="gsm8k_0 is there twice at layer 14, position 3"):
        import_published([tmp_path / "a.pt"] * 2, tmp_path / "store")


def test_metadata_of_another_length_is_an_error(tmp_path):
    content = published_content()
    content["metadata"]["layers"].pop()
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="24 activations and 23 layers; expected one a row"):
        import_published([tmp_path / "a.pt"], tmp_path / "store")


class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_with_code_in_it_is_refused(tmp_path, capsys):
    content = published_content()
    content["metadata"]["problem_ids"][0] = Payload()
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="tensors and plain values alone"):
        import_published([tmp_path / "evil.pt"], tmp_path / "store")
    assert "must never run" not in capsys.readouterr().out


def test_a_torch_that_may_run_code_reads_no_file(tmp_path, monkeypatch):
    torch.save(published_content(), tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.5.1+cpu"))
    with pytest.raises(
        ValueError, match=r"a\.pt is left unread: torch 2\.5\.1.*torch 2\.6 or newer"
    ):
        import_published([tmp_path / "a.pt"], tmp_path / "store")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0"))
    import_published([tmp_path / "a.pt"], tmp_path / "store")


@pytest.fixture
def selection(tmp_path):
    array = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    problems = [Problem(f"p{i}", "?") for i in range(5)]
    return write_store(tmp_path / "store", {(7, 2): array}, problems, model="tiny").select(7, 2)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_a_slice_goes_out_and_comes_back(tmp_path, selection, suffix):
    file = tmp_path / f"slice{suffix}"
    export_slice(selection, file)
    store = import_slice(file, tmp_path / "back", layer=7, position=2)
    np.testing.assert_array_equal(store.select(7, 2).activations, selection.activations)
    assert store.problems[4].id == "row-4"


def test_exported_files_are_read_by_their_own_libraries(tmp_path, selection):
    from safetensors import safe_open

    export_slice(selection, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["activations"], selection.activations)
        assert list(arrays["problem_ids"]) == ["p0", "p1", "p2", "p3", "p4"]
    export_slice(selection, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"model": "tiny", "layer": "7", "position": "2"}


def test_wrong_files(tmp_path, selection):
    with pytest.raises(ValueError, match=r"ends in '.csv'; allowed: .npy, .npz, .safetensors"):
        export_slice(selection, tmp_path / "a.csv")
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match=r"no array 'activations'; it has \['other'\]"):
        import_slice(tmp_path / "a.npz", tmp_path / "back", layer=0, position=0)
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"float64\[3\]; expected floats \[n, d_in\]"):
        import_slice(tmp_path / "a.npy", tmp_path / "back", layer=0, position=0)
    with pytest.raises(ValueError, match="a.npy exists"):
        export_slice(selection, tmp_path / "a.npy")


def save_slice(array, file):
    if file.suffix == ".npy":
        np.save(file, array)
    elif file.suffix == ".npz":
        np.savez(file, activations=array)
    else:
        bits = torch.from_numpy(array.view(np.int16).copy())
        save_torch_file({"activations": bits.view(torch.bfloat16)}, file)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_bfloat16_files_are_read_by_their_values(tmp_path, suffix):
    values = np.random.default_rng(0).standard_normal((5, 3)).astype(ml_dtypes.bfloat16)
    file = tmp_path / f"slice{suffix}"
    save_slice(values, file)
    store = import_slice(file, tmp_path / "store", layer=7, position=2)
    np.testing.assert_array_equal(store.select(7, 2).activations, values.astype(np.float32))


def test_float64_and_big_endian_files_are_read_by_their_values(tmp_path):
    values = np.arange(6.0).reshape(2, 3)
    for dtype in (">f4", "<f8", ">f2"):
        np.save(tmp_path / "a.npy", values.astype(dtype))
        store = import_slice(
            tmp_path / "a.npy", tmp_path / "store", layer=0, position=0, overwrite=True
        )
        np.testing.assert_array_equal(store.select(0, 0).activations, values)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), ml_dtypes.float8_e4m3fn), r"dtype \|V1 \(float8 types are saved so\)"),
        (np.zeros((2, 3), ml_dtypes.float8_e5m2), "cannot be read: .*<f1"),
        (np.zeros((2, 3), "V4"), r"dtype \|V4; expected float16, bfloat16"),
        (np.zeros((2, 3), [("a", "i1"), ("b", "i1")]), "dtype .*; expected float16, bfloat16"),
        (np.zeros((2, 3), complex), "dtype complex128; expected float16"),
        (np.zeros((2, 3), int), "dtype int64; expected float16"),
        (np.zeros((2, 3), object), "cannot be read: .*(allow_pickle|Python objects)"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_that_are_no_floats_are_refused_by_name(tmp_path, array, message, suffix):
    file = tmp_path / f"a{suffix}"
    save_slice(array, file)
    with pytest.raises(ValueError, match=rf"a\{suffix} .*{message}"):
        import_slice(file, tmp_path / "store", layer=0, position=0)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int32", "complex64"])
def test_tensors_that_are_no_floats_are_refused_by_name(tmp_path, dtype):
    tensor = torch.zeros(2, 3).to(getattr(torch, dtype))
    save_torch_file({"activations": tensor}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=rf"a\.safetensors has dtype {dtype}; expected float16"):
        import_slice(tmp_path / "a.safetensors", tmp_path / "store", layer=0, position=0)
    content = published_content()
    content["activations"] = content["activations"].to(tensor.dtype)
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"'activations' has dtype {dtype}; expected float16"):
        import_published([tmp_path / "a.pt"], tmp_path / "store")


def test_published_tensors_may_be_bfloat16_or_need_a_gradient(tmp_path):
    content = published_content()
    expected = content["activations"].bfloat16().float().numpy()
    content["activations"] = content["activations"].bfloat16().requires_grad_()
    torch.save(content, tmp_path / "a.pt")
    store = import_published([tmp_path / "a.pt"], tmp_path / "store")
    rows = [
        row
        for row, (layer, position) in enumerate(
            zip(content["metadata"]["layers"], content["metadata"]["positions"], strict=True)
        )
        if (layer, position) == (14, 3)
    ]
    found = store.select(14, 3).activations
    assert {tuple(row) for row in found} == {tuple(row) for row in expected[rows]}


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_a_cut_off_file_is_named(tmp_path, selection, suffix):
    file = tmp_path / f"slice{suffix}"
    export_slice(selection, file)
    whole = file.read_bytes()
    for size in (0, 10, len(whole) - 30):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"slice\{suffix} (is no whole|cannot be read)"):
            import_slice(file, tmp_path / "back", layer=7, position=2)
