"""One member trained by `train_step`, from given weights and on given batches, step by step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sae_jax import TrainConfig
from sae_jax.architectures.functional import merge, split
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Batch
from sae_jax.sweep.batches import Samples
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.step import MemberState, Program, train_step


class Member(NamedTuple):
    """A member and what it trains and keeps."""

    config: object
    hyper: object
    program: Program
    state: MemberState

    def arrays(self):
        """Trained and kept arrays by name, the encoder as `w_enc`."""
        arrays = {name: np.asarray(a) for name, a in (self.state.params | self.state.kept).items()}
        return {"w_enc": arrays.pop("w_enc_t").T} | arrays

    def gradients(self, x, step):
        """The loss of a batch and its gradients by name, before anything clips them."""
        template, (params, kept) = self.config.template, self.state[:2]
        latents = jnp.arange(len(params["b_enc"]), dtype=jnp.int32) < self.config.d_sae
        batch = Batch(x, x, latents, jnp.int32(step))

        def loss_of(params):
            sae = merge(template, params, kept, self.hyper)
            return sae.loss(batch, self.hyper, self.program.bound_kernel())

        loss, gradients = jax.value_and_grad(loss_of)(params)
        gradients = {name: np.asarray(gradient) for name, gradient in gradients.items()}
        return float(loss), {"w_enc": gradients.pop("w_enc_t").T} | gradients

    def sae(self):
        """The SAE within training."""
        return merge(self.config.template, self.state.params, self.state.kept, self.hyper)

    def trained(self):
        """The SAE that a sweep would return."""
        d_in = self.state.params["w_dec"].shape[1]
        mean, one = jnp.zeros(d_in), jnp.ones(d_in)
        architecture = architecture_of(self.config)
        arrays = architecture.fold(
            self.state.params | self.state.kept, self.config, mean, jnp.ones(()), mean, one
        )
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        return architecture.from_params(
            architecture.of_true_size(arrays, self.config.d_sae), self.config
        )

    def stepped(self, batches, first_step):
        """The member after a step on each batch, and the losses before the steps."""
        step_of = jax.jit(
            lambda state, x, step: train_step(self.program, state, self.hyper, Samples(x), step)
        )
        state, losses = self.state, []
        for i, x in enumerate(batches):
            state, loss = step_of(state, x, jnp.int32(first_step + i))
            losses.append(float(loss))
        return self._replace(state=state), losses


def member(config, params, batch_size, unfired=0):
    """A member with given parameters, by name.

    Args:
      config: its config.
      params: its parameters, `w_enc [D, F]` and so on.
      batch_size: samples a step.
      unfired: samples since each latent fired, `[F]` or one for all.
    """
    d_in = len(params["w_enc"])
    hypers = hyperparameters([config], TrainConfig(batch_size=batch_size), 50 * batch_size, d_in)
    hyper = jax.tree.map(lambda leaf: leaf[0], hypers)
    program = Program(config.template)
    sae = architecture_of(config).from_params(params, config.template)
    sae.start_training(config.template, hyper)
    trained, kept = split(sae)
    if "since_fired" in kept:
        kept["since_fired"] = jnp.broadcast_to(jnp.asarray(unfired, jnp.int32), sae.d_sae)
    opt_state = program.optimizer(hyper.learning_rate).init(trained)
    return Member(config, hyper, program, MemberState(trained, kept, opt_state, {}))
