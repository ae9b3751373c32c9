"""Latents by programs that SAEs share, against what each SAE says itself."""

import jax
import numpy as np
import pytest
from sweeps import samples

from sae_jax.configs import SAEConfig
from sae_jax.features import encoding
from sae_jax.features.encoding import latents_of, sparse_latents
from sae_jax.features.untrained import untrained

D_IN = 24
CONFIGS = [
    SAEConfig(17, k=4),
    SAEConfig(17, k=4, architecture="topk"),
    SAEConfig(17, k=4, architecture="batch_topk"),
    SAEConfig(17, k=4, architecture="matryoshka", prefix_fractions=(0.5, 1.0)),
    SAEConfig(17, architecture="jumprelu", sparsity_coefficient=0.1),
    SAEConfig(17, architecture="relu", sparsity_coefficient=0.1),
    SAEConfig(17, architecture="gated", sparsity_coefficient=0.1),
    SAEConfig(17, k=4, architecture="topk", preset="saelens", center_input=True),
]


@pytest.fixture
def x():
    return samples(31, d_in=D_IN)


@pytest.mark.parametrize("width", [None, 17, 40])
@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_latents_are_those_of_the_sae_whatever_it_is_padded_to(config, width, x):
    (sae,) = untrained([config], D_IN)
    expected = np.asarray(sae.encode(x))
    assert (expected != 0).any()
    np.testing.assert_allclose(latents_of(sae, x, width), expected, rtol=1e-6, atol=1e-6)
    assert config.k is None or type(sae.k) is int  # It is as it was.


def test_saes_of_other_k_and_padded_ones_share_a_program(x):
    jax.clear_caches()
    configs = [SAEConfig(17, k=4), SAEConfig(17, k=9), SAEConfig(12, k=3)]
    for sae in untrained(configs, D_IN):
        latents_of(sae, x, 17)
    assert encoding._encoded._cache_size() == 1
    latents_of(sae, x)
    assert encoding._encoded._cache_size() == 2


def test_saes_of_other_prefixes_share_a_program(x):
    jax.clear_caches()
    nested = {"architecture": "matryoshka", "prefix_fractions": (0.5, 1.0)}
    for sae in untrained([SAEConfig(17, k=4, **nested), SAEConfig(12, k=4, **nested)], D_IN):
        latents_of(sae, x, 17)
    assert encoding._encoded._cache_size() == 1


def test_blocks_of_samples_are_put_together(monkeypatch, x):
    monkeypatch.setattr(encoding, "_BLOCK", 8)
    (sae,) = untrained([SAEConfig(17, k=4)], D_IN)
    expected = np.asarray(sae.encode(x))
    np.testing.assert_allclose(sparse_latents(sae, x).toarray(), expected, rtol=1e-6, atol=1e-6)
