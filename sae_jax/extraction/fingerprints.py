"""Checksums of what decides activations: a model's weights, a tokenizer, a text."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase


def tensors_sha256(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Sha256 of tensors: their names, dtypes, shapes and bytes, in the order of the names."""
    ordered = sorted(named, key=lambda pair: pair[0])
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        digests = pool.map(_tensor_sha256, [tensor for _, tensor in ordered])
        content = [
            [name, str(tensor.dtype), list(tensor.shape), digest]
            for (name, tensor), digest in zip(ordered, digests, strict=True)
        ]
    return json_sha256(content)


def module_sha256(module: torch.nn.Module) -> str:
    """Sha256 of a module's parameters and buffers, saved ones or not."""
    return tensors_sha256([*module.named_parameters(), *module.named_buffers()])


def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Sha256 of a tokenizer's tokens with their ids, added ones among them."""
    return json_sha256(sorted(tokenizer.get_vocab().items()))


def json_sha256(value: Any) -> str:
    """Sha256 of a value that JSON holds."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _tensor_sha256(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
