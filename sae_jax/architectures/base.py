"""What every sparse autoencoder is: a Flax module with `encode`, `decode` and a training loss."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from sae_jax.architectures.losses import row_norms
from sae_jax.architectures.training import Arrays, Batch, Hyperparameters, Kernel
from sae_jax.configs import SAEConfig
from sae_jax.ops.matmul import (
    COMPUTE_DTYPES,
    ComputeDtype,
    matmul,
    matmul_with_rows,
)

PARAM_NAMES = ("w_enc", "b_enc", "w_dec", "b_dec")

# As in OpenAI's published code and in SAELens: added on the way in, not on the way back.
STD_EPS = 1e-5


class Options(TypedDict, total=False):
    """What every SAE takes beside its arrays, as `SAE` says."""

    center_input: bool
    normalize_input: bool
    dtype: ComputeDtype | DTypeLike


class SAE(nnx.Module):
    """An encoder and a decoder around an activation function that subclasses name.

    A subclass that trains defines `loss`. What it trains is an `nnx.Param`; what it keeps from
    step to step without training it is an `nnx.Variable` of another kind.

    Attributes:
      w_enc_t: the encoder with a latent a row, as in the decoder, `[F, D]`.
      b_enc, w_dec, b_dec: the other parameters, `[F]`, `[F, D]`, `[D]`; of a transcoder D is the
        width of what it predicts.
      kernels: names of the kernels that serve its loss, beside the dense one.
      not_per_latent: names of its own arrays that do not lead with the latent.
      training_only: names of its own arrays that a trained SAE does without.
      in_latents_units: names of its own arrays that scale as pre-activations do, as thresholds.
      center_input: whether `b_dec` is subtracted from a sample before encoding.
      normalize_input: whether each sample is standardized by its own mean and unbiased
        standard deviation before encoding, and the reconstruction scaled back (Gao et
        al. 2024, arXiv:2406.04093, and the code published with it).
      preset: the library whose training loss is followed, if any.
      rescaled: whether training takes latents times the norm of their decoder row; a trained SAE
        has the norms folded into its parameters.
      prefix_bounds: what the traced sizes of nested prefixes are at most, so that products take no
        more latents than may be in a prefix; `None` where that is not known.
      dtype: how both products are computed, a `ops.matmul.ComputeDtype`; parameters, latents
        and reconstructions are float32.
    """

    kernels: ClassVar[tuple[str, ...]] = ()
    not_per_latent: ClassVar[tuple[str, ...]] = ()
    training_only: ClassVar[tuple[str, ...]] = ()
    in_latents_units: ClassVar[tuple[str, ...]] = ()
    prefix_bounds: tuple[int, ...] | None = None

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
        # A transcoder's output may have another width, but one for both of its parameters.
        d_out = shapes["w_dec"][-1] if len(shapes["w_dec"]) == 2 else d_in
        expected = {
            "w_enc": (d_in, d_sae),
            "b_enc": (d_sae,),
            "w_dec": (d_sae, d_out),
            "b_dec": (d_out,),
        }
        if shapes != expected:
            raise ValueError(f"parameter shapes are {shapes}; w_enc calls for {expected}")
        if d_out != d_in and (center_input or normalize_input):
            raise ValueError(
                f"w_dec has rows of width {d_out}, w_enc takes {d_in}: such an SAE can neither"
                " subtract b_dec from its input nor give it its scale back"
            )
        self.w_enc_t = nnx.Param(jnp.asarray(params["w_enc"], jnp.float32).T)
        self.b_enc = nnx.Param(jnp.asarray(params["b_enc"], jnp.float32))
        self.w_dec = nnx.Param(jnp.asarray(params["w_dec"], jnp.float32))
        self.b_dec = nnx.Param(jnp.asarray(params["b_dec"], jnp.float32))
        self.center_input = center_input
        self.normalize_input = normalize_input
        self.dtype = _compute_dtype(dtype)
        self.preset: str | None = None
        self.rescaled = False

    @classmethod
    def from_params(cls, params: Mapping[str, jax.Array | np.ndarray], config: SAEConfig) -> Self:
        """The SAE of a config around parameters that were drawn, trained or read.

        Those that are drawn are the four of `params`; `start_training` adds the rest.
        """
        return cls(params, **options_of(config))

    @classmethod
    def is_rescaled(cls, config: SAEConfig) -> bool:
        """Whether training takes latents times the norm of their decoder row."""
        return False

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        """Refuses a config that this architecture cannot train.

        Raises:
          ValueError: naming the field, what was found and what is allowed.
        """

    @classmethod
    def fill(
        cls, config: SAEConfig, scale: float, num_samples: int, d_in: int, batch_size: int
    ) -> SAEConfig:
        """The config with what it leaves open and this architecture uses.

        Args:
          config: what a member asks for.
          scale: root mean square deviation of the training samples, as they are trained on, from
            their mean; of all dimensions together.
          num_samples: training samples.
          d_in: width D of an activation vector.
          batch_size: samples a step.
        """
        return config

    @classmethod
    def rates(cls, config: SAEConfig, batch: Batch) -> Arrays:
        """What the learning rate is multiplied by, for trained arrays by name; 1 for others."""
        return {}

    @classmethod
    def allowed(cls, arrays: Arrays, config: SAEConfig) -> Arrays:
        """Trained arrays after a step, moved to where they may be."""
        return arrays

    @property
    def d_in(self) -> int:
        """Width D of an activation vector."""
        return self.w_enc_t.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what is reconstructed, D but for a transcoder."""
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
    def params(self) -> Arrays:
        """The parameters as a plain dict of arrays: `w_enc [D, F]`, `b_enc`, `w_dec`, `b_dec`."""
        return {name: jnp.asarray(getattr(self, name)) for name in PARAM_NAMES}

    @classmethod
    def of_true_size(cls, arrays: Mapping[str, np.ndarray], d_sae: int) -> dict[str, np.ndarray]:
        """Trained arrays, padded or not, as `from_params` takes them.

        All but `b_dec` and those named in `not_per_latent` lead with the latent.
        """
        own = {
            name: array if name in ("b_dec", *cls.not_per_latent) else array[:d_sae]
            for name, array in arrays.items()
            if name not in cls.training_only
        }
        w_enc = _transposed_copy(own.pop("w_enc_t"))
        return {"w_enc": w_enc} | {name: array.copy() for name, array in own.items()}

    @classmethod
    def widened(cls, arrays: Arrays, num_latents: int) -> Arrays:
        """Trained or kept arrays of members, leading axis M, with so many more latents of zeros."""

        def of_array(name: str, array: jax.Array) -> jax.Array:
            if name in ("b_dec", *cls.not_per_latent):
                return array
            return jnp.pad(array, [(0, 0), (0, num_latents)] + [(0, 0)] * (array.ndim - 2))

        return {name: of_array(name, array) for name, array in arrays.items()}

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
        """Trained and kept arrays of the SAE that takes samples as they are.

        Args:
          arrays: those of one that was trained on `(x - x_mean) / x_scale`, and on targets that
            were changed likewise; in training's layout.
          config: what it was trained with.
          x_mean: `[D]`.
          x_scale: `[]`.
          y_mean: `[D_out]`.
          y_scale: `[D_out]`.

        Returns:
          Arrays of an SAE whose latents are `x_scale` times as large and fire on the same samples.
        """
        arrays = dict(arrays)
        if cls.is_rescaled(config):
            names = "w_enc_t", "b_enc", "w_dec"
            arrays |= zip(names, with_unit_rows(*(arrays[name] for name in names)), strict=True)
        for name in ("b_enc", *cls.in_latents_units):
            arrays[name] = arrays[name] * x_scale
        if not config.center_input:
            arrays["b_enc"] = arrays["b_enc"] - matmul(arrays["w_enc_t"], x_mean, "float32")
        arrays["w_dec"] = arrays["w_dec"] * (y_scale / x_scale)[None, :]
        arrays["b_dec"] = arrays["b_dec"] * y_scale + y_mean
        return arrays

    def start_training(self, config: SAEConfig, hyper: Hyperparameters) -> None:
        """Adds what the SAE keeps in training, as it is before the first step."""

    def set_hyperparameters(self, hyper: Hyperparameters) -> None:
        """Takes what is traced in training, all `[]`."""

    def loss(self, batch: Batch, hyper: Hyperparameters, kernel: Kernel) -> jax.Array:
        """The training loss on one batch; may update what the SAE keeps but does not train.

        Args:
          batch: samples and what they should become, already normalized as the config says.
          hyper: hyperparameters of this member, all `[]`.
          kernel: computes reconstructions faster than `self(x)` does.

        Returns:
          The loss, `[]`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define a training loss")

    def encoder_and_decoder(
        self, x: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """What a training loss multiplies: samples `[b, D]`, `w_enc_t`, `b_enc` and `w_dec`.

        Where `b_dec` is subtracted from the samples, its gradient goes by way of `b_enc`: the same
        sum, from one row instead of a product of all samples. Where latents are `rescaled`, they
        come times the norm of their decoder row, which is divided by it.
        """
        w_enc_t, b_enc, w_dec = self.w_enc_t[...], self.b_enc[...], self.w_dec[...]
        if self.center_input:
            b_dec, constant = self.b_dec[...], lax.stop_gradient(self.b_dec[...])
            x = x - constant[None, :]
            b_enc = b_enc - matmul(w_enc_t, b_dec - constant, "float32")
        if self.rescaled:
            w_enc_t, b_enc, w_dec = with_unit_rows(w_enc_t, b_enc, w_dec)
        return x, w_enc_t, b_enc, w_dec

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
            x = (x - mean) / (std + STD_EPS)
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


def with_unit_rows(
    w_enc_t: jax.Array, b_enc: jax.Array, w_dec: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Parameters of the same reconstructions whose decoder rows have norm 1, or 0 as before."""
    norms = row_norms(w_dec)
    norms = jnp.where(norms == 0.0, 1.0, norms)
    return w_enc_t * norms[:, None], b_enc * norms, w_dec / norms[:, None]


def options_of(config: SAEConfig) -> Options:
    """What a config says of the arguments that every SAE takes."""
    return {
        "center_input": config.center_input,
        "normalize_input": config.normalize == "layer_norm",
    }


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


def _transposed_copy(matrix: np.ndarray) -> np.ndarray:
    """The transpose, laid out as such; so many rows at a time, since NumPy's own copy of a wide
    matrix leaves the cache with every number."""
    rows_at_once = 64
    copy = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), rows_at_once):
        rows = slice(start, start + rows_at_once)
        copy[:, rows] = matrix[rows].T
    return copy


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
