"""Sweeps on eight virtual devices.

`mesh_test.py` runs this in a process of its own, since JAX fixes the number of devices when it
starts. A case prints what it finds as JSON.
"""

import json
import math
import re
import sys
import tempfile
from functools import partial
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from hyperparameters import hyperparameters
from random_saes import random_topk
from sweeps import samples

from sae_jax import SAEConfig, TrainConfig, train_sweep
from sae_jax.sweep.batches import Batches, Samples
from sae_jax.sweep.placement import Placement, share
from sae_jax.sweep.step import Program, epoch_program, init_group

D_IN, D_SAE, BATCH_SIZE = 12, 24, 32
# Ten steps an epoch, the last of them smaller than the others.
X, X_VAL = samples(300, D_IN), samples(77, D_IN, seed=1)

AUX_K = {"aux_coefficient": 1 / 32, "dead_after": 40}
FIELDS = {
    "abs_topk": {"k": 3, **AUX_K},
    "topk": {"k": 3, "preset": "saelens", **AUX_K},
    "batch_topk": {"k": 3, **AUX_K},
    "matryoshka": {"k": 3, "prefix_fractions": (0.3, 0.6, 1.0)},
    "jumprelu": {"target_l0": 3.0},
    "gated": {"target_l0": 3.0, "unit_decoder": True},
    "relu": {"target_l0": 3.0, "weight_average": 0.9, "normalize": "center_and_scale"},
}


def members(architecture, num_members=3, **fields):
    """Of different sizes, so that some are padded; an odd number, so that devices are filled up."""
    fields = FIELDS[architecture] | fields
    return [
        SAEConfig(D_SAE - i, seed=i, architecture=architecture, **fields)
        for i in range(num_members)
    ]


def trained(configs, mesh, epochs=2, kernel="auto", stream=None, **arguments):
    train_config = TrainConfig(
        epochs, BATCH_SIZE, max_padding=0.5, mesh=mesh, kernel=kernel, stream=stream
    )
    return train_sweep(configs, X, X_VAL, train_config, progress=False, **arguments)


def differences(result, expected):
    """Largest relative difference of a loss, and largest one of EV."""
    pairs = [*zip(result.members, expected.members, strict=True)]
    losses = [(a.losses, b.losses) for a, b in pairs]
    variances = [
        (a.metrics["explained_variance"], b.metrics["explained_variance"]) for a, b in pairs
    ]
    return {
        "losses": float(max(np.max(np.abs(a - b) / np.abs(b)) for a, b in losses)),
        "explained_variance": max(abs(a - b) for a, b in variances),
    }


def compare(architecture, *meshes):
    """Each mesh beside a single device."""
    configs = members(architecture)
    expected = trained(configs, "members:1")
    return {mesh: differences(trained(configs, mesh), expected) for mesh in meshes}


def in_turns():
    """Members that take turns, on a single device and spread."""
    configs = members("topk", 5, aux_coefficient=0.0, preset=None)
    expected = trained(configs, "members:1", kernel="firing_rows")
    return differences(trained(configs, "members:4", kernel="firing_rows"), expected)


def streamed(mesh):
    """Samples that are read while members train on a mesh, beside those in one device's memory."""
    configs = members("batch_topk")
    expected = trained(configs, "members:1", stream=False)
    return differences(trained(configs, mesh, stream=True), expected)


class Stopped(Exception):
    """What a callback raises to end a sweep."""


def stop(event):
    if event.kind == "epoch" and event.epoch == 2:
        raise Stopped


def resume(*meshes):
    """A sweep that was saved on each mesh and resumed on the one before it in the list."""
    configs = members("batch_topk", 3)
    expected = trained(configs, "members:1", epochs=4)
    for before, after in zip(meshes, meshes[1:] + meshes[:1], strict=True):
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = {"checkpoint_dir": folder, "checkpoint_every": 1}
            try:
                trained(configs, before, epochs=4, callbacks=[stop], **checkpoints)
            except Stopped:
                result = trained(configs, after, epochs=4, **checkpoints)
                yield differences(result, expected)


def collectives(*names):
    """What devices tell each other in an epoch of two members: the numbers in each message that
    the compiled program has, by mesh@dtype."""
    configs = members("topk", 2, aux_coefficient=0.0, preset=None)
    found = {}
    for name in names:
        mesh, dtype = name.split("@")
        placement = Placement.of(TrainConfig(batch_size=BATCH_SIZE, mesh=mesh), configs)
        program = Program(configs[0].template, dtype=dtype, placement=placement)
        found[name] = messages(lowered(program, num_members=2, num_rest=0).compile())
    return found


def messages(compiled, kinds="all-|collective-|reduce-scatter"):
    """The numbers in each message of these kinds."""
    named = rf"= (\S.*?) (?:{kinds})[\w-]*\("
    lines = compiled.as_text().splitlines()
    return [
        sum(math.prod(map(int, shape.split(","))) for shape in re.findall(r"\[([\d,]+)\]", m[1]))
        for line in lines
        if (m := re.search(named, line))
    ]


