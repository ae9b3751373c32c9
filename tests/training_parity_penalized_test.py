"""Training of penalized SAEs here and in SAELens' and dictionary_learning's own trainers.

Run by `make test-formats`, in an environment that has the libraries.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_saes import random_gates, random_params

from sae_jax import SAEConfig
from sae_jax.architectures.functional import merge, split
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Hyperparameters
from sae_jax.sweep.batches import Samples
from sae_jax.sweep.step import MemberState, Program, train_step

torch = pytest.importorskip("torch", reason="the foreign libraries need PyTorch")

pytestmark = pytest.mark.formats

IN_ENVIRONMENT = "needs the foreign libraries; run by `make test-formats`"
D_IN, D_SAE, BATCH, STEPS = 16, 40, 32, 50
RATE = 1e-3


@pytest.fixture(scope="module")
def saes():
    pytest.importorskip("sae_lens", reason=IN_ENVIRONMENT)
    from sae_lens.saes import gated_sae, jumprelu_sae, standard_sae

    return SimpleNamespace(
        jumprelu=(jumprelu_sae.JumpReLUTrainingSAE, jumprelu_sae.JumpReLUTrainingSAEConfig),
        gated=(gated_sae.GatedTrainingSAE, gated_sae.GatedTrainingSAEConfig),
        relu=(standard_sae.StandardTrainingSAE, standard_sae.StandardTrainingSAEConfig),
    )


@pytest.fixture(scope="module")
def trainers():
    pytest.importorskip("dictionary_learning", reason=IN_ENVIRONMENT)
    from dictionary_learning.trainers import gdm, jumprelu, standard

    return SimpleNamespace(
        jumprelu=jumprelu.JumpReluTrainer,
        gated=gdm.GatedSAETrainer,
        standard=standard.StandardTrainer,
        april=standard.StandardTrainerAprilUpdate,
    )


def batches():
    rng = np.random.default_rng(7)
    return rng.normal(size=(STEPS, BATCH, D_IN)).astype(np.float32) + 0.3


def start(architecture, *, unit=False):
    """Arrays of an SAE in which part of the latents fire, in training's layout."""
    params = random_params(3, D_IN, D_SAE)
    if unit:
        params["w_dec"] /= np.linalg.norm(params["w_dec"], axis=1, keepdims=True)
    params["w_enc_t"] = np.ascontiguousarray(params.pop("w_enc").T)
    if architecture == "jumprelu":
        params["threshold"] = np.random.default_rng(4).uniform(0.0, 0.4, D_SAE).astype(np.float32)
    if architecture == "gated":
        gates = random_gates(5, D_SAE)
        params |= {"b_mag": gates["b_mag"], "r_mag": gates["r_mag"]}
    return params


def hyperparameters(config):
    """Those of a config as it is, which is filled already."""
    integers = {"d_sae", "sparsity_warmup_steps", "warmup_steps", "decay_steps", "k_anneal_steps"}
    values = {}
    for name in Hyperparameters._fields:
        value = getattr(config, name, None) or 0
        dtype = jnp.int32 if name in integers or not isinstance(value, float) else jnp.float32
        values[name] = jnp.asarray(value, dtype)
    return Hyperparameters(**values | {"num_steps": jnp.asarray(STEPS, jnp.int32)})


def ours(config, params, optimizer):
    """Latents, loss and gradients of the first step, and the arrays after all steps."""
    config = architecture_of(config).fill(config, 1.0, STEPS * BATCH, D_IN, BATCH)
    hyper = hyperparameters(config)
    program = Program(config.template, optimizer=optimizer)
    params = {name: jnp.asarray(array) for name, array in params.items()}
    state = MemberState(params, {}, optimizer(hyper.learning_rate).init(params), {})
    x = batches()

    def loss_of(params):
        from sae_jax.architectures.training import Batch

        sae = merge(config.template, params, {}, hyper)
        batch = Batch(jnp.asarray(x[0]), jnp.asarray(x[0]), jnp.ones(D_SAE, bool), jnp.int32(0))
        return sae.loss(batch, hyper, program.bound_kernel())

    loss, gradients = jax.value_and_grad(loss_of)(params)
    latents = merge(config.template, params, {}, hyper).encode(x[0])
    step = jax.jit(lambda state, x, i: train_step(program, state, hyper, Samples(x), i))
    for i in range(STEPS):
        state, _ = step(state, jnp.asarray(x[i]), jnp.int32(i))
    return SimpleNamespace(latents=latents, loss=loss, gradients=gradients, after=state.params)


def adam(b1):
    def make(rate):
        return optax.chain(
            optax.scale_by_adam(b1=b1, b2=0.999, eps=1e-8), optax.scale_by_learning_rate(rate)
        )

    return make


