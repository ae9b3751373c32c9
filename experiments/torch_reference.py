"""The published recipe as a plain PyTorch loop: oracle of tests, baseline of benchmarks.

It is lean: nothing but the loss is computed in the forward pass, and nothing is logged.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class TorchTopKSAE(nn.Module):
    """Keeps the k pre-activations of largest magnitude, with their sign."""

    def __init__(self, params: Mapping[str, np.ndarray], k: int):
        """Takes `w_enc [D, F]`, `b_enc [F]`, `w_dec [F, D]`, `b_dec [D]`, and copies them."""
        super().__init__()
        d_in, d_sae = params["w_enc"].shape
        self.encoder = nn.Linear(d_in, d_sae)
        self.decoder = nn.Linear(d_sae, d_in)
        self.k = k
        with torch.no_grad():
            self.encoder.weight.copy_(torch.tensor(params["w_enc"].T))
            self.encoder.bias.copy_(torch.tensor(params["b_enc"]))
            self.decoder.weight.copy_(torch.tensor(params["w_dec"].T))
            self.decoder.bias.copy_(torch.tensor(params["b_dec"]))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents `[b, F]` of samples `[b, D]`."""
        pre = self.encoder(x)
        indices = pre.abs().topk(self.k, dim=-1).indices
        return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Reconstructions `[b, D]` of latents `[b, F]`."""
        return self.decoder(z)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions `[b, D]` of samples `[b, D]`."""
        return self.decode(self.encode(x))

    def params(self) -> dict[str, np.ndarray]:
        """The parameters as they were given to the constructor."""
        return {
            "w_enc": self.encoder.weight.detach().numpy().T.copy(),
            "b_enc": self.encoder.bias.detach().numpy().copy(),
            "w_dec": self.decoder.weight.detach().numpy().T.copy(),
            "b_dec": self.decoder.bias.detach().numpy().copy(),
        }


def random_params(d_in: int, d_sae: int) -> dict[str, np.ndarray]:
    """Parameters before training: those of two `nn.Linear`, decoder rows scaled to norm 1."""
    encoder, decoder = nn.Linear(d_in, d_sae), nn.Linear(d_sae, d_in)
    params = {
        "w_enc": encoder.weight.T,
        "b_enc": encoder.bias,
        "w_dec": functional.normalize(decoder.weight.T, dim=1),
        "b_dec": decoder.bias,
    }
    return {name: tensor.detach().numpy() for name, tensor in params.items()}


def adam(
    params: Iterable[torch.Tensor], learning_rate: float, *, fused: bool = False
) -> torch.optim.Adam:
    """Adam with the published values; `fused` is PyTorch's faster implementation."""
    return torch.optim.Adam(params, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=fused)


def loss_of(sae: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The mean over all elements of the squared error, `[]`."""
    return functional.mse_loss(sae(x), x)


def autocast_loss_of(sae: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The same with products in bfloat16, as PyTorch's autocast does."""
    with torch.autocast(x.device.type, torch.bfloat16):
        return loss_of(sae, x)


def step(
    sae: Any,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    loss_of: Callable[[Any, torch.Tensor], torch.Tensor] = loss_of,
) -> torch.Tensor:
    """One step on the batch `x [b, D]`; returns the loss before it.

    An ensemble's losses are added up: a member's parameters are in its own loss alone.
    """
    optimizer.zero_grad()
    loss = loss_of(sae, x)
    loss.sum().backward()
    optimizer.step()
    return loss.detach()


def ensemble(
    saes: Sequence[TorchTopKSAE],
) -> tuple[
    dict[str, torch.Tensor], Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
]:
    """SAEs of one size side by side by `torch.func.vmap`.

    Adam works on each element alone, so one optimizer of the stacked parameters does what one of
    each member would do.

    Returns:
      Their parameters by name, leading axis M, and a `loss_of` them for `step`, which gives `[M]`.
    """
    stacked, _ = torch.func.stack_module_state(list(saes))

    def losses_of(stacked: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
            return functional.mse_loss(torch.func.functional_call(saes[0], params, x), x)

        return torch.func.vmap(loss)(stacked)

    return stacked, losses_of


@torch.no_grad()
def scores(
    encode: Callable[[torch.Tensor], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
) -> dict[str, float]:
    """Quality of an SAE on samples `x [n, D]`, all at once, as `sae_jax.metrics` defines it."""
    z = encode(x)
    x_hat = decode(z)
    residual = x - x_hat
    values = {
        "explained_variance": 1 - residual.var() / x.var(),
        "fvu": residual.square().sum() / (x - x.mean(dim=0)).square().sum(),
        "mse": residual.square().mean(),
        "l0": (z != 0).sum(dim=1).float().mean(),
        "dead_fraction": (z == 0).all(dim=0).float().mean(),
        "cosine_similarity": functional.cosine_similarity(x, x_hat).mean(),
    }
    return {name: value.item() for name, value in values.items()}


def train(
    params: Mapping[str, np.ndarray],
    x: np.ndarray,
    batches: Iterable[np.ndarray],
    *,
    k: int,
    learning_rate: float = 1e-3,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Trains one SAE.

    Args:
      params: initial `w_enc [D, F]`, `b_enc [F]`, `w_dec [F, D]`, `b_dec [D]`.
      x: samples, float32 `[n, D]`.
      batches: for each step, the indices of its samples.
      k: latents kept per sample.
      learning_rate: of Adam.

    Returns:
      Every step's loss, `[num_steps]`, and the final parameters.
    """
    sae = TorchTopKSAE(params, k)
    optimizer = adam(sae.parameters(), learning_rate)
    samples = torch.tensor(x)
    losses = [step(sae, optimizer, samples[torch.tensor(rows)]) for rows in batches]
    return torch.stack(losses).numpy(), sae.params()
