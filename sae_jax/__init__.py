"""Train, score and compare many sparse autoencoders at once."""

from sae_jax.configs import SAEConfig, TrainConfig, grid
from sae_jax.sae import JumpReLUSAE, TopKSAE
from sae_jax.store import ActivationStore
from sae_jax.sweep.preemption import Preempted
from sae_jax.sweep.result import SweepResult
from sae_jax.sweep.train import plan_for, train_sweep

__all__ = [
    "ActivationStore",
    "JumpReLUSAE",
    "Preempted",
    "SAEConfig",
    "SweepResult",
    "TopKSAE",
    "TrainConfig",
    "grid",
    "plan_for",
    "train_sweep",
]
