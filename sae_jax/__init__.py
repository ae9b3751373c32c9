"""Train, score and compare many sparse autoencoders at once."""

from sae_jax.configs import SAEConfig, TrainConfig, grid
from sae_jax.sae import JumpReLUSAE, TopKSAE

__all__ = ["JumpReLUSAE", "SAEConfig", "TopKSAE", "TrainConfig", "grid"]