def assert_same(mine, latents, loss, gradients, after):
    """Arguments of theirs are tensors by our names, matrices in whichever direction."""

    def numpy(tensor, like):
        array = tensor.detach().numpy()
        return array.T if array.shape != like.shape else array

    theirs = numpy(latents, mine.latents)
    assert 0.05 < (theirs != 0).mean() < 0.95
    np.testing.assert_allclose(mine.latents, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    np.testing.assert_allclose(mine.loss, loss.item(), rtol=1e-5)
    assert sorted(mine.gradients) == sorted(gradients)
    for name, gradient in gradients.items():
        expected = numpy(gradient, mine.gradients[name])
        assert expected.any(), name
        close = {"rtol": 1e-5, "atol": 1e-5 * np.abs(expected).max()}
        np.testing.assert_allclose(mine.gradients[name], expected, **close, err_msg=name)
    for name, parameter in after.items():
        expected = numpy(parameter, mine.after[name])
        np.testing.assert_allclose(mine.after[name], expected, rtol=0, atol=1e-4, err_msg=name)


# SAELens


LENS_NAMES = {
    "w_enc_t": "W_enc",
    "w_dec": "W_dec",
    "b_dec": "b_dec",
    "b_enc": "b_enc",
    "threshold": "threshold",
    "b_mag": "b_mag",
    "r_mag": "r_mag",
}


def saelens(sae_and_config, architecture, params, options, tmp_path):
    """What SAELens' own trainer makes of the same parameters and batches."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.training.sae_trainer import SAETrainer

    sae_class, config_class = sae_and_config
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **options))
    names = LENS_NAMES | ({"b_enc": "b_gate"} if architecture == "gated" else {})
    named = {name: getattr(sae, names[name]) for name in params}
    with torch.no_grad():
        for name, parameter in named.items():
            array = params[name].T if name == "w_enc_t" else params[name]
            parameter.copy_(torch.tensor(array))
    x = torch.tensor(batches())
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=STEPS * BATCH,
            train_batch_size_samples=BATCH,
            device="cpu",
            autocast=False,
            lr=RATE,
            lr_end=RATE,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            lr_decay_steps=0,
            n_restart_cycles=1,
            adam_beta1=0.9,
            adam_beta2=0.999,
            dead_feature_window=1000,
            feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False),
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
        ),
        sae,
        data_provider=iter(x),
    )
    first = sae.training_forward_pass(
        TrainStepInput(
            sae_in=x[0],
            coefficients=trainer.get_coefficients(),
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
    )
    first.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in named.items()}
    sae.zero_grad()
    trainer.fit()
    if "threshold" in named:  # The last step of all may leave thresholds below zero.
        named["threshold"].data.clamp_(min=0.0)
    return first.feature_acts, first.loss, gradients, named


LENS = {
    "jumprelu-step": ("jumprelu", {"sparsity_coefficient": 0.05}, {"l0_coefficient": 0.05}),
    "jumprelu-tanh": (
        "jumprelu",
        {"sparsity_coefficient": 0.02, "sparsity_loss": "tanh"},
        {"l0_coefficient": 0.02, "jumprelu_sparsity_loss_mode": "tanh"},
    ),
    "jumprelu-quadratic": (
        "jumprelu",
        {"target_l0": 5.0, "sparsity_coefficient": 0.05},
        {"l0_coefficient": 0.05, "jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 5.0},
    ),
    "jumprelu-defaults": ("jumprelu", {"bandwidth": None}, {}),
    "gated": ("gated", {}, {}),
    "relu": ("relu", {}, {}),
}


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("case", LENS)
def test_a_preset_trains_as_saelens_does(saes, case, centered, tmp_path):
    architecture, fields, options = LENS[case]
    if case.startswith("jumprelu") and "bandwidth" not in fields:
        fields = fields | {"bandwidth": 0.5}
        options = options | {"jumprelu_bandwidth": 0.5}
    params = start(architecture)
    config = SAEConfig(
        D_SAE,
        architecture=architecture,
        preset="saelens",
        learning_rate=RATE,
        clip_norm=1.0,
        center_input=centered,
        **{name: value for name, value in fields.items() if value is not None},
    )
    mine = ours(config, params, adam(0.9))
    options = options | {"apply_b_dec_to_input": centered}
    theirs = saelens(getattr(saes, architecture), architecture, params, options, tmp_path)
    assert_same(mine, *theirs)


@pytest.mark.parametrize("architecture", ["jumprelu", "gated", "relu"])
def test_a_penalty_grows_as_in_saelens(saes, architecture, tmp_path):
    params = start(architecture)
    config = SAEConfig(
        D_SAE,
        architecture=architecture,
        preset="saelens",
        learning_rate=RATE,
        clip_norm=1.0,
        sparsity_warmup_steps=20,
    )
    name = "l0_warm_up_steps" if architecture == "jumprelu" else "l1_warm_up_steps"
    options = {name: 20, "apply_b_dec_to_input": False}
    mine = ours(config, params, adam(0.9))
    theirs = saelens(getattr(saes, architecture), architecture, params, options, tmp_path)
    np.testing.assert_allclose(mine.loss, theirs[1].item(), rtol=1e-5)
    for name, parameter in theirs[3].items():
        expected = parameter.detach().numpy()
        expected = expected.T if name == "w_enc_t" else expected
        np.testing.assert_allclose(mine.after[name], expected, rtol=0, atol=1e-4, err_msg=name)


# dictionary_learning


def learned(trainer_class, params, names, penalty_options):
    """What a trainer of dictionary_learning makes of the same parameters and batches."""
    trainer = trainer_class(
        steps=STEPS + 1,
        activation_dim=D_IN,
        dict_size=D_SAE,
        layer=0,
        lm_name="none",
        lr=RATE,
        warmup_steps=0,
        sparsity_warmup_steps=0,
        device="cpu",
        **penalty_options,
    )

    def named():
        # Some trainers put new tensors in the place of a parameter's data.
        found = {}
        for name, path in names.items():
            value = trainer.ae
            for part in path.split("."):
                value = getattr(value, part)
            found[name] = value
        return found

    with torch.no_grad():
        for name, parameter in named().items():
            array = params[name]
            turned = name == "w_enc_t" and names[name] == "W_enc"
            turned = turned or name == "w_dec" and names[name] == "decoder.weight"
            parameter.copy_(torch.tensor(array.T if turned else array))
    x = torch.tensor(batches())
    loss = trainer.loss(x[0], step=0)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in named().items()}
    trainer.optimizer.zero_grad()
    latents = trainer.ae.encode(x[0])
    for step in range(STEPS):
        trainer.update(step, x[step])
    return latents, loss, gradients, named()


AUTOENCODER = {
    "w_enc_t": "encoder.weight",
    "b_enc": "encoder.bias",
    "w_dec": "decoder.weight",
    "b_dec": "bias",
}
JUMPRELU = {
    "w_enc_t": "W_enc",
    "b_enc": "b_enc",
    "w_dec": "W_dec",
    "b_dec": "b_dec",
    "threshold": "threshold",
}
GATED = {
    "w_enc_t": "encoder.weight",
    "b_enc": "gate_bias",
    "b_mag": "mag_bias",
    "r_mag": "r_mag",
    "w_dec": "decoder.weight",
    "b_dec": "decoder_bias",
}


@pytest.mark.parametrize("bandwidth", [0.001, 0.5])
def test_jumprelu_trains_as_in_dictionary_learning(trainers, bandwidth):
    params = start("jumprelu", unit=True)
    config = SAEConfig(
        D_SAE,
        architecture="jumprelu",
        preset="dictionary_learning",
        learning_rate=RATE,
        bandwidth=bandwidth,
        target_l0=5.0,
        unit_decoder=True,
        clip_norm=1.0,
    )
    mine = ours(config, params, adam(0.0))
    options = {"bandwidth": bandwidth, "target_l0": 5.0}
    if bandwidth == 0.001:  # Otherwise no threshold has a gradient at first.
        params["threshold"][:] = 0.0002
        mine = ours(config, params, adam(0.0))
    theirs = learned(trainers.jumprelu, params, JUMPRELU, options)
    assert_same(mine, *theirs)


def test_gated_trains_as_in_dictionary_learning(trainers):
    params = start("gated", unit=True)
    config = SAEConfig(
        D_SAE,
        architecture="gated",
        preset="dictionary_learning",
        learning_rate=RATE,
        unit_decoder=True,
        center_input=True,
    )
    theirs = learned(trainers.gated, params, GATED, {})
    assert_same(ours(config, params, adam(0.0)), *theirs)


@pytest.mark.parametrize("unit", [True, False])
def test_relu_trains_as_either_trainer_of_dictionary_learning(trainers, unit):
    params = start("relu")
    config = SAEConfig(
        D_SAE,
        architecture="relu",
        preset="dictionary_learning",
        learning_rate=RATE,
        unit_decoder=unit,
        center_input=True,
        clip_norm=None if unit else 1.0,
    )
    theirs = learned(trainers.standard if unit else trainers.april, params, AUTOENCODER, {})
    assert_same(ours(config, params, adam(0.9)), *theirs)


@pytest.mark.parametrize("architecture", ["jumprelu", "gated", "relu"])
def test_what_a_preset_keeps_is_nothing(architecture):
    config = SAEConfig(D_SAE, architecture=architecture, preset="saelens")
    sae = architecture_of(config).from_params(random_params(0, D_IN, D_SAE), config)
    sae.start_training(config, hyperparameters(config))
    assert split(sae)[1] == {}
