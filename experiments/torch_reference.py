"""The published recipe as a plain PyTorch loop: oracle of tests, baseline of benchmarks.

It is lean: nothing but the loss is computed in the forward pass, and nothing is logged.
"""

from collections.abc import Iterable, Mapping

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions `[b, D]` of samples `[b, D]`."""
        return self.decoder(self.encode(x))

    def params(self) -> dict[str, np.ndarray]:
        """The parameters as they were given to the constructor."""
        return {
            "w_enc": self.encoder.weight.detach().numpy().T.copy(),
            "b_enc": self.encoder.bias.detach().numpy().copy(),
            "w_dec": self.decoder.weight.detach().numpy().T.copy(),
            "b_dec": self.decoder.bias.detach().numpy().copy(),
        }


def adam(sae: nn.Module, learning_rate: float, *, fused: bool = False) -> torch.optim.Adam:
    """Adam with the published values; `fused` is PyTorch's faster implementation."""
    return torch.optim.Adam(
        sae.parameters(), lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=fused
    )


def step(sae: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> torch.Tensor:
    """One step on the batch `x [b, D]`; returns the loss before it."""
    optimizer.zero_grad()
    loss = functional.mse_loss(sae(x), x)
    loss.backward()
    optimizer.step()
    return loss.detach()


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
    optimizer = adam(sae, learning_rate)
    samples = torch.tensor(x)
    losses = [step(sae, optimizer, samples[torch.tensor(rows)]) for rows in batches]
    return torch.stack(losses).numpy(), sae.params()
