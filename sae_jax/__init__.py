"""Train, score and compare many sparse autoencoders at once."""

from sae_jax import formats, hub
from sae_jax.configs import SAEConfig, TrainConfig, grid
from sae_jax.sae import JumpReLUSAE, TopKSAE
from sae_jax.store import ActivationStore, Selection, Split
from sae_jax.sweep.preemption import Preempted
from sae_jax.sweep.result import SweepResult
from sae_jax.sweep.train import plan_for, train_sweep

__all__ = [
    "ActivationStore",
    "JumpReLUSAE",
    "Preempted",
    "SAEConfig",
    "Selection",
    "Split",
    "SweepResult",
    "TopKSAE",
    "TrainConfig",
    "formats",
    "grid",
    "hub",
    "plan_for",
    "train_sweep",
]
