"""Train, score and compare many sparse autoencoders at once.

The way of the data, which is also the order of the folders:

    problems       word problems and their chain-of-thought steps
    extraction     PyTorch: hidden states of a language model's thoughts, written to a store
    activations    stores on disk, selections of them, splits into training and validation
    ops            matrix products, exact top-k, and kernels with derivatives of their own
    architectures  one Flax module each: parameters, encode, decode, training loss
    metrics        how well an SAE reconstructs, streamed over validation samples
    formats        SAEs as other libraries keep them, and the Hub
    sweep          plan, one step lifted over members, the loop, checkpoints, the result
    features       what latents respond to, beside what chance gives
    report         statistics over seeds, tables and figures
"""

import importlib
from types import ModuleType

from sae_jax import formats
from sae_jax.activations.live import LiveSelection, LiveStore
from sae_jax.activations.selection import Selection, Split
from sae_jax.activations.store import ActivationStore
from sae_jax.architectures.base import SAE
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.registry import register
from sae_jax.architectures.topk import TopKSAE
from sae_jax.configs import SAEConfig, TrainConfig, grid
from sae_jax.formats import hub
from sae_jax.sweep.events import Event
from sae_jax.sweep.loop import plan_for, train_sweep
from sae_jax.sweep.preemption import Preempted
from sae_jax.sweep.result import SweepResult
from sae_jax.sweep.samples import side_by_side

__all__ = [
    "SAE",
    "ActivationStore",
    "Event",
    "JumpReLUSAE",
    "LiveSelection",
    "LiveStore",
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
    "register",
    "side_by_side",
    "train_sweep",
]


def __getattr__(name: str) -> ModuleType:
    """`sae_jax.report`, which takes a second to import, is loaded when it is asked for."""
    if name == "report":
        return importlib.import_module("sae_jax.report")
    raise AttributeError(f"module 'sae_jax' has no attribute {name!r}")
