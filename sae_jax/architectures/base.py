"""What every sparse autoencoder is: a Flax module with `encode`, `decode` and a training loss."""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from sae_jax.configs import SAEConfig
from sae_jax.ops.matmul import COMPUTE_DTYPES, ComputeDtype, matmul, matmul_with_rows

Arrays = dict[str, jax.Array]
"""Arrays of an SAE in training by name, such as `w_enc_t [F, D]`, where a latent is a row."""

Params = dict[str, jax.Array]
"""`w_enc [D, F]`, `b_enc [F]`, `w_dec [F, D]`, `b_dec [D]`."""

PARAM_NAMES = ("w_enc", "b_enc", "w_dec", "b_dec")

# As in OpenAI's published code and in SAELens: added on the way in, not on the way back.
_STD_EPS = 1e-5


def init_params(key: jax.Array, d_in: int, d_sae: jax.Array | int, width: int) -> Params:
    """Draws the parameters of one SAE, padded with zero latents to a given width.

    As two independent `torch.nn.Linear` layers do, draws weights and biases uniformly
    from (-1/sqrt(fan_in), 1/sqrt(fan_in)), then scales each decoder row to unit norm.
    Each latent has a key of its own, so a latent's numbers do not depend on `width`.

    Args:
      key: a PRNG key.
      d_in: width D of an activation vector.
      d_sae: true number of latents; may be traced.
      width: number of latents F allocated, at least `d_sae`.

    Returns:
      float32 parameters; latents from `d_sae` on are zero.
    """
    enc_key, dec_key, b_enc_key, b_dec_key = jax.random.split(key, 4)
    enc_bound = 1.0 / math.sqrt(d_in)
    dec_bound = jax.lax.rsqrt(jnp.asarray(d_sae, jnp.float32))

    def draw(key: jax.Array, bound: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, minval=-1.0, maxval=1.0) * bound

    def draw_latents(key: jax.Array, bound: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
        latents = jnp.arange(width, dtype=jnp.int32)
        keys = jax.vmap(lambda latent: jax.random.fold_in(key, latent))(latents)
        rows = jax.vmap(lambda key: draw(key, bound, shape))(keys)
        real = latents < d_sae
        return jnp.where(real.reshape((-1,) + (1,) * len(shape)), rows, 0.0)

    w_dec = draw_latents(dec_key, dec_bound, (d_in,))
    norms = jnp.linalg.norm(w_dec, axis=1, keepdims=True)
    return {
        "w_enc": draw_latents(enc_key, enc_bound, (d_in,)).T,
        "b_enc": draw_latents(b_enc_key, enc_bound, ()),
        "w_dec": w_dec / jnp.where(norms == 0.0, 1.0, norms),
        "b_dec": draw(b_dec_key, dec_bound, (d_in,)),
    }


class Hyperparameters(NamedTuple):
    """In what members of a group differ; traced, so that a new value does not recompile.

    Each is `[]` for one member and `[M]` for a group.

    Attributes:
      seed: PRNG seed of the initialization.
      d_sae: true number of latents.
      k: latents kept per sample, or what the architecture takes it for.
      learning_rate: of the optimizer.
      aux_coefficient: weight of an auxiliary loss.
      aux_k: latents that an auxiliary loss may revive at a time.
      dead_after: samples without firing after which a latent is dead.
    """

    seed: jax.Array
    d_sae: jax.Array
    k: jax.Array
    learning_rate: jax.Array
    aux_coefficient: jax.Array
    aux_k: jax.Array
    dead_after: jax.Array


Kernel = Callable[..., jax.Array]
"""Computes reconstructions `[b, D]` with a derivative of its own, as `ops.dense.reconstruct`."""


class SAE(nnx.Module):
    """An encoder and a decoder around an activation function that subclasses name.

    A subclass that trains defines `loss`. What it trains is an `nnx.Param`; what it keeps from
    step to step without training it is an `nnx.Variable` of another kind.

    Attributes:
      w_enc_t: the encoder with a latent a row, as in the decoder, `[F, D]`.
      b_enc, w_dec, b_dec: the other parameters, `[F]`, `[F, D]`, `[D]`.
      kernels: names of the kernels that serve its loss, beside the dense one.
      not_per_latent: names of its own arrays that do not lead with the latent.
      training_only: names of its own arrays that a trained SAE does without.
      center_input: whether `b_dec` is subtracted from a sample before encoding.
      normalize_input: whether each sample is standardized by its own mean and unbiased
        standard deviation before encoding, and the reconstruction scaled back (Gao et
        al. 2024, arXiv:2406.04093, and the code published with it).
      dtype: how both products are computed, a `ops.matmul.ComputeDtype`; parameters, latents
        and reconstructions are float32.
    """

    kernels: ClassVar[tuple[str, ...]] = ()
    not_per_latent: ClassVar[tuple[str, ...]] = ()
    training_only: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        *,
        center_input: bool = False,
        normalize_input: bool = False,
        dtype: ComputeDtype | DTypeLike = "float32",
    ):
        """Takes parameters, as float32.

        Raises:
          ValueError: if a parameter is missing, unknown, or of another shape than the rest;
            if `dtype` is none of `ops.matmul.COMPUTE_DTYPES`.
        """
        if sorted(params) != sorted(PARAM_NAMES):
            raise ValueError(f"parameters are {sorted(params)}; expected {sorted(PARAM_NAMES)}")
        shapes = {name: tuple(np.shape(params[name])) for name in PARAM_NAMES}
        if len(shapes["w_enc"]) != 2:
            raise ValueError(f"w_enc has shape {shapes['w_enc']}; expected [d_in, d_sae]")
        d_in, d_sae = shapes["w_enc"]
        expected = {
            "w_enc": (d_in, d_sae),
            "b_enc": (d_sae,),
            "w_dec": (d_sae, d_in),
            "b_dec": (d_in,),
        }
        if shapes != expected:
            raise ValueError(f"parameter shapes are {shapes}; w_enc calls for {expected}")
        self.w_enc_t = nnx.Param(jnp.asarray(params["w_enc"], jnp.float32).T)
        self.b_enc = nnx.Param(jnp.asarray(params["b_enc"], jnp.float32))
        self.w_dec = nnx.Param(jnp.asarray(params["w_dec"], jnp.float32))
        self.b_dec = nnx.Param(jnp.asarray(params["b_dec"], jnp.float32))
        self.center_input = center_input
        self.normalize_input = normalize_input
        self.dtype = _compute_dtype(dtype)

    @classmethod
    def from_params(cls, params: Mapping[str, jax.Array | np.ndarray], config: SAEConfig) -> Self:
        """The SAE of a config around parameters that were drawn, trained or read."""
        return cls(params)

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        """Refuses a config that this architecture cannot train.

        Raises:
          ValueError: naming the field, what was found and what is allowed.
        """

    @property
    def d_in(self) -> int:
        """Width D of an activation vector."""
        return self.w_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Dictionary size F."""
        return self.w_dec.shape[0]

    @property
    def w_enc(self) -> jax.Array:
        """The encoder, `[D, F]`."""
        return self.w_enc_t[...].T

    @property
    def params(self) -> Params:
        """The parameters as a plain dict of arrays: `w_enc [D, F]`, `b_enc`, `w_dec`, `b_dec`."""
        return {name: jnp.asarray(getattr(self, name)) for name in PARAM_NAMES}

    @classmethod
    def of_true_size(cls, arrays: Mapping[str, np.ndarray], d_sae: int) -> dict[str, np.ndarray]:
        """Trained arrays, padded or not, as `from_params` takes them.

        All but `b_dec` and those named in `not_per_latent` lead with the latent.
        """
        arrays = {
            name: (array if name in ("b_dec", *cls.not_per_latent) else array[:d_sae]).copy()
            for name, array in arrays.items()
            if name not in cls.training_only
        }
        return {"w_enc": np.ascontiguousarray(arrays.pop("w_enc_t").T)} | arrays

    def start_training(self, config: SAEConfig) -> None:
        """Adds what the SAE keeps in training, as it is before the first step."""

    def set_hyperparameters(self, hyper: Hyperparameters) -> None:
        """Takes what is traced in training, all `[]`."""

    def loss(
        self, x: jax.Array, hyper: Hyperparameters, latents: jax.Array, kernel: Kernel
    ) -> jax.Array:
        """The training loss on one batch; may update what the SAE keeps but does not train.

        Args:
          x: samples `[b, D]`.
          hyper: hyperparameters of this member, all `[]`.
          latents: bool `[F]`, false for latents that only pad the SAE to its group's width: they
            have zero parameters, and may not be chosen, revived or counted as dead.
          kernel: computes reconstructions faster than `self(x)` does.

        Returns:
          The loss, `[]`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define a training loss")

    def arrays(self) -> Arrays:
        """Everything that is trained or kept, by name, as in training."""
        states: Any = nnx.split(self, nnx.Param, nnx.Variable, ...)
        return nnx.to_pure_dict(states[1]) | nnx.to_pure_dict(states[2])

    def activate(self, pre: jax.Array) -> jax.Array:
        """Latents `[..., F]` of pre-activations `[..., F]`."""
        raise NotImplementedError(f"{type(self).__name__} does not define an activation function")

    def encode(self, x: jax.Array) -> jax.Array:
        """Latents `[..., F]` of samples `[..., D]`, float32.

        Raises:
          ValueError: if `x` is no array of width D.
        """
        x = _checked(x, self.d_in, "x", "d_in")
        if self.normalize_input:
            mean, std = _sample_moments(x)
            x = (x - mean) / (std + _STD_EPS)
        if self.center_input:
            x = x - as_row(self.b_dec[...], x)
        pre = matmul_with_rows(x, self.w_enc_t[...], self.dtype)
        return self.activate(pre + as_row(self.b_enc[...], pre))

    def decode(self, z: jax.Array, x: jax.Array | None = None) -> jax.Array:
        """Reconstructions `[..., D]` of latents `[..., F]`, float32.

        Args:
          z: latents.
          x: the samples that `z` encodes, whose mean and scale the reconstructions get
            back; needed only when `normalize_input` is set.

        Raises:
          ValueError: if `z` is no array of width F; if `normalize_input` is set and `x` is
            missing or no array of width D.
        """
        x_hat = matmul(_checked(z, self.d_sae, "z", "d_sae"), self.w_dec[...], self.dtype)
        x_hat = x_hat + as_row(self.b_dec[...], x_hat)
        if not self.normalize_input:
            return x_hat
        if x is None:
            raise ValueError("this SAE normalizes its input: decode(z, x) needs the samples x")
        x = _checked(x, self.d_in, "x", "d_in")
        mean, std = _sample_moments(jnp.asarray(x, jnp.float32))
        return x_hat * std + mean

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reconstructions `[..., D]` of samples `[..., D]`."""
        return self.decode(self.encode(x), x)


def _checked(array: Any, width: int, name: str, axis: str) -> jax.Array:
    """The array as float32, if it is one whose last axis is that of the SAE."""
    kind = type(array)
    if kind.__module__.partition(".")[0] == "torch":
        raise ValueError(
            f"{name} is a {kind.__module__}.{kind.__name__}; expected an array of NumPy or JAX,"
            f" such as {name}.numpy()"
        )
    try:
        found = jnp.asarray(array)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {array!r}; expected an array [..., {axis}]") from error
    if found.ndim == 0 or found.shape[-1] != width:
        raise ValueError(
            f"{name} has shape {found.shape}; expected [..., {width}], as {axis} of this SAE"
        )
    return found.astype(jnp.float32)


def _compute_dtype(dtype: ComputeDtype | DTypeLike) -> ComputeDtype:
    """The name of a way to compute products, or of a dtype."""
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    for allowed in COMPUTE_DTYPES:
        if name == allowed:
            return allowed
    raise ValueError(f"dtype is {name!r}; allowed are {COMPUTE_DTYPES}")


def as_row(vector: jax.Array, like: jax.Array) -> jax.Array:
    """A vector with leading axes of length 1, so that its rank is that of another array."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _sample_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and unbiased standard deviation of each sample, `[..., 1]`."""
    return jnp.mean(x, axis=-1, keepdims=True), jnp.std(x, axis=-1, keepdims=True, ddof=1)
