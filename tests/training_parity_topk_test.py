"""SAEs that keep k latents, trained here and by SAELens' and dictionary_learning's own trainers.

Run by `make test-formats`, in an environment that has both libraries.

Faults of the libraries:
  dictionary_learning's `TopKTrainer` counts a latent as fired if it is selected, even with a value
  of 0. Which of several zeros PyTorch selects is not defined, so that this is not reproduced: here
  a latent fires if it is not 0. The two agree where each sample has k positive pre-activations.
  Its BatchTopK trainers raise a TypeError if no latent is positive in the batch from which the
  threshold starts, as they assign a float to a buffer; here the threshold starts at 0.
  Gradients of its AuxK are not a number for a batch of one sample, whose residual has no
  variance; here AuxK is then 0.
  Its Matryoshka trainer weighs prefixes twice, by 1 / n and by a mean; the preset does so, too.
  Its warm-up begins with a learning rate of 0; `warmup_steps` does not, so none is compared.
"""

import copy

import numpy as np
import pytest
from parity import member
from random_saes import random_params

from sae_jax import SAEConfig

torch = pytest.importorskip("torch", reason="the foreign libraries need PyTorch")

pytestmark = pytest.mark.formats

D_IN, D_SAE, K, BATCH, STEPS = 8, 24, 3, 16, 50
RATE = 1e-3
WINDOW = 3
FRACTIONS = (0.25, 0.5, 1.0)
GROUPS = (0.25, 0.25, 0.5)
# dictionary_learning estimates a threshold after step 1,000: here from the 21st step on.
FIRST_STEP = 980
IN_ENVIRONMENT = "needs the foreign libraries; run by `make test-formats`"
NAMES = ("w_enc", "b_enc", "w_dec", "b_dec")


def batches(seed=0):
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(2 * D_IN, D_IN))
    weights = rng.exponential(size=(STEPS, BATCH, 2 * D_IN)) * (
        rng.random((STEPS, BATCH, 2 * D_IN)) < 0.2
    )
    return (weights @ directions + rng.normal(size=D_IN)).astype(np.float32)


def start(unit_rows):
    """Parameters before the first step: rows of unequal norm, or of norm 1."""
    params = random_params(0, D_IN, D_SAE)
    norms = np.linalg.norm(params["w_dec"], axis=1, keepdims=True)
    norm = 1.0 if unit_rows else np.linspace(0.5, 2.0, D_SAE, dtype=np.float32)[:, None]
    # A third of the latents fire seldom or never.
    bias = np.where(np.arange(D_SAE) % 3 == 0, -2.0, 1.0).astype(np.float32)
    return params | {"w_dec": params["w_dec"] / norms * norm, "b_enc": bias}


def unfired_steps():
    """Steps since each latent fired, before the first: a quarter of them is dead."""
    return np.where(np.arange(D_SAE) % 4 == 0, WINDOW + 1, 0)


def assert_close(ours, theirs, tolerance, name):
    """Agreement relative to the largest entry."""
    theirs = np.asarray(theirs)
    scale = max(np.abs(theirs).max(), 1e-30)
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=tolerance, err_msg=name)


def training_latents(ours, x):
    """Latents of a batch, as the loss takes them."""
    sae = ours.sae()
    x, w_enc_t, b_enc, _ = sae.encoder_and_decoder(x)
    pre = x @ w_enc_t.T + b_enc[None, :]
    return (
        sae.activate_batch(pre, ours.hyper.k) if "threshold" in ours.arrays() else sae.activate(pre)
    )


def copied(target, values):
    with torch.no_grad():
        target.copy_(torch.tensor(values))


# SAELens.


