import dataclasses
import json

import numpy as np
import pytest

from sae_jax import SAEConfig, TrainConfig, grid


def test_defaults_are_the_published_recipe():
    assert SAEConfig(d_sae=512, k=50).learning_rate == 1e-3
    config = TrainConfig()
    assert (config.epochs, config.batch_size, config.compute_dtype) == (25, 256, "float32")


@pytest.mark.parametrize("k", [1, 7, 8])
def test_any_k_up_to_d_sae(k):
    assert SAEConfig(d_sae=8, k=k).k == k


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_sae": 8, "k": 9}, r"k is 9; allowed is 1 to d_sae = 8"),
        ({"d_sae": 8, "k": 0}, r"k is 0; allowed is 1 to d_sae = 8"),
        ({"d_sae": 8, "k": -1}, r"k is -1; allowed"),
        ({"d_sae": 0, "k": 1}, r"d_sae is 0; allowed is 1 or more"),
        ({"d_sae": 8, "k": 2, "seed": -1}, r"seed is -1; allowed is 0 to 2\*\*32 - 1"),
        ({"d_sae": 8, "k": 2, "seed": 2**32}, r"seed is 4294967296; allowed"),
        ({"d_sae": 8, "k": 2, "learning_rate": 0.0}, r"learning_rate is 0.0; allowed is a pos"),
        ({"d_sae": 8, "k": 2, "learning_rate": -1e-3}, r"learning_rate is -0.001; allowed"),
        ({"d_sae": 8, "k": 2, "learning_rate": float("nan")}, r"learning_rate is nan; allowed"),
        ({"d_sae": 8, "k": 2, "learning_rate": float("inf")}, r"learning_rate is inf; allowed"),
        ({"d_sae": 8.5, "k": 2}, r"d_sae is 8.5; allowed is an integer"),
        ({"d_sae": 8, "k": 2.0}, r"k is 2.0; allowed is an integer"),
        ({"d_sae": "8", "k": 2}, r"d_sae is '8'; allowed is an integer"),
        ({"d_sae": 8, "k": 2, "seed": None}, r"seed is None; allowed is an integer"),
        ({"d_sae": 8, "target_l0": 8.5}, r"target_l0 is 8.5; allowed is a number above 0, up to"),
        ({"d_sae": 8, "target_l0": 0}, r"target_l0 is 0.0; allowed is a number above 0"),
        ({"d_sae": 8, "aux_k": 9}, r"aux_k is 9; allowed is 1 to d_sae = 8"),
        ({"d_sae": 8, "dead_after": 0}, r"dead_after is 0; allowed is 1 or more samples"),
        ({"d_sae": 8, "sparsity_coefficient": 0.0}, r"sparsity_coefficient is 0.0; allowed is a"),
        ({"d_sae": 8, "bandwidth": -1.0}, r"bandwidth is -1.0; allowed is a positive number"),
        ({"d_sae": 8, "clip_norm": float("inf")}, r"clip_norm is inf; allowed is a positive"),
        ({"d_sae": 8, "warmup_steps": -1}, r"warmup_steps is -1; allowed is 0 or more"),
        ({"d_sae": 8, "decay_steps": 0.5}, r"decay_steps is 0.5; allowed is an integer"),
        ({"d_sae": 8, "weight_average": 1.0}, r"weight_average is 1.0; allowed is 0 up to below 1"),
        ({"d_sae": 8, "normalize": "mean"}, r"normalize is 'mean'; allowed are 'none', 'center'"),
        ({"d_sae": 8, "preset": "sparsify"}, r"preset is 'sparsify'; allowed are None, 'saelens'"),
        ({"d_sae": 8, "frozen": "both"}, r"frozen is 'both'; allowed are None, 'decoder'"),
        ({"d_sae": 8, "b_dec_init": "median"}, r"b_dec_init is 'median'; allowed are 'uniform'"),
        ({"d_sae": 8, "k_anneal_steps": 3}, r"k_anneal_steps is 3 without k; allowed is 0"),
        ({"d_sae": 8, "prefix_fractions": (0.5, 0.5, 1)}, r"prefix_fractions is \(0.5, 0.5, 1.0\)"),
        ({"d_sae": 8, "prefix_fractions": (0.5, 0.9)}, r"allowed is numbers that grow to 1"),
        ({"d_sae": 8, "prefix_fractions": (0.01, 1)}, r"each by at least one of d_sae = 8"),
        ({"d_sae": 8, "prefix_fractions": ()}, r"prefix_fractions is \(\); allowed"),
        ({"d_sae": 8, "prefix_fractions": "half"}, r"prefix_fractions is 'half'; allowed are num"),
        (
            {"d_sae": 8, "k": 2, "aux_coefficient": 0.1, "frozen": "decoder"},
            r"aux_coefficient is 0.1 beside frozen='decoder'; allowed is 0",
        ),
        (
            {"d_sae": 8, "k": 2, "unit_decoder": True, "frozen": "decoder"},
            r"unit_decoder is True beside frozen='decoder'; allowed is False",
        ),
        (
            {"d_sae": 8, "k": 2, "normalize": "center", "b_dec_init": "mean"},
            r"b_dec_init is 'mean' beside normalize='center'; allowed are 'uniform' and 'zeros'",
        ),
    ],
)
def test_refused_members(fields, message):
    with pytest.raises(ValueError, match=message):
        SAEConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, r"epochs is 0; allowed is 1 or more"),
        ({"batch_size": 0}, r"batch_size is 0; allowed is 1 or more"),
        ({"batch_size": 2.5}, r"batch_size is 2.5; allowed is an integer"),
        ({"data_seed": -1}, r"data_seed is -1; allowed is 0 to 2\*\*32 - 1"),
        ({"data_seed": 2**32}, r"data_seed is 4294967296; allowed is 0 to 2\*\*32 - 1"),
        (
            {"compute_dtype": "float16"},
            r"compute_dtype is 'float16'; allowed are 'float32', 'tf32'",
        ),
        (
            {"kernel": "fast"},
            r"kernel is 'fast'; allowed are 'auto', 'dense', 'firing_rows', 'sel",
        ),
        ({"max_padding": 1.0}, r"max_padding is 1.0; allowed is 0 up to below 1"),
        ({"max_padding": -0.1}, r"max_padding is -0.1; allowed"),
        ({"memory_budget": 0}, r"memory_budget is 0; allowed is 1 or more bytes"),
    ],
)
def test_refused_training(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


def test_grid_varies_the_last_named_fastest():
    sweep = grid(d_sae=(250, 512), k=50, seed=range(2))
    assert [(c.d_sae, c.k, c.seed) for c in sweep] == [
        (250, 50, 0),
        (250, 50, 1),
        (512, 50, 0),
        (512, 50, 1),
    ]


def test_grid_of_slices():
    sweep = grid(d_sae=8, k=2, layer=(3, 4), position=(0, "last"))
    assert [c.data_slice for c in sweep] == [(3, 0), (3, "last"), (4, 0), (4, "last")]


def test_grid_refuses_unknown_fields_and_bad_combinations():
    with pytest.raises(ValueError, match=r"unknown fields \['latents'\]; SAEConfig has \['d_sae'"):
        grid(d_sae=8, k=2, latents=3)
    with pytest.raises(ValueError, match="k is 20; allowed is 1 to d_sae = 10"):
        grid(d_sae=(30, 10), k=20)


def test_numpy_numbers_become_plain_ones():
    sweep = grid(
        d_sae=np.array([8, 16]),
        k=np.int64(2),
        seed=np.arange(2),
        learning_rate=np.geomspace(1e-4, 1e-3, 2).astype(np.float32),
        layer=np.array([3]),
    )
    written = json.loads(json.dumps([dataclasses.asdict(config) for config in sweep]))
    assert [SAEConfig(**fields) for fields in written] == sweep
    assert len(sweep) == 8


def test_one_value_of_prefixes_is_a_tuple_and_several_are_a_list():
    one = grid(d_sae=8, k=2, prefix_fractions=(0.5, 1.0))
    assert [c.prefix_fractions for c in one] == [(0.5, 1.0)]
    two = grid(d_sae=8, k=2, prefix_fractions=[(0.5, 1.0), [0.25, 1]])
    assert [c.prefix_fractions for c in two] == [(0.5, 1.0), (0.25, 1.0)]
    assert [c.prefix_sizes for c in two] == [(4, 8), (2, 8)]


def test_what_is_traced_shares_a_template():
    a = SAEConfig(64, 4, prefix_fractions=(0.5, 1), warmup_steps=3, clip_norm=1, target_l0=3)
    b = SAEConfig(48, 9, prefix_fractions=(0.25, 1), decay_steps=2, clip_norm=2, target_l0=4)
    assert a.template == b.template
    for field in ({"normalize": "center"}, {"preset": "saelens"}, {"clip_norm": None}):
        assert dataclasses.replace(a, **field).template != a.template
