"""On which device state and samples lie, and how much it holds."""

import dataclasses
from typing import Any, Self

import jax

from sae_jax.sweep.memory import memory_limit


@dataclasses.dataclass(frozen=True)
class Placement:
    """One device, for everything.

    Attributes:
      device: the device.
    """

    device: Any

    @classmethod
    def default(cls) -> Self:
        """JAX's first device."""
        return cls(jax.devices()[0])

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu"."""
        return self.device.platform

    @property
    def memory(self) -> int:
        """Bytes that a group may take unless the user says otherwise."""
        stats = self.device.memory_stats()
        if stats and "bytes_limit" in stats:
            return int(0.8 * stats["bytes_limit"])
        return memory_limit() // 2

    def put(self, tree: Any) -> Any:
        """A pytree of arrays, on the device."""
        return jax.device_put(tree, self.device)
