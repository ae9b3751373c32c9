import jax
import numpy as np
import pytest

import sae_jax
from sae_jax.architectures.initialization import init_params
from sae_jax.features.untrained import untrained


def test_directions_are_those_of_the_seed():
    configs = sae_jax.grid(d_sae=[6, 9], k=2, seed=[0, 4])
    for config, sae in zip(configs, untrained(configs, 5), strict=True):
        drawn = init_params(jax.random.key(config.seed), 5, config.d_sae, config.d_sae)
        for name, array in sae.params.items():
            np.testing.assert_array_equal(array, drawn[name])


@pytest.mark.parametrize("architecture", ["batch_topk", "jumprelu", "gated", "relu"])
def test_they_are_what_a_step_of_no_length_leaves(architecture):
    sparsity = {"k": 2} if architecture == "batch_topk" else {"target_l0": 2.0}
    # A frozen decoder stays as it was drawn, and so is one after any number of steps.
    config = sae_jax.SAEConfig(d_sae=6, architecture=architecture, frozen="decoder", **sparsity)
    x = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
    trained = sae_jax.train_sweep([config], x, x, sae_jax.TrainConfig(epochs=1), progress=False)
    (sae,) = untrained([config], 5)
    np.testing.assert_array_equal(sae.w_dec[...], trained.sae(0).w_dec[...])
    assert not np.array_equal(sae.w_enc, trained.sae(0).w_enc)
