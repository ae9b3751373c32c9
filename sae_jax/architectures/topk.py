"""TopK: the k latents that rank highest in each sample, with an optional auxiliary loss."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from sae_jax.architectures.aux_k import SinceFired, aux_k_loss
from sae_jax.architectures.base import SAE, options_of
from sae_jax.architectures.initialization import init_params
from sae_jax.architectures.losses import mse
from sae_jax.architectures.training import Batch, Hyperparameters, Kernel
from sae_jax.architectures.unused import UNUSED_BY_TOP_K, refuse_unused
from sae_jax.configs import SAEConfig
from sae_jax.ops.activation import ABS_TOP_K, TOP_K, Activation
from sae_jax.ops.matmul import ComputeDtype, training_matmul, training_matmul_transposed


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
        rule: Literal["abs", "relu"] = "abs" if config.architecture == "abs_topk" else "relu"
        return cls(params, config.k, rule=rule, **options_of(config))

    @classmethod
    def is_rescaled(cls, config: SAEConfig) -> bool:
        """As SAELens does."""
        return config.preset == "saelens"

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        """Refuses a config without k, or with a preset of a library that has no such SAE.

        Raises:
          ValueError: naming the field, what was found and what is allowed.
        """
        if config.k is None:
            raise ValueError(f"k is None; {config.architecture} needs 1 to d_sae = {config.d_sae}")
        refuse_unused(config, *UNUSED_BY_TOP_K, "prefix_fractions")
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

    def start_training(self, config: SAEConfig, hyper: Hyperparameters) -> None:
        """Keeps what the auxiliary loss needs to know, where there is one."""
        if config.aux_coefficient:
            self.since_fired = SinceFired(jnp.zeros(self.d_sae, jnp.int32))

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
        # SAELens revives pre-activations as they are, negative ones included.
        candidates = pre if self.preset == "saelens" else self.activation.value(pre)
        ranks = jnp.abs(candidates) if self.rule == "abs" else candidates
        missed = batch.target - y_hat
        dead = self.since_fired.count(jnp.any(z != 0, axis=0), batch, hyper, self.preset)
        auxiliary = aux_k_loss(
            candidates, ranks, missed, w_dec, dead, batch, hyper, self.preset, self.dtype
        )
        return scale * mse(y_hat, batch.target) + auxiliary
