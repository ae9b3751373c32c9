"""Adam in one pass against that of Optax and that of PyTorch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import sae_jax
from sae_jax.ops import native
from sae_jax.sweep.adam import adam, adam_in_one_pass
from sae_jax.sweep.batches import InMemory
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.step import Program, epoch_program, init_group

pytestmark = pytest.mark.skipif(
    not native.is_built(), reason="the loops in C++ are not built: there was no compiler for them"
)


def test_steps_are_those_of_optax_and_pytorch():
    rng = np.random.default_rng(0)
    shapes = {"w": (70, 33), "b": (5,), "wide": (3, 30_000)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    by_torch = {name: torch.tensor(p, requires_grad=True) for name, p in params.items()}
    optimizer = torch.optim.Adam(by_torch.values(), lr=3e-3)
    by_optax, state = params, adam(3e-3).init(params)
    by_loop, loop_state = params, adam(3e-3).init(params)
    step = jax.jit(adam_in_one_pass)
    for scale in (1.0, 1e-3, 100.0, 1e-8, 1.0):
        gradient = {
            name: np.float32(scale) * rng.normal(size=p.shape) for name, p in params.items()
        }
        gradient = {name: g.astype(np.float32) for name, g in gradient.items()}
        by_loop, loop_state = step(by_loop, gradient, loop_state, jnp.float32(3e-3))
        with jax.numpy_dtype_promotion("standard"):
            updates, state = adam(3e-3).update(gradient, state)
        by_optax = optax.apply_updates(by_optax, updates)
        for name, parameter in by_torch.items():
            parameter.grad = torch.tensor(gradient[name])
        optimizer.step()
    assert jax.tree.structure(state) == jax.tree.structure(loop_state)
    assert int(loop_state[0].count) == 5
    for name in params:
        np.testing.assert_allclose(by_loop[name], by_optax[name], rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(by_loop[name], by_torch[name].detach(), rtol=1e-5, atol=1e-6)
        for moment in ("mu", "nu"):
            expected = getattr(state[0], moment)[name]
            found = getattr(loop_state[0], moment)[name]
            largest = float(jnp.abs(expected).max())
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7 * largest)


@pytest.mark.parametrize("kernel", ["dense", "selected_rows"])
def test_no_step_copies_a_dictionary(kernel):
    x = np.random.default_rng(0).normal(size=(96, 24)).astype(np.float32)
    configs = sae_jax.grid(d_sae=40, k=3, seed=range(2))
    train_config = sae_jax.TrainConfig(batch_size=32)
    program = Program(
        configs[0].template,
        kernel=kernel,
        k_max=3 if kernel == "selected_rows" else None,
        sequential=True,
    )
    hyper = jax.tree.map(jnp.asarray, hyperparameters(configs, train_config, len(x), x.shape[1]))
    state = init_group(hyper, x.mean(0), program=program, d_in=24, width=40)
    (batches,) = InMemory(x, 32, Placement.default(), None).parts(0, 0, 1)
    compiled = epoch_program(program).lower(state, hyper, batches, 0, program=program).compile()
    # One member's encoder, decoder or moment of it; those of both enter and leave the program.
    assert "sae_jax_adam" in compiled.as_text()
    assert not re.findall(r"= f32\[40,24\]\S* copy\(.*", compiled.as_text())
