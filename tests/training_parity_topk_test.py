"""SAEs that keep k latents, trained here and by the trainers of SAELens and dictionary_learning.

Run by `make test-formats`, in an environment that has both libraries. Faults that they have:

- dictionary_learning's TopK counts a selected latent as fired even if its value is 0. Which zeros
  PyTorch selects is undefined, so the preset does not reproduce it: there a latent fires if it is
  not 0. Both agree on samples with k positive pre-activations or more, as here.
- Its BatchTopK raises a TypeError where the batch that starts the threshold has no positive latent,
  because it assigns a float to a buffer. The preset starts from 0.
- Its Matryoshka takes a mean of errors that are divided by their number already. The preset
  reproduces it.
- SAELens' threshold is a mean that starts from 0 without a correction, and so is too low for some
  hundred steps. The preset reproduces it.
"""

import copy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae_jax import SAEConfig, TrainConfig
from sae_jax.architectures.functional import merge, split
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Batch
from sae_jax.sweep.batches import Samples
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.step import MemberState, Program, train_step

torch = pytest.importorskip("torch", reason="the foreign libraries need PyTorch")

pytestmark = pytest.mark.formats

D_IN, D_SAE, K, BATCH, STEPS = 12, 32, 4, 16, 50
RATE, WINDOW = 2e-3, 3
FRACTIONS = (0.25, 0.5, 1.0)
IN_ENVIRONMENT = "needs the foreign libraries; run by `make test-formats`"
# From where dictionary_learning's threshold starts after six steps.
LATE = 995


def batches():
    rng = np.random.default_rng(11)
    directions = rng.normal(size=(24, D_IN))
    weights = rng.exponential(size=(STEPS, BATCH, 24)) * (rng.random((STEPS, BATCH, 24)) < 0.15)
    return (weights @ directions + rng.normal(size=D_IN)).astype(np.float32)


def start(*, unit):
    """Parameters in training's layout, decoder rows of norm 1 or of many norms."""
    rng = np.random.default_rng(12)
    w_dec = rng.normal(size=(D_SAE, D_IN))
    w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    params = {
        "w_enc_t": w_dec + 0.1 * rng.normal(size=w_dec.shape),
        # Every fifth latent seldom fires.
        "b_enc": np.where(np.arange(D_SAE) % 5 == 0, -3.0, 0.5),
        "w_dec": w_dec if unit else w_dec * rng.uniform(0.4, 2.0, size=(D_SAE, 1)),
        "b_dec": batches().mean((0, 1)) + 0.1 * rng.normal(size=D_IN),
    }
    return {name: array.astype(np.float32) for name, array in params.items()}


def unfired():
    """Steps since each latent fired before the first: every fourth latent is dead."""
    return np.where(np.arange(D_SAE) % 4 == 0, WINDOW + 1, 0)


def ours(config, params, first_step):
    """Latents, loss and gradients of the first step; losses and arrays after all."""
    stacked = hyperparameters([config], TrainConfig(batch_size=BATCH), STEPS * BATCH, D_IN)
    hyper = jax.tree.map(lambda leaf: leaf[0], stacked)
    program = Program(config.template)
    params = {"w_enc": params["w_enc_t"].T} | {
        name: array for name, array in params.items() if name != "w_enc_t"
    }
    sae = architecture_of(config).from_params(params, config)
    sae.start_training(config, hyper)
    sae.since_fired[...] = jnp.asarray(unfired() * BATCH, jnp.int32)
    params, kept = split(sae)
    x = jnp.asarray(batches())

    def loss_of(params):
        sae = merge(config.template, params, kept, hyper)
        samples, w_enc_t, b_enc, _ = sae.encoder_and_decoder(x[0])
        pre = samples @ w_enc_t.T + b_enc[None, :]
        in_batch = hasattr(sae, "threshold")
        latents = sae.activate_batch(pre, hyper.k) if in_batch else sae.activate(pre)
        batch = Batch(x[0], x[0], jnp.ones(D_SAE, bool), jnp.int32(first_step))
        return sae.loss(batch, hyper, program.bound_kernel()), latents

    (loss, latents), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    step = jax.jit(lambda state, x, i: train_step(program, state, hyper, Samples(x), i))
    opt_state = program.optimizer(hyper.learning_rate).init(params)
    state, losses = MemberState(params, kept, opt_state, {}), []
    for i in range(STEPS):
        state, loss_before = step(state, x[i], jnp.int32(first_step + i))
        losses.append(float(loss_before))
    after = {name: np.asarray(array) for name, array in (state.params | state.kept).items()}
    return SimpleNamespace(
        latents=latents, loss=float(loss), gradients=gradients, losses=losses, after=after
    )


