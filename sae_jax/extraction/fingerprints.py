"""Computes checksums of what decides activations: weights, a tokenizer's vocabulary, prompts."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


def tensors_sha256(named: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Returns the sha256 of tensors: of names, dtypes, shapes and bytes, sorted by name."""
    ordered = sorted(named, key=lambda pair: pair[0])
    with ThreadPoolExecutor() as pool:  # Hashing lets other threads run.
        digests = pool.map(_tensor_sha256, [tensor for _, tensor in ordered])
        content = [
            [name, str(tensor.dtype), list(tensor.shape), digest]
            for (name, tensor), digest in zip(ordered, digests, strict=True)
        ]
    return json_sha256(content)


def json_sha256(value: Any) -> str:
    """Returns the sha256 of a value that JSON holds."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _tensor_sha256(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
