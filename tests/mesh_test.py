"""A sweep on several devices gives what it gives on one."""

import math

import pytest
from sweeps import quietly, samples
from virtual_devices import on_eight_devices

from sae_jax import SAEConfig, TrainConfig

ARCHITECTURES = ["abs_topk", "topk", "batch_topk", "matryoshka", "jumprelu", "gated", "relu"]
AXES = ["members:2", "data:2", "latents:2"]
PAIRS = ["members:2,data:2", "members:2,latents:2", "data:2,latents:2", "data:4,latents:2"]
ALL = "members:2,data:2,latents:2"


def assert_close(found):
    assert found["losses"] < 1e-5
    assert found["explained_variance"] < 5e-4


def test_a_mesh_of_all_axes_gives_the_result_of_one_device():
    (found,) = on_eight_devices("compare", "batch_topk", ALL).values()
    assert_close(found)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_the_result_of_one_device(architecture):
    for found in on_eight_devices("compare", architecture, *AXES, ALL).values():
        assert_close(found)


@pytest.mark.slow
def test_every_mesh_gives_the_result_of_one_device():
    for found in on_eight_devices("compare", "matryoshka", *PAIRS).values():
        assert_close(found)


def test_members_that_take_turns_come_out_the_same_on_any_number_of_devices():
    assert_close(on_eight_devices("in_turns"))


def test_streamed_samples_train_on_a_mesh_as_those_in_memory_do_on_one_device():
    assert_close(on_eight_devices("streamed", "members:2,data:2"))


def test_devices_tell_each_other_what_docs_say():
    axes = "members:2", "data:2", "latents:2"
    names = [f"{axis}@{dtype}" for dtype in ("float32", "bfloat16") for axis in axes]
    found = {name: sorted(sizes) for name, sizes in on_eight_devices("collectives", *names).items()}
    num_members, d_in, d_sae, batch_size = 2, 12, 24, 32
    assert found["members:2@float32"] == found["members:2@bfloat16"] == []
    # The gradients and the loss, once; beside them whether all samples of a member are done.
    *flags, gradients = found["data:2@float32"]
    assert gradients == num_members * (2 * d_in * d_sae + d_sae + d_in + 1)
    assert set(flags) == {num_members}
    # A CPU copies the samples, which all members share, and the gradients of reconstructions.
    copied = [batch_size * d_in, num_members * batch_size * d_in]
    assert found["data:2@bfloat16"] == [*flags, *copied, gradients]
    # Reconstructions; beside them counts for each sample.
    *counts, reconstructions = found["latents:2@float32"]
    assert reconstructions == num_members * batch_size * d_in
    assert set(counts) == {num_members * batch_size}
    # Which a CPU copies for a product in bfloat16.
    latents = num_members * batch_size * d_sae
    assert found["latents:2@bfloat16"] == [*counts, reconstructions, latents]


@pytest.mark.slow
def test_a_sweep_that_one_mesh_saved_is_resumed_on_another():
    meshes = "members:1", ALL, "members:4", "latents:8"
    found = on_eight_devices("resume", *meshes)
    assert len(found) == len(meshes)
    for differences in found:
        assert_close(differences)


def test_an_epoch_lowers_for_accelerators():
    pairs = [(architecture, ALL) for architecture in ARCHITECTURES]
    pairs += [("batch_topk", mesh) for mesh in (*AXES, *PAIRS)]
    found = on_eight_devices("lowering", *("@".join(pair) for pair in pairs))
    expected = [math.prod(int(axis[-1]) for axis in mesh.split(",")) for _, mesh in pairs]
    assert found == [[num_devices] * 2 for num_devices in expected]


def test_programs_of_each_device_are_given_no_arrays_without_entries():
    *programs, num_prefixes = on_eight_devices("without_entries")
    assert len(programs) == 3
    for num_shapes, empty in programs:
        assert num_shapes > 10
        assert empty == []
    assert num_prefixes == 0


def test_another_device_gives_the_same_bits():
    assert on_eight_devices("each_device") == [True]


def test_all_devices_go_to_members_and_accelerators_that_are_left_to_data():
    found = on_eight_devices("default_meshes")
    assert found[:6] == [[1, 8, 1], [2, 4, 1], [8, 1, 1], [8, 1, 1], [1, 4, 1], [1, 1, 1]]
    assert found[6:] == [[1, 1, 1], [3, 1, 1], [8, 1, 1], [8, 1, 1], [1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    "mesh", ["", "members", "members:0", "members:2,members:2", "rows:2", "data:2;latents:2", 2]
)
def test_another_mesh_is_refused_by_name(mesh):
    with pytest.raises(ValueError, match=r"mesh is .*; allowed are .* as 'members:4,data:2'"):
        TrainConfig(mesh=mesh)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="batch_size is 30; allowed is a multiple of 4"):
        TrainConfig(batch_size=30, mesh="data:4")


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"mesh is 'members:64', of 64 devices; there are 1:"):
        quietly([SAEConfig(8, 2)], samples(40), samples(20, seed=1), mesh="members:64")