def assert_close(mine, theirs, tolerance, name):
    """Agreement relative to the largest of theirs, which may be a transpose."""
    theirs = theirs.detach().numpy()
    theirs = theirs if theirs.shape == mine.shape else theirs.T
    assert theirs.any(), name
    bound = tolerance * np.abs(theirs).max()
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=bound, err_msg=name)


def assert_same_first_step(mine, latents, loss, parameters):
    """`parameters` have gradients, by our names."""
    assert_close(mine.latents, latents, 1e-5, "latents")
    assert mine.loss == pytest.approx(loss.item(), rel=1e-5)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters.values()])
    assert norm > 1, "clipping changes nothing"
    for name, parameter in parameters.items():
        assert_close(mine.gradients[name], parameter.grad, 1e-5, name)


def assert_same_training(mine, losses, revived, parameters, unfired, threshold):
    """After all steps, of which some revived latents, and not all of them the same number."""
    assert sum(number > 0 for number in revived) > 5
    assert len(set(revived)) > 1
    np.testing.assert_allclose(mine.losses, losses, rtol=1e-4)
    for name, parameter in parameters.items():
        assert_close(mine.after[name], parameter, 1e-4, name)
    np.testing.assert_array_equal(mine.after["since_fired"], unfired)
    if "threshold" in mine.after:
        assert threshold > 0
        assert float(mine.after["threshold"]) == pytest.approx(float(threshold), rel=1e-4)


def copy_into(parameters, arrays):
    with torch.no_grad():
        for name, parameter in parameters.items():
            array = torch.tensor(arrays[name])
            parameter.copy_(array if array.shape == parameter.shape else array.T)


# SAELens.


def saelens_trainer(architecture, params):
    pytest.importorskip("sae_lens", reason=IN_ENVIRONMENT)
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    theirs = {
        "abs_topk": "abstopk",
        "topk": "topk",
        "batch_topk": "batchtopk",
        "matryoshka": "matryoshka_batchtopk",
    }[architecture]
    sizes = [round(fraction * D_SAE) for fraction in FRACTIONS]
    more = {"matryoshka_widths": sizes} if architecture == "matryoshka" else {}
    kind, sae_config = get_sae_training_class(theirs)
    sae = kind(sae_config(d_in=D_IN, d_sae=D_SAE, k=K, **more))
    assert sae.cfg.rescale_acts_by_decoder_norm, "its default has changed"
    assert sae.cfg.apply_b_dec_to_input, "its default has changed"
    copy_into(saelens_parameters(sae), params)
    config = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=RATE,
        lr_end=RATE,
        dead_feature_window=WINDOW,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    trainer.n_forward_passes_since_fired = torch.tensor(unfired(), dtype=torch.float32)
    return trainer


def saelens_parameters(sae):
    return {"w_enc_t": sae.W_enc, "b_enc": sae.b_enc, "w_dec": sae.W_dec, "b_dec": sae.b_dec}


