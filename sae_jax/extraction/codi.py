"""Loads CODI checkpoints: a LoRA-tuned causal model and the projection of its thoughts.

Source: Shen et al. 2025, arXiv:2502.21074; https://github.com/zhenyi4/codi saves this layout. One
state dict holds the PEFT-wrapped model under `codi.` and, under `prj.`, the network
Linear -> GELU -> Linear -> LayerNorm. The vocabulary grows by three tokens: padding, begin
and end of thought.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from sae_jax.extraction.fingerprints import tensors_sha256
from sae_jax.extraction.language_model import LanguageModel, ThoughtTokens, cast_parameters
from sae_jax.extraction.torch_files import read_torch_file

# The files of weights that a checkpoint may have, the preferred one first, and their readers.
_WEIGHT_FILES: dict[str, Callable[[Path], Any]] = {
    "model.safetensors": load_file,
    "pytorch_model.bin": read_torch_file,
}
_TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LORA_A = ".lora_A.default.weight"
_PEFT_PREFIX = "codi.base_model.model."
_EMBEDDING = f"{_PEFT_PREFIX}model.embed_tokens.weight"
_UNEMBEDDING = f"{_PEFT_PREFIX}lm_head.weight"

# Letters of what PyTorch says does not fit, which may be every weight.
_MAX_FAULTS = 1000

_logger = logging.getLogger(__name__)


def load_codi(
    base: LanguageModel,
    checkpoint: str,
    *,
    lora_alpha: float = 32.0,
    eos_before_thoughts: bool = False,
) -> LanguageModel:
    """Puts a CODI checkpoint over its base model, which is changed in place.

    The weights tell the LoRA rank, the projection's width and whether it has a LayerNorm, but
    not `lora_alpha`. The LoRA products are merged into the weights, in float32.

    An untrained base stays untrained: of the checkpoint it takes the shapes alone, and thought
    tokens and projection get random weights too.

    Args:
      base: the model that was fine-tuned.
      checkpoint: a folder or hub id with `model.safetensors` or `pytorch_model.bin`.
      lora_alpha: alpha of LoRA, whose products are scaled by alpha / rank.
      eos_before_thoughts: whether an end-of-sequence token stands before the begin-of-thought
        token and after the end-of-thought token, an option of the official evaluation.

    Raises:
      ValueError: if there is no checkpoint, or a weight is missing, unexpected or of another
        shape than the base model's.
    """
    state = _read_state_dict(checkpoint)
    compute_dtype = base.causal_lm.dtype
    vocab_size = base.causal_lm.config.vocab_size
    causal_lm = base.causal_lm.float()

    lora_a = [tensor for name, tensor in state.items() if name.endswith(_LORA_A)]
    ranks = {tensor.shape[0] for tensor in lora_a}
    if len(ranks) != 1:
        raise ValueError(f"{checkpoint} has LoRA weights of ranks {sorted(ranks)}; expected one")
    (rank,) = ranks
    config = LoraConfig(
        r=rank,
        lora_alpha=lora_alpha,  # type: ignore[arg-type]  # PEFT divides it by r, as any number
        lora_dropout=0.0,
        target_modules=list(_TARGET_MODULES),
        task_type="CAUSAL_LM",
    )
    untrained = base.untrained_seed is not None
    wrapped = nn.Module()
    with torch.random.fork_rng():
        torch.manual_seed(base.untrained_seed or 0)  # What is drawn is kept if it is untrained.
        causal_lm.resize_token_embeddings(vocab_size + 3, mean_resizing=False)
        # PEFT asks for transformers' class, and takes any module with its methods.
        wrapped.codi = cast(PeftModel, get_peft_model(causal_lm, config))  # type: ignore[arg-type]
        wrapped.prj = _projection(state, checkpoint, base.d_in)
    if untrained:
        state = wrapped.state_dict()  # Its LoRA products are zero.
    else:
        _load_exactly(wrapped, state, checkpoint, causal_lm.config.tie_word_embeddings)
    _logger.info(
        "CODI checkpoint %s: %d LoRA products of rank %d and alpha %g, projection of width %d %s "
        "LayerNorm, vocabulary %d + 3; %s",
        checkpoint,
        len(lora_a),
        rank,
        lora_alpha,
        state["prj.1.weight"].shape[0],
        "with" if hasattr(wrapped.prj, "ln") else "without",
        vocab_size,
        "its shapes alone, with random weights" if untrained else "every weight loaded",
    )
    merged = cast_parameters(wrapped.codi.merge_and_unload(), compute_dtype)
    projection = cast_parameters(wrapped.prj.to(base.device), compute_dtype)
    tokens = ThoughtTokens(
        begin=vocab_size + 1,
        end=vocab_size + 2,
        eos=base.tokenizer.eos_token_id if eos_before_thoughts else None,
    )
    name = f"{base.name} with CODI {checkpoint} (lora_alpha {lora_alpha:g})"
    return dataclasses.replace(
        base,
        name=f"{base.name}, shaped as CODI {checkpoint}" if untrained else name,
        causal_lm=merged,
        thought_tokens=tokens,
        projection=projection,
        weights_sha256=tensors_sha256(state.items()),
    )


def _read_state_dict(checkpoint: str) -> dict[str, torch.Tensor]:
    """Reads a checkpoint's weights from a folder or the hub, without running any code in them.

    Raises:
      ValueError: if there is no such checkpoint, or it holds more than tensors.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(checkpoint, allow_patterns=list(_WEIGHT_FILES)))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
            raise ValueError(
                f"no CODI checkpoint at {checkpoint!r}: neither a folder nor a hub id that can "
                f"be downloaded ({error})"
            ) from error
    for name, read in _WEIGHT_FILES.items():
        if (folder / name).is_file():
            return read(folder / name)
    raise ValueError(f"{checkpoint} holds neither of {', '.join(_WEIGHT_FILES)}")


def _projection(state: dict[str, torch.Tensor], checkpoint: str, d_in: int) -> nn.Sequential:
    if "prj.1.weight" not in state:
        raise ValueError(f"{checkpoint} lacks prj.1.weight, the projection's first weight")
    width = state["prj.1.weight"].shape[0]
    projection = nn.Sequential(
        nn.Dropout(), nn.Linear(d_in, width), nn.GELU(), nn.Linear(width, d_in)
    )
    if any(name.startswith("prj.ln.") for name in state):
        projection.add_module("ln", nn.LayerNorm(d_in))
    return projection


def _load_exactly(
    wrapped: nn.Module, state: dict[str, torch.Tensor], checkpoint: str, tied: bool
) -> None:
    """Loads every weight from the checkpoint, so that none keeps a value of its own.

    Raises:
      ValueError: if a weight is missing, unexpected or of another shape.
    """
    if tied:
        # A file may keep one of two tied weights, or both.
        for absent, present in ((_EMBEDDING, _UNEMBEDDING), (_UNEMBEDDING, _EMBEDDING)):
            if absent not in state and present in state:
                state = {**state, absent: state[present]}
    try:
        wrapped.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint} does not fit the base model: {str(error)[:_MAX_FAULTS]}"
        ) from error
