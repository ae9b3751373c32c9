"""The device programs lower for accelerators from a machine that has none."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_jax.evaluate import _group_metrics
from sae_jax.sweep.step import Hyperparameters, init_group, train_epoch

NUM_MEMBERS, N, D_IN, WIDTH, BATCH_SIZE = 3, 70, 48, 32, 16

HYPER = Hyperparameters(
    seed=jax.ShapeDtypeStruct((NUM_MEMBERS,), jnp.uint32),
    d_sae=jax.ShapeDtypeStruct((NUM_MEMBERS,), jnp.int32),
    k=jax.ShapeDtypeStruct((NUM_MEMBERS,), jnp.int32),
    learning_rate=jax.ShapeDtypeStruct((NUM_MEMBERS,), jnp.float32),
)


def abstract_state():
    return jax.eval_shape(lambda hyper: init_group(hyper, d_in=D_IN, width=WIDTH), HYPER)


def lowered(function, arguments, platform):
    """The program exported for a platform, as a function of flat arguments."""
    leaves, structure = jax.tree.flatten(arguments)

    def flat(*leaves):
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    exported = jax.export.export(jax.jit(flat), platforms=(platform,))(*leaves)
    assert exported.platforms == (platform,)
    assert exported.mlir_module_serialized.startswith(b"ML\xefR")  # MLIR bytecode
    return exported


@pytest.mark.parametrize("one_by_one", [False, True], ids=["vmap", "scan"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_epoch_lowers(platform, dtype, one_by_one):
    state = abstract_state()
    arguments = (
        state,
        HYPER,
        jax.ShapeDtypeStruct((N, D_IN), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    exported = lowered(
        lambda *a: train_epoch(*a, batch_size=BATCH_SIZE, dtype=dtype, one_by_one=one_by_one),
        arguments,
        platform,
    )
    *new_state, losses = exported.out_avals
    assert [leaf.shape for leaf in new_state] == [leaf.shape for leaf in jax.tree.leaves(state)]
    assert losses.shape == (5, NUM_MEMBERS)

    operand = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    products = [
        re.findall(r"x([a-z]+[0-9]+)>", line.rpartition(" : ")[2])
        for line in exported.mlir_module().splitlines()
        if "stablehlo.dot_general" in line
    ]
    assert products
    assert all(types == [operand, operand, "f32"] for types in products), products


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_initialization_and_evaluation_lower(platform):
    lowered(lambda hyper: init_group(hyper, d_in=D_IN, width=WIDTH), (HYPER,), platform)
    arguments = (
        abstract_state().params,
        HYPER.k,
        HYPER.d_sae,
        jax.ShapeDtypeStruct((2, 40, D_IN), jnp.float32),
        jax.ShapeDtypeStruct((2, 40), np.bool_),
    )
    exported = lowered(_group_metrics, arguments, platform)
    assert (NUM_MEMBERS, WIDTH) in [leaf.shape for leaf in exported.out_avals]