def saelens_trainer(architecture, params):
    saes = pytest.importorskip("sae_lens.saes", reason=IN_ENVIRONMENT)
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.abstopk_sae import AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.training.sae_trainer import SAETrainer

    kind, config, more = {
        "abs_topk": (AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig, {}),
        "topk": (saes.TopKTrainingSAE, saes.TopKTrainingSAEConfig, {}),
        "batch_topk": (saes.BatchTopKTrainingSAE, saes.BatchTopKTrainingSAEConfig, {}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"matryoshka_widths": [round(f * D_SAE) for f in FRACTIONS]},
        ),
    }[architecture]
    sae = kind(config(d_in=D_IN, d_sae=D_SAE, k=K, apply_b_dec_to_input=True, **more))
    for name in NAMES:
        copied(getattr(sae, name.replace("w_", "W_")), params[name])
    trainer_config = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=RATE,
        lr_end=RATE / 10,
        lr_warm_up_steps=5,
        lr_decay_steps=10,
        dead_feature_window=WINDOW,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(trainer_config, sae, data_provider=iter(()))
    trainer.n_forward_passes_since_fired = torch.tensor(unfired_steps(), dtype=torch.float32)
    return trainer


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("architecture", ["abs_topk", "topk", "batch_topk", "matryoshka"])
def test_saelens(tmp_path, architecture, seed):
    from_library = pytest.importorskip("sae_lens", reason=IN_ENVIRONMENT)
    from sae_lens.saes.sae import TrainStepInput

    params, data = start(unit_rows=False), batches(seed)
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
        warmup_steps=5,
        decay_steps=10,
        prefix_fractions=FRACTIONS if architecture == "matryoshka" else None,
    )
    ours = member(config, params, BATCH, unfired_steps() * BATCH)
    ours = ours._replace(hyper=ours.hyper._replace(num_steps=np.int32(STEPS)))
    trainer = saelens_trainer(architecture, params)

    x = torch.tensor(data[0])
    theirs = copy.deepcopy(trainer.sae)
    output = theirs.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients={},
            dead_neuron_mask=trainer.dead_neurons,
            n_training_steps=0,
            is_logging_step=False,
        )
    )
    output.loss.backward()
    assert output.losses["auxiliary_reconstruction_loss"].item() > 0
    loss, gradients = ours.gradients(data[0], 0)
    np.testing.assert_allclose(loss, output.loss.item(), rtol=1e-5)
    assert_close(
        training_latents(ours, data[0]), output.feature_acts.detach().numpy(), 1e-5, "latents"
    )
    for name in NAMES:
        gradient = getattr(theirs, name.replace("w_", "W_")).grad.numpy()
        assert_close(gradients[name], gradient, 1e-5, name)

    revived, losses = [], []
    for batch in data:
        output = trainer.step(torch.tensor(batch))
        trainer.n_training_steps += 1
        revived.append(output.losses["auxiliary_reconstruction_loss"].item() > 0)
        losses.append(output.loss.item())
    assert sum(revived) > 1
    ours, our_losses = ours.stepped(data, 0)
    np.testing.assert_allclose(our_losses, losses, rtol=1e-4)
    arrays = ours.arrays()
    for name in NAMES:
        parameter = getattr(trainer.sae, name.replace("w_", "W_")).detach().numpy()
        np.testing.assert_allclose(arrays[name], parameter, rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(
        arrays["since_fired"], trainer.n_forward_passes_since_fired.numpy() * BATCH
    )
    if "threshold" in arrays:
        np.testing.assert_allclose(
            arrays["threshold"], trainer.sae.topk_threshold.item(), rtol=0, atol=1e-4
        )
        assert arrays["threshold"] > 0

    trainer.sae.save_inference_model(tmp_path)
    inference = from_library.SAE.load_from_disk(tmp_path)
    x = data.reshape(-1, D_IN)
    latents = inference.encode(torch.tensor(x)).detach().numpy()
    found = np.asarray(ours.trained().encode(x))
    # Latents that lie at the edge to firing may differ; all others agree.
    assert np.mean((found != 0) != (latents != 0)) < 1e-3
    both = (found != 0) & (latents != 0)
    assert both.any()
    assert_close(found[both], latents[both], 1e-3, "latents at inference")


# dictionary_learning.


def dl_trainer(architecture, params):
    pytest.importorskip("dictionary_learning.trainers", reason=IN_ENVIRONMENT)
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    kind, more = {
        "topk": (TopKTrainer, {}),
        "batch_topk": (BatchTopKTrainer, {}),
        "matryoshka": (MatryoshkaBatchTopKTrainer, {"group_fractions": list(GROUPS)}),
    }[architecture]
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
        **more,
    )
    for name, parameter in dl_parameters(trainer).items():
        copied(parameter, params[name].T if needs_transpose(trainer, name) else params[name])
    trainer.dead_feature_threshold = WINDOW * BATCH
    trainer.num_tokens_since_fired = torch.tensor(unfired_steps() * BATCH)
    return trainer


