"""Rewrites an SAE for formats that hold fewer kinds of SAE than the modules.

Each rewriting leaves reconstructions as they are. A file that holds a rewritten SAE
says so in a note of its config, so that what can be undone exactly is undone on reading.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_jax.architectures.base import SAE
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats import fields
from sae_jax.formats.files import Arrays

NOTE = "sae_jax"
"""The config entry that holds the note."""

DOUBLED = "doubled"
CENTERED = "centered"


def host_arrays(sae: SAE) -> Arrays:
    """Returns the parameters, and the threshold of a JumpReLU, as float32 NumPy arrays."""
    arrays = dict(sae.params)
    if isinstance(sae, JumpReLUSAE):
        arrays["threshold"] = sae.threshold[...]
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def input_options(sae: SAE) -> dict[str, Any]:
    """Returns what an SAE does to its input, as the modules take it and the own format keeps it."""
    return {"center_input": sae.center_input, "normalize_input": sae.normalize_input}


def to_relu_rule(sae: TopKSAE) -> tuple[TopKSAE, list[str]]:
    """Returns a ReLU-top-k SAE of the same reconstructions, and the rewritings that it took.

    Where k latents of largest magnitude are kept with their sign, a second copy of each
    latent, negated, turns them into the k largest of 2F latents that a ReLU leaves
    alone: `z = z2[:F] - z2[F:]`. This is exact but for samples in which magnitudes tie.
    """
    if sae.rule == "relu":
        return sae, []
    p = host_arrays(sae)
    params = p | {
        "w_enc": np.concatenate([p["w_enc"], -p["w_enc"]], axis=1),
        "b_enc": np.concatenate([p["b_enc"], -p["b_enc"]]),
        "w_dec": np.concatenate([p["w_dec"], -p["w_dec"]]),
    }
    return _like(sae, params, rule="relu"), [DOUBLED]


def to_centered(sae: TopKSAE) -> tuple[TopKSAE, list[str]]:
    """Returns an SAE that subtracts `b_dec` before encoding, and the rewritings that it took.

    `x @ w_enc + b_enc = (x - b_dec) @ w_enc + (b_enc + b_dec @ w_enc)`.
    """
    if sae.center_input:
        return sae, []
    params = host_arrays(sae)
    shift = params["b_dec"].astype(np.float64) @ params["w_enc"].astype(np.float64)
    params["b_enc"] = (params["b_enc"] + shift).astype(np.float32)
    return _like(sae, params, center_input=True), [CENTERED]


def to_centered_relu_rule(sae: SAE, name: str) -> tuple[TopKSAE, list[str]]:
    """Applies both rewritings, for a format that has one kind of SAE.

    Args:
      sae: the SAE to write.
      name: name of the format in errors.

    Raises:
      ValueError: if the SAE is not a top-k, or normalizes its input.
    """
    if not isinstance(sae, TopKSAE):
        raise ValueError(f"the {name} format holds a TopKSAE here, no {type(sae).__name__}")
    if sae.normalize_input:
        raise ValueError(f"the {name} format cannot hold an SAE whose normalize_input is True")
    centered, centering = to_centered(sae)
    written, doubling = to_relu_rule(centered)
    return written, centering + doubling


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
    p = host_arrays(sae)
    half = sae.d_sae // 2
    params = p | {
        "w_enc": p["w_enc"][:, :half],
        "b_enc": p["b_enc"][:half],
        "w_dec": p["w_dec"][:half],
    }
    single = _like(sae, params, rule="abs")
    doubled = host_arrays(to_relu_rule(single)[0])
    mirrored = all(np.array_equal(doubled[name], p[name], equal_nan=True) for name in p)
    if sae.rule != "relu" or not mirrored:
        raise ValueError(f"{path} says that latents are doubled, but they are not mirrored")
    return single


def fold_decoder_norms(sae: TopKSAE | JumpReLUSAE) -> TopKSAE | JumpReLUSAE:
    """Returns an SAE whose latents are those of `sae` times the norm of their decoder row.

    Reconstructions of the same latents stay; what changes is which latents a top-k ranks
    first, or what a threshold, kept as it is, lets through. A latent whose decoder row is
    zero becomes zero throughout.
    """
    params = host_arrays(sae)
    norms = np.linalg.norm(params["w_dec"].astype(np.float64), axis=1)
    divisors = np.where(norms == 0.0, 1.0, norms)
    params |= {
        "w_enc": (params["w_enc"] * norms).astype(np.float32),
        "b_enc": (params["b_enc"] * norms).astype(np.float32),
        "w_dec": (params["w_dec"] / divisors[:, None]).astype(np.float32),
    }
    if isinstance(sae, TopKSAE):
        return _like(sae, params)
    threshold = params.pop("threshold")
    return JumpReLUSAE(params, threshold, **input_options(sae))


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


def _like(sae: TopKSAE, params: Arrays, **changes: Any) -> TopKSAE:
    options: dict[str, Any] = {"rule": sae.rule} | input_options(sae) | changes
    return TopKSAE(params, sae.k, **options)
