"""Rewrites an SAE for formats that hold fewer kinds of SAE than the modules.

Each rewriting leaves reconstructions as they are. A file that holds a rewritten SAE
says so in a note of its config, so that what can be undone exactly is undone on reading.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sae_jax.architectures.base import SAE
from sae_jax.architectures.batch_topk import BatchTopKSAE
from sae_jax.architectures.gated import GatedSAE
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.relu import ReLUSAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats import fields, kinds
from sae_jax.formats.files import Arrays

NOTE = "sae_jax"
"""The config entry that holds the note."""

DOUBLED = "doubled"
CENTERED = "centered"
UNCENTERED = "uncentered"

_Kind = TypeVar("_Kind", bound=SAE)


def to_relu_rule(sae: TopKSAE) -> tuple[TopKSAE, list[str]]:
    """Returns a ReLU-top-k SAE of the same reconstructions, and the rewritings that it took.

    Where k latents of largest magnitude are kept with their sign, a second copy of each
    latent, negated, turns them into the k largest of 2F latents that a ReLU leaves
    alone: `z = z2[:F] - z2[F:]`. This is exact but for samples in which magnitudes tie.
    """
    if sae.rule == "relu":
        return sae, []
    p = kinds.arrays_of(sae)
    params = p | {
        "w_enc": np.concatenate([p["w_enc"], -p["w_enc"]], axis=1),
        "b_enc": np.concatenate([p["b_enc"], -p["b_enc"]]),
        "w_dec": np.concatenate([p["w_dec"], -p["w_dec"]]),
    }
    return _like(sae, params, rule="relu"), [DOUBLED]


def to_centering(sae: SAE, center: bool) -> tuple[SAE, list[str]]:
    """Returns an SAE that does or does not subtract `b_dec` before encoding, and the rewritings.

    `x @ w_enc + b_enc = (x - b_dec) @ w_enc + (b_enc + b_dec @ w_enc)`. A gated SAE has two such
    biases, and multiplies what the second is added to by `exp(r_mag)`.
    """
    if sae.center_input == center:
        return sae, []
    arrays = kinds.arrays_of(sae)
    shift = arrays["b_dec"].astype(np.float64) @ arrays["w_enc"].astype(np.float64)
    shift = shift if center else -shift
    shifts = {"b_enc": shift}
    if isinstance(sae, GatedSAE):
        shifts["b_mag"] = shift * np.exp(arrays["r_mag"].astype(np.float64))
    arrays |= {name: (arrays[name] + by).astype(np.float32) for name, by in shifts.items()}
    return _like(sae, arrays, center_input=center), [CENTERED if center else UNCENTERED]


def to_centered_relu_rule(sae: SAE, name: str) -> tuple[TopKSAE, list[str]]:
    """Applies both rewritings, for a format that has one kind of SAE.

    Args:
      sae: the SAE to write.
      name: name of the format in errors.

    Raises:
      ValueError: if the SAE is not a top-k, or is one that `check_plain` refuses.
    """
    if not isinstance(sae, TopKSAE):
        raise ValueError(f"the {name} format holds a TopKSAE here, no {type(sae).__name__}")
    check_plain(sae, name)
    centered, centering = to_centering(sae, True)
    assert isinstance(centered, TopKSAE)
    written, doubling = to_relu_rule(centered)
    return written, centering + doubling


def check_plain(sae: SAE, name: str) -> None:
    """Refuses an SAE for a format that knows neither input normalization nor transcoders.

    Raises:
      ValueError: if it is of such a kind; `name` is that of the format.
    """
    if sae.normalize_input:
        raise ValueError(f"the {name} format cannot hold an SAE whose normalize_input is True")
    if sae.d_out != sae.d_in:
        raise ValueError(
            f"the {name} format cannot hold a transcoder; this one takes activations of width"
            f" {sae.d_in} and gives some of width {sae.d_out}"
        )


def to_jumprelu(sae: SAE) -> JumpReLUSAE:
    """Returns the JumpReLU SAE of the same latents.

    A ReLU has threshold 0, a batch top-k the one that it infers by, which is 0 before its first
    estimate, and a gated SAE one that follows from its biases.

    Raises:
      ValueError: if there is none, as for a top-k.
    """
    if isinstance(sae, JumpReLUSAE):
        return sae
    arrays = kinds.arrays_of(sae)
    if isinstance(sae, GatedSAE):
        return gated_to_jumprelu(arrays | {"b_gate": arrays["b_enc"]}, **kinds.input_options(sae))
    if not isinstance(sae, BatchTopKSAE | ReLUSAE):
        raise ValueError(f"no JumpReLU SAE computes what a {type(sae).__name__} does")
    threshold = np.maximum(arrays.pop("threshold", np.float32(0.0)), 0.0)
    return JumpReLUSAE(arrays, np.full_like(arrays["b_enc"], threshold), **kinds.input_options(sae))


def undo(sae: TopKSAE, config: Mapping[str, Any], path: Path) -> TopKSAE:
    """Undoes what the note in a config says was rewritten, as far as that is exact.

    A doubled SAE gets its F latents and their sign back, bit for bit. A centered one
    stays centered, since subtracting the shift again would round once more.

    Raises:
      ValueError: if the note is not what this project writes, the second half of a
        doubled SAE does not mirror the first, or its rule is not what doubling serves.
    """
    note = fields.mapping({NOTE: {}} | dict(config), NOTE, path)
    steps = note.get("rewritten", [])
    if not isinstance(steps, list) or any(step not in (DOUBLED, CENTERED) for step in steps):
        raise fields.refused("rewritten", steps, f"some of {[DOUBLED, CENTERED]}", path)
    if DOUBLED not in steps:
        return sae
    p = kinds.arrays_of(sae)
    half = sae.d_sae // 2
    params = p | {
        "w_enc": p["w_enc"][:, :half],
        "b_enc": p["b_enc"][:half],
        "w_dec": p["w_dec"][:half],
    }
    single = _like(sae, params, rule="abs")
    doubled = kinds.arrays_of(to_relu_rule(single)[0])
    mirrored = all(np.array_equal(doubled[name], p[name], equal_nan=True) for name in p)
    if sae.rule != "relu" or not mirrored:
        raise ValueError(f"{path} says that latents are doubled, but they are not mirrored")
    return single


def fold_decoder_norms(sae: _Kind) -> _Kind:
    """Returns an SAE whose latents are those of `sae` times the norm of their decoder row.

    Reconstructions of the same latents stay; what changes is which latents a top-k ranks
    first, or what a threshold, kept as it is, lets through. A latent whose decoder row is
    zero becomes zero throughout.
    """
    params = kinds.arrays_of(sae)
    norms = np.linalg.norm(params["w_dec"].astype(np.float64), axis=1)
    divisors = np.where(norms == 0.0, 1.0, norms)
    params |= {
        "w_enc": (params["w_enc"] * norms).astype(np.float32),
        "b_enc": (params["b_enc"] * norms).astype(np.float32),
        "w_dec": (params["w_dec"] / divisors[:, None]).astype(np.float32),
    }
    return _like(sae, params)


def gated_to_jumprelu(arrays: Mapping[str, np.ndarray], **options: Any) -> JumpReLUSAE:
    """Returns the JumpReLU SAE of the same latents as a gated one (arXiv:2404.16014, section 3.2).

    A gated latent with `h = x @ w_enc` is `relu(h exp(r_mag) + b_mag)` where `h + b_gate` is
    above zero. As `exp(r_mag)` is positive, that is where the magnitude before its ReLU is
    above `b_mag - b_gate exp(r_mag)`: its threshold.

    Args:
      arrays: `w_enc [D, F]`, `w_dec [F, D]`, `b_dec [D]`, and `b_gate`, `b_mag` and `r_mag`, `[F]`.
      **options: `center_input` and `normalize_input`, as `SAE` takes them.

    Raises:
      ValueError: if shapes do not fit each other.
    """
    num_latents = arrays["w_enc"].shape[-1:]
    for name in ("b_gate", "b_mag", "r_mag"):
        if arrays[name].shape != num_latents:  # Others would broadcast.
            raise ValueError(
                f"{name} has shape {arrays[name].shape}; w_enc calls for {num_latents}"
            )
    scales = np.exp(arrays["r_mag"].astype(np.float64))
    params = {
        "w_enc": (arrays["w_enc"] * scales).astype(np.float32),
        "b_enc": arrays["b_mag"],
        "w_dec": arrays["w_dec"],
        "b_dec": arrays["b_dec"],
    }
    threshold = (arrays["b_mag"] - arrays["b_gate"] * scales).astype(np.float32)
    return JumpReLUSAE(params, threshold, **options)


def noted_metadata(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the metadata in a config's note, or the whole config where there is no note.

    Raises:
      ValueError: if the note is not what this project writes.
    """
    if NOTE not in config:
        return config
    return fields.mapping(fields.mapping(config, NOTE, path), "metadata", path)


def _like(sae: _Kind, arrays: Arrays, **changes: Any) -> _Kind:
    made = kinds.build(kinds.kind_of(sae), arrays, kinds.settings_of(sae) | changes)
    assert isinstance(made, type(sae))
    return made
