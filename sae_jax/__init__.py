"""Train, score and compare many sparse autoencoders at once."""

from sae_jax import formats
from sae_jax.activations.selection import Selection, Split
from sae_jax.activations.store import ActivationStore
from sae_jax.architectures.base import JumpReLUSAE, TopKSAE
from sae_jax.configs import SAEConfig, TrainConfig, grid
from sae_jax.formats import hub
from sae_jax.sweep.loop import plan_for, train_sweep
from sae_jax.sweep.preemption import Preempted
from sae_jax.sweep.result import SweepResult

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
