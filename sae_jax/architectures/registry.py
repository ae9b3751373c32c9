"""The architectures that a config may name."""

from sae_jax.architectures.base import SAE
from sae_jax.architectures.batch_topk import BatchTopKSAE
from sae_jax.architectures.gated import GatedSAE
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.matryoshka import MatryoshkaSAE
from sae_jax.architectures.relu import ReLUSAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.configs import SAEConfig

ARCHITECTURES: dict[str, type[SAE]] = {
    "abs_topk": TopKSAE,
    "topk": TopKSAE,
    "batch_topk": BatchTopKSAE,
    "matryoshka": MatryoshkaSAE,
    "jumprelu": JumpReLUSAE,
    "gated": GatedSAE,
    "relu": ReLUSAE,
}


def register(name: str, architecture: type[SAE]) -> None:
    """Lets configs name an architecture that is defined elsewhere, until the process ends.

    A sweep of such members is loaded by a process that has registered the same name.

    Raises:
      ValueError: if the name is taken.
    """
    if ARCHITECTURES.setdefault(name, architecture) is not architecture:
        raise ValueError(f"architecture {name!r} is taken by {ARCHITECTURES[name].__name__}")


def architecture_of(config: SAEConfig) -> type[SAE]:
    """The class that a config names.

    Raises:
      ValueError: if no architecture has the name.
    """
    if config.architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture is {config.architecture!r}; allowed are {sorted(ARCHITECTURES)}, and"
            " those that `sae_jax.register` adds"
        )
    return ARCHITECTURES[config.architecture]
