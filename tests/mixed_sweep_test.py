"""One sweep of all architectures, many recipes and two data slices: each member as if alone."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import D_IN, quietly, samples

from sae_jax import SAEConfig, TrainConfig
from sae_jax.architectures.functional import initial
from sae_jax.architectures.registry import ARCHITECTURES
from sae_jax.metrics.evaluate import evaluate_group
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.scores import widened

RUN = {"epochs": 4, "batch_size": 32, "max_padding": 0.4}
# The slices are centered and scaled unlike each other; 110 samples leave a smaller last batch.
DATA = {(3, 1): samples(110), (7, 2): 0.2 * samples(110, seed=1) - 1.0}
AUX = {"aux_coefficient": 0.5, "dead_after": 64}
RECIPES = [
    {
        "architecture": "abs_topk",
        "k": 4,
        "normalize": "center_and_scale",
        "warmup_steps": 3,
        "decay_steps": 4,
        "weight_average": 0.9,
    },
    {"architecture": "topk", "k": 3, "normalize": "center", "tied_init": True, **AUX},
    {
        "architecture": "batch_topk",
        "k": 4,
        "preset": "saelens",
        "center_input": True,
        "b_dec_init": "geometric_median",
        "clip_norm": 1.0,
        **AUX,
    },
    {
        "architecture": "matryoshka",
        "k": 3,
        "prefix_fractions": (0.25, 0.5, 1.0),
        "center_input": True,
        "b_dec_init": "mean",
        "unit_decoder": True,
        "k_anneal_steps": 5,
        **AUX,
    },
    {"architecture": "jumprelu", "target_l0": 4.0, "weight_average": 0.5},
    {
        "architecture": "gated",
        "sparsity_coefficient": 0.1,
        "center_input": True,
        "frozen": "encoder",
    },
    {
        "architecture": "relu",
        "sparsity_coefficient": 0.1,
        "sparsity_warmup_steps": 5,
        "normalize": "layer_norm",
        "frozen": "decoder",
    },
]
# Of each recipe two members, which train together and of which the narrower is padded.
CONFIGS = [
    SAEConfig(d_sae, seed=d_sae, learning_rate=rate, layer=layer, position=position, **recipe)
    for i, recipe in enumerate(RECIPES)
    for layer, position in [list(DATA)[i % 2]]
    for d_sae, rate in ((24, 1e-3), (17, 3e-3))
]


@pytest.fixture(scope="module")
def together():
    return quietly(CONFIGS, DATA, DATA, **RUN)


@functools.cache
def alone(config):
    return quietly([config], DATA, DATA, **RUN).members[0]


def test_the_sweep_has_all_architectures_and_pads_every_second_member():
    assert {config.architecture for config in CONFIGS} == set(ARCHITECTURES)
    assert len({config.template for config in CONFIGS}) == len(RECIPES)
    assert {config.data_slice for config in CONFIGS} == set(DATA)
    assert all(x.shape == (110, D_IN) for x in DATA.values())


@settings(max_examples=3, deadline=None)
@given(i=st.integers(0, len(CONFIGS) - 1))
def test_a_member_equals_its_solo_run(together, i):
    member, solo = together.members[i], alone(CONFIGS[i])
    assert member.config == CONFIGS[i]
    np.testing.assert_allclose(member.losses, solo.losses, rtol=1e-4)
    assert sorted(member.params) == sorted(solo.params)
    for name, param in solo.params.items():
        bound = 1e-3 * np.abs(param).max()
        np.testing.assert_allclose(member.params[name], param, rtol=0, atol=bound, err_msg=name)
    assert member.metrics["fvu"] == pytest.approx(solo.metrics["fvu"], rel=1e-3)
    x = DATA[CONFIGS[i].data_slice]
    np.testing.assert_allclose(member.sae()(x), solo.sae()(x), atol=2e-2)


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_bfloat16_at_widths_where_xla_folds_a_transpose_into_a_product(architecture):
    x = samples(600, d_in=576)
    config = SAEConfig(512, architecture=architecture, target_l0=50.0)
    rounded, exact = (
        quietly([config], x, x[:50], epochs=1, compute_dtype=dtype).members[0].losses
        for dtype in ("bfloat16", "float32")
    )
    np.testing.assert_allclose(rounded, exact, rtol=0.05)


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe["architecture"] for recipe in RECIPES])
def test_latents_of_zeros_change_no_score(recipe):
    config, x = SAEConfig(17, **recipe), samples(110)
    of_group = hyperparameters([config], TrainConfig(), num_samples=len(x), d_in=D_IN)
    of_member = jax.tree.map(lambda column: column[0], of_group)
    arrays = initial(config.template, of_member, x[0], D_IN, 17)
    arrays = jax.tree.map(lambda array: array[None], arrays)
    scores = [
        evaluate_group(config.template, *each, of_group, x)[0]
        for each in (arrays, widened(arrays, template=config.template, num_latents=14))
    ]
    for name, value in scores[0].items():
        np.testing.assert_allclose(
            scores[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name, equal_nan=True
        )
    assert len(scores[1]["firing_rate"]) == 17
    assert 0 < scores[1]["l0"] < 17
