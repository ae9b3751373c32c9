"""TopK: the k latents that rank highest in each sample, with an optional auxiliary loss."""

from collections.abc import Mapping
from typing import Literal, Self, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sae_jax.architectures.base import Options, options_of
from sae_jax.architectures.k_sparse import KSparseSAE
from sae_jax.architectures.losses import mse
from sae_jax.architectures.training import Batch, Hyperparameters, Kernel
from sae_jax.configs import SAEConfig
from sae_jax.ops.activation import ABS_TOP_K, TOP_K, Activation
from sae_jax.ops.matmul import training_matmul, training_matmul_transposed


class TopKSAE(KSparseSAE):
    """Keeps the k latents of largest magnitude in each sample (Gao et al. 2024, arXiv:2406.04093).

    Architecture `abs_topk` is the published experiment's, with the rule "abs"; `topk` has the rule
    "relu".

    Attributes:
      rule: `"abs"` ranks pre-activations by absolute value and keeps their sign;
        `"relu"` ranks what a ReLU leaves, so that latents are never negative.
    """

    kernels = ("firing_rows", "selected_rows")

    def __init__(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        k: int,
        *,
        rule: Literal["abs", "relu"] = "abs",
        **options: Unpack[Options],
    ):
        super().__init__(params, **options)
        if not 1 <= k <= self.d_sae:
            raise ValueError(f"k is {k}; allowed is 1 to d_sae = {self.d_sae}")
        if rule not in ("abs", "relu"):
            raise ValueError(f"rule is {rule!r}; allowed are 'abs' and 'relu'")
        self.k = int(k)
        self.rule = rule

    @classmethod
    def from_params(cls, params: Mapping[str, jax.Array | np.ndarray], config: SAEConfig) -> Self:
        """The SAE of a config around parameters that were drawn, trained or read."""
        cls.check(config)
        assert config.k is not None
        rule: Literal["abs", "relu"] = "abs" if config.architecture == "abs_topk" else "relu"
        return cls(params, config.k, rule=rule, **options_of(config))

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        """Refuses a config without k, or with a preset of a library that has no such SAE.

        Raises:
          ValueError: naming the field, what was found and what is allowed.
        """
        super().check(config)
        if config.architecture == "abs_topk" and config.preset == "dictionary_learning":
            raise ValueError(
                "preset is 'dictionary_learning'; allowed for abs_topk are None and 'saelens', as"
                " that library ranks what a ReLU leaves"
            )

    @property
    def activation(self) -> Activation:
        """How latents come from pre-activations."""
        return ABS_TOP_K if self.rule == "abs" else TOP_K

    def activate(self, pre: jax.Array) -> jax.Array:
        """The k pre-activations that `rule` ranks highest, zero elsewhere."""
        return self.activation(pre, jnp.asarray(self.k, jnp.int32))

    def value(self, pre: jax.Array) -> jax.Array:
        """What latents are where they are kept, as `rule` says."""
        return self.activation.value(pre)

    def rank(self, value: jax.Array) -> jax.Array:
        """By what the largest are kept, as `rule` says."""
        return jnp.abs(value) if self.rule == "abs" else value

    def set_hyperparameters(self, hyper: Hyperparameters) -> None:
        """Takes k, which is traced in training."""
        self.k = nnx.data(hyper.k)

    def loss(self, batch: Batch, hyper: Hyperparameters, kernel: Kernel) -> jax.Array:
        """Mean squared error, and where it has a coefficient the auxiliary loss AuxK.

        With a preset errors are summed, not averaged, over an activation's dimensions; "saelens"
        also ranks latents by what they are times the norm of their decoder row.

        See `SAE.loss` for the arguments.

        References:
          Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093
        """
        scale = 1.0 if self.preset is None else float(self.d_out)
        x, w_enc_t, b_enc, w_dec = self.encoder_and_decoder(batch.x)
        if not hasattr(self, "since_fired"):
            y_hat = kernel(w_enc_t, b_enc, w_dec, self.b_dec[...], x, hyper.k, self.activation)
            return scale * mse(y_hat, batch.target)
        pre = training_matmul_transposed(x, w_enc_t, self.dtype) + b_enc[None, :]
        z = self.activate(pre)
        y_hat = training_matmul(z, w_dec, self.dtype) + self.b_dec[...][None, :]
        error = scale * mse(y_hat, batch.target)
        return error + self.aux_k(pre, z, batch.target - y_hat, w_dec, batch, hyper)