def costs(num_members, batch_size, d_in, width, *meshes):
    """What a device computes in a step, the numbers that devices add up, and the bytes that the
    epoch takes of each, by mesh."""
    num_members, *size = map(int, (num_members, batch_size, d_in, width))
    configs = members("topk", num_members, aux_coefficient=0.0, preset=None)
    found = {}
    for mesh in meshes:
        placement = Placement.of(TrainConfig(batch_size=size[0], mesh=mesh), configs)
        program = Program(configs[0].template, placement=placement)
        compiled = lowered(program, num_members, num_rest=0, size=size).compile()
        # XLA counts the body of the loop over steps once.
        flops = compiled.cost_analysis()["flops"]
        found[mesh] = flops, messages(compiled, "all-reduce"), memory_of(compiled)
    return found


def memory_of(compiled):
    """Bytes of a device that a program takes; what it is given up is not counted twice."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + results


def lowered(
    program,
    num_members,
    platform="cpu",
    num_full=2,
    num_rest=7,
    size=(BATCH_SIZE, D_IN, D_SAE),
):
    """The program of an epoch for a platform that need not be there, from shapes alone."""
    batch_size, d_in, width = size
    hyper = hyperparameters(*[(width, 3, 0, 1e-3)] * num_members)
    if program.template.prefix_fractions:
        sizes = jnp.full((num_members, len(program.template.prefix_fractions)), width, jnp.int32)
        hyper = hyper._replace(prefix_sizes=sizes)
    center = jnp.zeros(d_in, jnp.float32)
    state = jax.eval_shape(
        partial(init_group, program=program, d_in=d_in, width=width), hyper, center
    )
    samples_of = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    batches = Batches(
        Samples(samples_of((num_full, batch_size, d_in))), Samples(samples_of((num_rest, d_in)))
    )
    traced = epoch_program(program).trace(state, hyper, batches, 0, program=program)
    return traced.lower(lowering_platforms=(platform,))


def without_entries():
    """Of programs, the shapes of what each device sees its own part of: all, and those without an
    entry."""
    configs = members("topk", 2)
    placement = Placement.of(TrainConfig(mesh="members:2"), configs)
    program = Program(configs[0].template, placement=placement)
    hyper = placement.spread(hyperparameters(*[(D_SAE, 3, 0, 1e-3)] * 2))
    texts = [lowered(program, 2, num_full=num_full).as_text() for num_full in (2, 0)]
    texts.append(share.lower(hyper, 0, at_once=1, placement=placement).as_text())
    for text in texts:
        lines = re.findall(r"sdy\.manual_computation\(.*", text)
        shapes = [shape for line in lines for shape in re.findall(r"tensor<([^>]*)>", line)]
        yield [len(shapes), [shape for shape in shapes if re.search(r"(^|x)0x", shape)]]
    (none,) = {len(taken.prefix_sizes[0]) for _, taken in placement.shares(hyper, 1)}
    yield none


def lowering(*pairs):
    """How many devices the programs of an architecture on a mesh are for, on accelerators."""
    for pair in pairs:
        architecture, mesh = pair.split("@")
        configs = members(architecture, 2)
        placement = Placement.of(TrainConfig(batch_size=BATCH_SIZE, mesh=mesh), configs)
        program = Program(configs[0].template, placement=placement)
        texts = (lowered(program, 2, platform).as_text() for platform in ("cuda", "tpu"))
        yield [int(re.search(r"num_partitions = (\d+)", text)[1]) for text in texts]


def each_device():
    """Whether an encoder gives the same bits on the first and on the last device."""
    x, sae, found = X[:11], random_topk(0, D_IN, D_SAE, 3), []
    for device in (jax.devices()[0], jax.devices()[-1]):
        with jax.default_device(device):
            moved = type(sae)(jax.device_put(sae.params, device), 3)
            z = jax.jit(moved.encode)(jax.device_put(x, device))
            assert z.devices() == {device}
            found.append(np.asarray(z))
    yield np.array_equal(*found)


def compilations():
    """How often each program of two groups is compiled, on any thread."""
    names = ("init_group", "train_epoch", "group_sums", "group_coherence")
    found = dict.fromkeys(names, 0)

    def listen(event, _, fun_name="", **__):
        for name in names:
            found[name] += event.endswith("backend_compile_duration") and name in fun_name

    jax.monitoring.register_event_duration_secs_listener(listen)
    trained([*members("topk"), *members("abs_topk")], "members:2,data:2,latents:2", epochs=1)
    return found


def default_meshes():
    """The axes that a sweep gets of eight accelerators, and of eight cores, if it does not say."""
    accelerators = [SimpleNamespace(platform="gpu", process_index=0)] * 8
    for devices in (accelerators, jax.devices()):
        with mock.patch.object(jax, "devices", lambda devices=devices: devices):
            for num_members, batch_size in [(1, 32), (3, 32), (8, 32), (20, 32), (1, 12), (1, 7)]:
                configs = members("topk", num_members)
                yield Placement.of(TrainConfig(batch_size=batch_size), configs).shape


if __name__ == "__main__":
    case, *arguments = sys.argv[1:]
    found = globals()[case](*arguments)
    print(json.dumps(found if isinstance(found, dict) else list(found)))