@pytest.mark.parametrize("architecture", ["abs_topk", "topk", "batch_topk", "matryoshka"])
def test_saelens(architecture):
    params = start(unit=False)
    trainer = saelens_trainer(architecture, params)
    from sae_lens.saes.sae import TrainStepInput

    config = SAEConfig(
        D_SAE,
        K,
        architecture=architecture,
        preset="saelens",
        learning_rate=RATE,
        center_input=True,
        clip_norm=1.0,
        aux_coefficient=1.0,
        dead_after=WINDOW * BATCH + 1,
        prefix_fractions=FRACTIONS if architecture == "matryoshka" else None,
    )
    mine = ours(config, params, 0)
    x = torch.tensor(batches())
    sae = copy.deepcopy(trainer.sae)
    step_input = TrainStepInput(
        sae_in=x[0],
        coefficients={},
        dead_neuron_mask=trainer.dead_neurons,
        n_training_steps=0,
        is_logging_step=False,
    )
    output = sae.training_forward_pass(step_input)
    assert output.losses["auxiliary_reconstruction_loss"] > 0
    output.loss.backward()
    assert_same_first_step(mine, output.feature_acts, output.loss, saelens_parameters(sae))

    losses, revived = [], []
    for batch in x:
        revived.append(int(trainer.dead_neurons.sum()))
        losses.append(trainer.step(batch).loss.item())
        trainer.n_training_steps += 1
    assert_same_training(
        mine,
        losses,
        revived,
        saelens_parameters(trainer.sae),
        trainer.n_forward_passes_since_fired * BATCH,
        getattr(trainer.sae, "topk_threshold", None),
    )


# dictionary_learning.


def dl_trainer(architecture, params):
    pytest.importorskip("dictionary_learning.trainers", reason=IN_ENVIRONMENT)
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    kind = {
        "topk": top_k.TopKTrainer,
        "batch_topk": batch_top_k.BatchTopKTrainer,
        "matryoshka": matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer,
    }[architecture]
    # It names what each group adds to the prefix before.
    groups = np.diff((0.0, *FRACTIONS)).tolist()
    trainer = kind(
        steps=10_000,
        activation_dim=D_IN,
        dict_size=D_SAE,
        k=K,
        layer=0,
        lm_name="none",
        lr=RATE,
        warmup_steps=0,
        device="cpu",
        **({"group_fractions": groups} if architecture == "matryoshka" else {}),
    )
    copy_into(dl_parameters(trainer), params)
    trainer.dead_feature_threshold = WINDOW * BATCH
    trainer.num_tokens_since_fired = torch.tensor(unfired() * BATCH)
    return trainer


def dl_parameters(trainer):
    ae = trainer.ae
    if hasattr(ae, "W_enc"):
        return saelens_parameters(ae)
    return {
        "w_enc_t": ae.encoder.weight,
        "b_enc": ae.encoder.bias,
        "w_dec": ae.decoder.weight,
        "b_dec": ae.b_dec,
    }


@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "matryoshka"])
def test_dictionary_learning(architecture):
    params = start(unit=True)
    trainer = dl_trainer(architecture, params)
    config = SAEConfig(
        D_SAE,
        K,
        architecture=architecture,
        preset="dictionary_learning",
        learning_rate=RATE,
        center_input=True,
        unit_decoder=True,
        clip_norm=1.0,
        aux_coefficient=1 / 32,
        dead_after=WINDOW * BATCH,
        prefix_fractions=FRACTIONS if architecture == "matryoshka" else None,
    )
    mine = ours(config, params, LATE)
    x = torch.tensor(batches())
    latents = copy.deepcopy(trainer).loss(x[0], step=LATE, logging=True).f
    once = copy.deepcopy(trainer)
    loss = once.loss(x[0], step=LATE)
    assert once.dead_features > 0
    loss.backward()
    assert_same_first_step(mine, latents, loss, dl_parameters(once))

    losses, revived = [], []
    for i, batch in enumerate(x):
        losses.append(trainer.update(LATE + i, batch))
        revived.append(trainer.dead_features)
    assert_same_training(
        mine,
        losses,
        revived,
        dl_parameters(trainer),
        trainer.num_tokens_since_fired,
        trainer.ae.threshold,
    )