def needs_transpose(trainer, name):
    return name.startswith("w_") and hasattr(trainer.ae, "decoder")


def dl_parameters(trainer):
    ae = trainer.ae
    if hasattr(ae, "decoder"):
        tensors = ae.encoder.weight, ae.encoder.bias, ae.decoder.weight, ae.b_dec
    else:
        tensors = ae.W_enc, ae.b_enc, ae.W_dec, ae.b_dec
    return dict(zip(NAMES, tensors, strict=True))


def dl_arrays(trainer, of=lambda tensor: tensor.detach()):
    """NumPy arrays of parameters, or of what `of` makes of them, by our names and layout."""
    return {
        name: of(tensor).numpy().T if needs_transpose(trainer, name) else of(tensor).numpy()
        for name, tensor in dl_parameters(trainer).items()
    }


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "matryoshka"])
def test_dictionary_learning(architecture, seed):
    params, data = start(unit_rows=True), batches(seed)
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
    ours = member(config, params, BATCH, unfired_steps() * BATCH)
    trainer = dl_trainer(architecture, params)

    theirs = copy.deepcopy(trainer)
    log = theirs.loss(torch.tensor(data[0]), step=FIRST_STEP, logging=True)
    assert log.losses["auxk_loss"] > 0
    again = copy.deepcopy(trainer)
    again.loss(torch.tensor(data[0]), step=FIRST_STEP).backward()
    loss, gradients = ours.gradients(data[0], FIRST_STEP)
    np.testing.assert_allclose(loss, log.losses["loss"], rtol=1e-5)
    assert_close(training_latents(ours, data[0]), log.f.detach().numpy(), 1e-5, "latents")
    for name, gradient in dl_arrays(again, lambda tensor: tensor.grad).items():
        assert_close(gradients[name], gradient, 1e-5, name)

    revived, losses = [], []
    for i, batch in enumerate(data):
        losses.append(trainer.update(FIRST_STEP + i, torch.tensor(batch)))
        revived.append(trainer.dead_features > 0)
    assert sum(revived) > 1
    ours, our_losses = ours.stepped(data, FIRST_STEP)
    np.testing.assert_allclose(our_losses, losses, rtol=1e-4)
    arrays = ours.arrays()
    for name, parameter in dl_arrays(trainer).items():
        np.testing.assert_allclose(arrays[name], parameter, rtol=0, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(arrays["since_fired"], trainer.num_tokens_since_fired.numpy())
    if architecture == "topk":
        return
    assert trainer.ae.threshold.item() > 0
    np.testing.assert_allclose(arrays["threshold"], trainer.ae.threshold.item(), rtol=0, atol=1e-4)
    x = data.reshape(-1, D_IN)
    latents = trainer.ae.encode(torch.tensor(x), use_threshold=True).detach().numpy()
    found = np.asarray(ours.trained().encode(x))
    assert np.mean((found != 0) != (latents != 0)) < 1e-3
    both = (found != 0) & (latents != 0)
    assert both.any()
    assert_close(found[both], latents[both], 1e-3, "latents at inference")
