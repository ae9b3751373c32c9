"""The device programs lower for accelerators from a machine that has none."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyperparameters import TEMPLATE, hyperparameters

from sae_jax.architectures.initialization import init_params
from sae_jax.architectures.topk import TopKSAE
from sae_jax.metrics.evaluate import group_coherence, group_sums
from sae_jax.sweep.batches import Batches, Samples
from sae_jax.sweep.step import Program, init_group, train_epoch

NUM_MEMBERS, N, D_IN, WIDTH, BATCH_SIZE = 3, 70, 48, 32, 16

HYPER = jax.eval_shape(lambda: hyperparameters(*[(WIDTH, 4, 0, 1e-3)] * NUM_MEMBERS))
CENTER = jax.ShapeDtypeStruct((D_IN,), jnp.float32)
STEP = jax.ShapeDtypeStruct((), jnp.int32)


def abstract_state(program):
    init = partial(init_group, program=program, d_in=D_IN, width=WIDTH)
    return jax.eval_shape(init, HYPER, CENTER)


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
    "vmap": {"sequential": False},
    "scan": {"sequential": True},
    "firing_rows": {"sequential": True, "kernel": "firing_rows"},
    "selected_rows": {"sequential": True, "kernel": "selected_rows", "k_max": 4},
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
    program = Program(TEMPLATE, dtype=dtype, **KERNELS[kernel])
    state = abstract_state(program)
    num_full, num_rest = divmod(N, BATCH_SIZE)
    batches = Batches(
        Samples(jax.ShapeDtypeStruct((num_full, BATCH_SIZE, D_IN), jnp.float32)),
        Samples(jax.ShapeDtypeStruct((num_rest, D_IN), jnp.float32)),
    )
    epoch = partial(train_epoch, program=program)
    exported = lowered(epoch, (state, HYPER, batches, STEP), platform)
    *new_state, losses = exported.out_avals
    assert [leaf.shape for leaf in new_state] == [leaf.shape for leaf in jax.tree.leaves(state)]
    assert losses.shape == (5, NUM_MEMBERS)
    for types, precision in products(exported):
        # Rows that the sparse kernel gathers stay float32, rounded to bfloat16 by hand.
        by_hand = kernel == "selected_rows" and types == ["f32", "f32", "f32"]
        operand = "bf16" if dtype == "bfloat16" and not by_hand else "f32"
        assert types == [operand, operand, "f32"]
        assert precision == (PRECISION[dtype], PRECISION[dtype])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_initialization_and_evaluation_lower(platform, default_precision):
    program = Program(TEMPLATE)
    lowered(partial(init_group, program=program, d_in=D_IN, width=WIDTH), (HYPER, CENTER), platform)
    arguments = (
        abstract_state(program).params,
        {},
        HYPER,
        jax.ShapeDtypeStruct((40, D_IN), jnp.float32),
        jax.ShapeDtypeStruct((40,), np.bool_),
        jax.ShapeDtypeStruct((40,), np.bool_),
    )
    exported_sums = lowered(partial(group_sums, template=TEMPLATE), arguments, platform)
    assert (NUM_MEMBERS, WIDTH) in [leaf.shape for leaf in exported_sums.out_avals]
    w_dec = arguments[0]["w_dec"]
    alive = jax.ShapeDtypeStruct((NUM_MEMBERS, WIDTH), np.bool_)
    exported = lowered(group_coherence, (w_dec, alive), platform)
    for types, precision in (*products(exported_sums), *products(exported)):
        assert types == ["f32", "f32", "f32"]
        assert precision == ("HIGHEST", "HIGHEST")


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_module_and_its_derivatives_lower_to_products_of_its_precision(
    platform, dtype, default_precision
):
    def values(x):
        sae = TopKSAE(init_params(jax.random.key(0), D_IN, WIDTH, WIDTH), 4, dtype=dtype)
        forward = jax.jvp(sae, (x,), (x,))
        return forward, jax.grad(lambda x: jnp.sum(sae(x) ** 2))(x)

    exported = lowered(values, (jax.ShapeDtypeStruct((N, D_IN), jnp.float32),), platform)
    assert {precision for _, precision in products(exported)} == {(PRECISION[dtype],) * 2}
