"""The device programs lower for accelerators from a machine that has none."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_jax.architectures.topk import TopKSAE
from sae_jax.metrics.evaluate import _group_metrics
from sae_jax.sweep.step import (
    Hyperparameters,
    init_group,
    train_epoch,
    with_encoders_transposed,
)

NUM_MEMBERS, N, D_IN, WIDTH, BATCH_SIZE = 3, 70, 48, 32, 16

HYPER = Hyperparameters(
    seed=jax.ShapeDtypeStruct((NUM_MEMBERS,), jnp.uint32),
    d_sae=jax.ShapeDtypeStruct((NUM_MEMBERS,), jnp.int32),
    k=jax.ShapeDtypeStruct((NUM_MEMBERS,), jnp.int32),
    learning_rate=jax.ShapeDtypeStruct((NUM_MEMBERS,), jnp.float32),
    data_seed=jax.ShapeDtypeStruct((NUM_MEMBERS,), jnp.uint32),
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


PRECISION = {"float32": "HIGHEST", "tf32": "HIGH", "bfloat16": "DEFAULT"}
KERNELS = {
    "vmap": {"one_by_one": False},
    "scan": {"one_by_one": True},
    "compact": {"one_by_one": True, "path": "compact"},
    "sparse": {"one_by_one": True, "path": "sparse", "k_max": 4},
}


def products(exported):
    """Of every matrix product: the types of operands and result, and the operands' precision."""
    lines = [
        line for line in exported.mlir_module().splitlines() if "stablehlo.dot_general" in line
    ]
    assert lines
    assert not any("algorithm" in line for line in lines), "it would override the precision"
    for line in lines:
        precision = re.search(r"precision = \[(\w+), (\w+)\]", line)
        # The default is not written down.
        yield (
            re.findall(r"x([a-z]+[0-9]+)>", line.rpartition(" : ")[2]),
            precision.groups() if precision else ("DEFAULT", "DEFAULT"),
        )


@pytest.fixture(params=[None, "bfloat16", "F32_F32_F32"])
def default_precision(request):
    """What a program may have set for all products; it should not matter."""
    with jax.default_matmul_precision(request.param):
        yield


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_epoch_lowers_to_products_of_the_named_precision(platform, dtype, kernel):
    how = {"batch_size": BATCH_SIZE, "dtype": dtype, **KERNELS[kernel]}
    state = abstract_state()
    if "path" in how:
        state = jax.eval_shape(with_encoders_transposed, state)
    arguments = (
        state,
        HYPER,
        jax.ShapeDtypeStruct((N, D_IN), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    exported = lowered(lambda *a: train_epoch(*a, **how), arguments, platform)
    *new_state, losses = exported.out_avals
    assert [leaf.shape for leaf in new_state] == [leaf.shape for leaf in jax.tree.leaves(state)]
    assert losses.shape == (5, NUM_MEMBERS)
    for types, precision in products(exported):
        # Rows that the sparse kernel gathers stay float32, rounded to bfloat16 by hand.
        by_hand = kernel == "sparse" and types == ["f32", "f32", "f32"]
        operand = "bf16" if dtype == "bfloat16" and not by_hand else "f32"
        assert types == [operand, operand, "f32"]
        assert precision == (PRECISION[dtype], PRECISION[dtype])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_initialization_and_evaluation_lower(platform, default_precision):
    lowered(lambda hyper: init_group(hyper, d_in=D_IN, width=WIDTH), (HYPER,), platform)
    arguments = (
        abstract_state().params,
        HYPER.k,
        HYPER.d_sae,
        jax.ShapeDtypeStruct((2, 40, D_IN), jnp.float32),
        jax.ShapeDtypeStruct((2, 40), np.bool_),
        jax.ShapeDtypeStruct((2, 40), np.bool_),
    )
    exported = lowered(_group_metrics, arguments, platform)
    assert (NUM_MEMBERS, WIDTH) in [leaf.shape for leaf in exported.out_avals]
    for types, precision in products(exported):
        assert types == ["f32", "f32", "f32"]
        assert precision == ("HIGHEST", "HIGHEST")


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_module_and_its_derivatives_lower_to_products_of_its_precision(
    platform, dtype, default_precision
):
    def values(x):
        sae = TopKSAE.init(jax.random.key(0), D_IN, WIDTH, 4, dtype=dtype)
        forward = jax.jvp(sae, (x,), (x,))
        return forward, jax.grad(lambda x: jnp.sum(sae(x) ** 2))(x)

    exported = lowered(values, (jax.ShapeDtypeStruct((N, D_IN), jnp.float32),), platform)
    assert {precision for _, precision in products(exported)} == {(PRECISION[dtype],) * 2}
