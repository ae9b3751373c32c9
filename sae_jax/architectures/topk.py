"""TopK: the k latents that rank highest in each sample, with an optional auxiliary loss."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from sae_jax.architectures.base import SAE, Hyperparameters, Kernel, init_params
from sae_jax.architectures.losses import mse
from sae_jax.configs import SAEConfig
from sae_jax.ops.activation import ABS_TOP_K, TOP_K, Activation
from sae_jax.ops.matmul import ComputeDtype, training_matmul, training_matmul_transposed
from sae_jax.ops.top_k import top_k_mask


class SinceFired(nnx.Variable):
    """Samples since each latent fired last, int32 `[F]`."""


class TopKSAE(SAE):
    """Keeps the k latents of largest magnitude in each sample (Gao et al. 2024, arXiv:2406.04093).

    Architecture `abs_topk` is the published experiment's, with the rule "abs"; `topk` has the rule
    "relu".

    Attributes:
      k: latents kept; an integer, or a traced scalar inside a transformation.
      rule: `"abs"` ranks pre-activations by absolute value and keeps their sign;
        `"relu"` ranks what a ReLU leaves, so that latents are never negative.
      since_fired: samples since each latent fired last, `[F]`, where the auxiliary loss needs
        to know.
    """

    kernels = ("firing_rows", "selected_rows")
    training_only = ("since_fired",)

    def __init__(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        k: int,
        *,
        rule: Literal["abs", "relu"] = "abs",
        center_input: bool = False,
        normalize_input: bool = False,
        dtype: ComputeDtype | DTypeLike = "float32",
    ):
        super().__init__(
            params, center_input=center_input, normalize_input=normalize_input, dtype=dtype
        )
        if not 1 <= k <= self.d_sae:
            raise ValueError(f"k is {k}; allowed is 1 to d_sae = {self.d_sae}")
        if rule not in ("abs", "relu"):
            raise ValueError(f"rule is {rule!r}; allowed are 'abs' and 'relu'")
        self.k: Any = int(k)
        self.rule = rule

    @classmethod
    def init(
        cls,
        key: jax.Array,
        d_in: int,
        d_sae: int,
        k: int,
        dtype: ComputeDtype | DTypeLike = "float32",
    ) -> Self:
        """A fresh SAE of the published recipe; see `init_params`."""
        return cls(init_params(key, d_in, d_sae, width=d_sae), k, dtype=dtype)

    @classmethod
    def from_params(cls, params: Mapping[str, jax.Array | np.ndarray], config: SAEConfig) -> Self:
        """The SAE of a config around parameters that were drawn, trained or read."""
        cls.check(config)
        assert config.k is not None
        return cls(params, config.k, rule="abs" if config.architecture == "abs_topk" else "relu")

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        """Refuses a config without k, or an auxiliary loss where latents have a sign.

        Raises:
          ValueError: naming the field, what was found and what is allowed.
        """
        if config.k is None:
            raise ValueError(f"k is None; {config.architecture} needs 1 to d_sae = {config.d_sae}")
        if config.architecture == "abs_topk" and config.aux_coefficient:
            raise ValueError(
                f"aux_coefficient is {config.aux_coefficient}; allowed is 0 for abs_topk, and 0 or"
                " more for topk"
            )

    @property
    def activation(self) -> Activation:
        """How latents come from pre-activations."""
        return ABS_TOP_K if self.rule == "abs" else TOP_K

    def activate(self, pre: jax.Array) -> jax.Array:
        """The k pre-activations that `rule` ranks highest, zero elsewhere."""
        return self.activation(pre, jnp.asarray(self.k, jnp.int32))

    def start_training(self, config: SAEConfig) -> None:
        """Keeps what the auxiliary loss needs to know, where there is one."""
        if config.aux_coefficient:
            self.since_fired = SinceFired(jnp.zeros(self.d_sae, jnp.int32))

    def set_hyperparameters(self, hyper: Hyperparameters) -> None:
        """Takes k, which is traced in training."""
        self.k = nnx.data(hyper.k)

    def loss(
        self, x: jax.Array, hyper: Hyperparameters, latents: jax.Array, kernel: Kernel
    ) -> jax.Array:
        """Mean squared error, and where it has a coefficient the auxiliary loss AuxK.

        AuxK lets the `aux_k` dead latents of largest pre-activation reconstruct what the others
        miss, e = x - x_hat: coefficient * mean((e_hat - e)^2) / mean(e^2), without gradient
        through e, and 0 where no latent is dead.

        See `SAE.loss` for the arguments.

        References:
          Gao et al. 2024, "Scaling and evaluating sparse autoencoders", arXiv:2406.04093
        """
        if not hasattr(self, "since_fired"):
            arrays = (v[...] for v in (self.w_enc_t, self.b_enc, self.w_dec, self.b_dec))
            return mse(kernel(*arrays, x, hyper.k, self.activation), x)
        pre = training_matmul_transposed(x, self.w_enc_t[...], self.dtype)
        pre = pre + self.b_enc[...][None, :]
        z = self.activate(pre)
        x_hat = training_matmul(z, self.w_dec[...], self.dtype) + self.b_dec[...][None, :]

        since = self.since_fired[...]
        dead = latents & (since >= hyper.dead_after)
        missed = lax.stop_gradient(x - x_hat)
        candidates = jnp.where(dead[None, :], jax.nn.relu(pre), 0.0)
        revived = jnp.where(top_k_mask(candidates, hyper.aux_k), candidates, 0.0)
        missed_hat = training_matmul(revived, self.w_dec[...], self.dtype)
        auxiliary = mse(missed_hat, missed) / jnp.mean(jnp.square(missed))
        auxiliary = jnp.where(jnp.any(dead) & jnp.isfinite(auxiliary), auxiliary, 0.0)

        fired = jnp.any(z != 0, axis=0)
        self.since_fired[...] = jnp.where(fired | ~latents, 0, since + len(x))
        return mse(x_hat, x) + hyper.aux_coefficient * auxiliary
