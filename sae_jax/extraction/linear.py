"""Computes linear layers in float32 on a CPU by the faster of PyTorch's two libraries."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class OneDNNLinear(TorchFunctionMode):
    """Inside this context linear layers in float32 on a CPU run in oneDNN, which PyTorch brings.

    PyTorch itself takes MKL, which on an AMD Zen 5 reaches half of what oneDNN does. The
    operator is the one that `torch.compile` puts in its place; no weight is changed or packed.
    Other dtypes and devices, and whatever needs a gradient, are left alone.
    """

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replaces `torch.nn.functional.linear` alone."""
        if func is functional.linear and not kwargs and _fits(*args[:2]):
            x, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return func(*args, **(kwargs or {}))


def _fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and torch.backends.mkldnn.is_available()
    )
