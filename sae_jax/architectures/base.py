"""Sparse autoencoders as Flax modules: parameters, `encode` and `decode`."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from sae_jax.ops.matmul import COMPUTE_DTYPES, ComputeDtype, matmul
from sae_jax.ops.top_k import top_k_mask

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


class SAE(nnx.Module):
    """An encoder and a decoder around an activation function that subclasses name.

    Attributes:
      w_enc, b_enc, w_dec, b_dec: parameters, `[D, F]`, `[F]`, `[F, D]`, `[D]`.
      center_input: whether `b_dec` is subtracted from a sample before encoding.
      normalize_input: whether each sample is standardized by its own mean and unbiased
        standard deviation before encoding, and the reconstruction scaled back (Gao et
        al. 2024, arXiv:2406.04093, and the code published with it).
      dtype: how both products are computed, a `products.ComputeDtype`; parameters, latents
        and reconstructions are float32.
    """

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
            if `dtype` is none of `products.COMPUTE_DTYPES`.
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
        self.w_enc = nnx.Param(jnp.asarray(params["w_enc"], jnp.float32))
        self.b_enc = nnx.Param(jnp.asarray(params["b_enc"], jnp.float32))
        self.w_dec = nnx.Param(jnp.asarray(params["w_dec"], jnp.float32))
        self.b_dec = nnx.Param(jnp.asarray(params["b_dec"], jnp.float32))
        self.center_input = center_input
        self.normalize_input = normalize_input
        self.dtype = _compute_dtype(dtype)

    @property
    def d_in(self) -> int:
        """Width D of an activation vector."""
        return self.w_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Dictionary size F."""
        return self.w_enc.shape[1]

    @property
    def params(self) -> Params:
        """The parameters as a plain dict of arrays."""
        return {name: getattr(self, name)[...] for name in PARAM_NAMES}

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
            x = x - _as_row(self.b_dec[...], x)
        pre = matmul(x, self.w_enc[...], self.dtype)
        return self.activate(pre + _as_row(self.b_enc[...], pre))

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
        x_hat = x_hat + _as_row(self.b_dec[...], x_hat)
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


class TopKSAE(SAE):
    """Keeps the k latents of largest magnitude in each sample (Gao et al. 2024, arXiv:2406.04093).

    Attributes:
      k: latents kept; an integer, or a traced scalar inside a transformation.
      rule: `"abs"` ranks pre-activations by absolute value and keeps their sign;
        `"relu"` ranks what a ReLU leaves, so that latents are never negative.
    """

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
        self.k = int(k)
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

    def activate(self, pre: jax.Array) -> jax.Array:
        """The k pre-activations that `rule` ranks highest, zero elsewhere."""
        if self.rule == "relu":
            pre = jax.nn.relu(pre)
        return jnp.where(top_k_mask(jnp.abs(pre), self.k), pre, 0.0)


class JumpReLUSAE(SAE):
    """Keeps positive pre-activations above each latent's threshold (Rajamanoharan et al. 2024).

    Reference: arXiv:2407.14435.

    Attributes:
      threshold: `[F]`, in units of the pre-activations.
    """

    def __init__(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        threshold: jax.Array | np.ndarray,
        *,
        center_input: bool = False,
        normalize_input: bool = False,
        dtype: ComputeDtype | DTypeLike = "float32",
    ):
        super().__init__(
            params, center_input=center_input, normalize_input=normalize_input, dtype=dtype
        )
        if np.shape(threshold) != (self.d_sae,):
            raise ValueError(f"threshold has shape {np.shape(threshold)}; expected ({self.d_sae},)")
        self.threshold = nnx.Param(jnp.asarray(threshold, jnp.float32))

    def activate(self, pre: jax.Array) -> jax.Array:
        """Pre-activations above their threshold and above zero, zero elsewhere."""
        return jax.nn.relu(pre) * (pre > _as_row(self.threshold[...], pre))


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


def _as_row(vector: jax.Array, like: jax.Array) -> jax.Array:
    """A vector with leading axes of length 1, so that its rank is that of another array."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _sample_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and unbiased standard deviation of each sample, `[..., 1]`."""
    return jnp.mean(x, axis=-1, keepdims=True), jnp.std(x, axis=-1, keepdims=True, ddof=1)
