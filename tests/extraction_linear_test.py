import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from sae_jax.extraction.linear import OneDNNLinear


class Recorded(TorchDispatchMode):
    """Names of the operators that run inside this context."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 5, 7), (1, 1, 7)])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_product_in_float64(shape, bias):
    torch.manual_seed(0)
    x, layer = torch.randn(shape), nn.Linear(7, 4, bias=bias)
    with torch.no_grad(), OneDNNLinear(), Recorded() as recorded:
        found = layer(x)
    expected = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0.0)
    assert "mkldnn::_linear_pointwise" in recorded.names
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_strided_input_is_read_as_it_stands():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(7, 5, 2, generator=generator)[..., 0].T, torch.ones(3, 7)
    with torch.inference_mode(), OneDNNLinear():
        found = functional.linear(x, weight)
    torch.testing.assert_close(found, x.sum(dim=1, keepdim=True).expand(5, 3))


def test_other_dtypes_and_gradients_are_left_alone():
    x = torch.ones(5, 7)
    layer = nn.Linear(7, 4)
    with OneDNNLinear(), Recorded() as recorded:
        layer(x).sum().backward()
        with torch.no_grad():
            assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer.weight.grad, torch.full((4, 7), 5.0))
    assert "mkldnn::_linear_pointwise" not in recorded.names
