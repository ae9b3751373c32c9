"""Gated: one bias decides which latents fire, another how strongly."""

from collections.abc import Mapping
from typing import Self, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from sae_jax.architectures.base import Options, as_row, options_of
from sae_jax.architectures.losses import row_norms, squared_error
from sae_jax.architectures.penalized import PenalizedSAE
from sae_jax.architectures.training import Arrays, Batch, Hyperparameters, Kernel
from sae_jax.configs import SAEConfig
from sae_jax.ops.matmul import (
    matmul,
    settled,
    training_matmul,
    training_matmul_transposed,
)

GATES = ("b_mag", "r_mag")


class GatedSAE(PenalizedSAE):
    """Latents `1[h + b_enc > 0] * relu(h * exp(r_mag) + b_mag)` of `h = x @ w_enc`.

    The bias of the gate is `b_enc`; other code calls it `b_gate`.

    Reference: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse
    autoencoders", arXiv:2404.16014.

    Attributes:
      b_mag: bias of the magnitudes, `[F]`.
      r_mag: logarithm of what the encoder is multiplied by for the magnitudes, `[F]`.
    """

    in_latents_units = ("b_mag",)

    def __init__(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        b_mag: jax.Array | np.ndarray,
        r_mag: jax.Array | np.ndarray,
        **options: Unpack[Options],
    ):
        super().__init__(params, **options)
        for name, array in zip(GATES, (b_mag, r_mag), strict=True):
            if np.shape(array) != (self.d_sae,):
                raise ValueError(f"{name} has shape {np.shape(array)}; expected ({self.d_sae},)")
        self.b_mag = nnx.Param(jnp.asarray(b_mag, jnp.float32))
        self.r_mag = nnx.Param(jnp.asarray(r_mag, jnp.float32))

    @classmethod
    def from_params(cls, params: Mapping[str, jax.Array | np.ndarray], config: SAEConfig) -> Self:
        """The SAE of a config around parameters that were drawn, trained or read.

        Where they are drawn, magnitudes start as the gate does, but without a bias.
        """
        cls.check(config)
        params = dict(params)
        zeros = np.zeros(np.shape(params["b_enc"]), np.float32)
        b_mag, r_mag = (params.pop(name, zeros) for name in GATES)
        return cls(params, b_mag, r_mag, **options_of(config))

    @classmethod
    def fold(
        cls,
        arrays: Arrays,
        config: SAEConfig,
        x_mean: jax.Array,
        x_scale: jax.Array,
        y_mean: jax.Array,
        y_scale: jax.Array,
    ) -> Arrays:
        """Also takes the mean out of the magnitudes' bias; see `SAE.fold`."""
        arrays = super().fold(arrays, config, x_mean, x_scale, y_mean, y_scale)
        if not config.center_input:
            shift = matmul(arrays["w_enc_t"], x_mean, "float32") * jnp.exp(arrays["r_mag"])
            arrays["b_mag"] = arrays["b_mag"] - shift
        return arrays

    def activate(self, pre: jax.Array) -> jax.Array:
        """Magnitudes where the gate is open; `pre` has the gate's bias in it."""
        h = pre - as_row(self.b_enc[...], pre)
        return self.gated(pre, h)

    def gated(self, gate: jax.Array, h: jax.Array) -> jax.Array:
        """Latents `[..., F]` of gates and of what is before both biases."""
        magnitude = h * jnp.exp(as_row(self.r_mag[...], h)) + as_row(self.b_mag[...], h)
        return jnp.where(gate > 0, jax.nn.relu(magnitude), 0.0)

    def loss(self, batch: Batch, hyper: Hyperparameters, kernel: Kernel) -> jax.Array:
        """Squared error, what a reconstruction from the gates alone misses, and their sum, weighed.

        The penalty takes a gate times the norm of its decoder row; with preset
        "dictionary_learning" it takes gates alone, as that library keeps rows at norm 1. The
        reconstruction from the gates does not train the decoder, as in the article, but for preset
        "saelens", where it does.

        See `SAE.loss` for the arguments.
        """
        x, w_enc_t, b_enc, w_dec = self.encoder_and_decoder(batch.x)
        b_dec = self.b_dec[...]
        product = training_matmul_transposed(x, w_enc_t, self.dtype)
        # `b_enc` comes with the gradient of a `b_dec` that is subtracted from the samples.
        h = product + (b_enc - self.b_enc[...])[None, :]
        gate = product + b_enc[None, :]
        z = settled(self.gated(gate, h))
        y_hat = training_matmul(z, w_dec, self.dtype) + b_dec[None, :]

        opened = settled(jax.nn.relu(gate))
        norms = row_norms(w_dec)
        sizes = opened if self.preset == "dictionary_learning" else opened * norms[None, :]
        penalty = jnp.mean(jnp.sum(sizes, axis=1))
        if self.preset is None:
            rows = w_dec / jnp.where(norms == 0.0, 1.0, norms)[:, None]
            by_gate = training_matmul(sizes, lax.stop_gradient(rows), self.dtype)
        elif self.preset == "saelens":
            by_gate = training_matmul(opened, w_dec, self.dtype)
        else:
            by_gate = training_matmul(opened, lax.stop_gradient(w_dec), self.dtype)
        b_dec = b_dec if self.preset == "saelens" else lax.stop_gradient(b_dec)
        by_gate = by_gate + b_dec[None, :]
        l0 = jnp.mean(jnp.sum(z > 0, axis=1, dtype=jnp.float32))
        return (
            squared_error(y_hat, batch.target)
            + squared_error(by_gate, batch.target)
            + self.weight(l0, batch, hyper) * penalty
        )
