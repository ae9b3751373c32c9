"""What contenders of the benchmark train, and what they are once they are ready to."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

LEARNING_RATE = 1e-3

PUBLISHED_SIZES = tuple(
    (d_sae, k)
    for k, sizes in (
        (25, (512,)),
        (50, (100, 150, 250, 512, 750, 1000)),
        (75, (375, 512)),
        (100, (300, 512, 750)),
        (200, (512, 1000)),
    )
    for d_sae in sizes
)
"""(d_sae, k) of `sae_jax.report.reference.grid`, for programs that are not to import JAX."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """Members that train on activations `[num_samples, d_in]`.

    Attributes:
      sizes: (d_sae, k) of each member.
      d_in: width of a sample.
      num_samples: training samples.
      batch_size: samples of a step.
    """

    sizes: tuple[tuple[int, int], ...]
    d_in: int = 2048
    num_samples: int = 4096
    batch_size: int = 256

    @classmethod
    def equal(cls, *, members: int = 4, d_sae: int = 512, k: int = 50, **fields: int) -> Self:
        """Members of one size."""
        return cls(((d_sae, k),) * members, **fields)

    @property
    def sizes_of_loop(self) -> tuple[tuple[int, int], ...]:
        """What a loop over members trains: one of equal members, which stands for all."""
        return self.sizes if len(set(self.sizes)) > 1 else self.sizes[:1]

    @property
    def num_steps(self) -> int:
        """Number of steps in one epoch, including the last, smaller batch."""
        return -(-self.num_samples // self.batch_size)

    @property
    def flops_per_member_step(self) -> float:
        """Floating-point operations of a step's five dense products, two forward and three back;
        the mean over members."""
        return 10 * self.batch_size * self.d_in * self._mean_d_sae

    @property
    def optimizer_bytes(self) -> float:
        """Bytes that Adam moves for a member, the mean over members: it reads parameter, gradient
        and two moments, and writes three."""
        return 7 * 4 * ((2 * self.d_in + 1) * self._mean_d_sae + self.d_in)

    @property
    def _mean_d_sae(self) -> float:
        return sum(d_sae for d_sae, _ in self.sizes) / len(self.sizes)

    def columns(self) -> dict[str, int | str]:
        """What a table says of it; the range of what differs among members."""
        return {
            "members": len(self.sizes),
            "d_sae": _range([d_sae for d_sae, _ in self.sizes]),
            "k": _range([k for _, k in self.sizes]),
            "d_in": self.d_in,
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
        }


def _range(values: Sequence[int]) -> int | str:
    return values[0] if len(set(values)) == 1 else f"{min(values)}-{max(values)}"


@dataclasses.dataclass(frozen=True)
class Runner:
    """A contender that is ready to run.

    Attributes:
      run: function that trains one epoch and returns when it has been computed.
      members: number of SAEs that it trains.
      compile_seconds: seconds that compiling the program took.
      saes: of the contenders in PyTorch the SAEs in training, with `encode` and `decode`; none
        where nobody asks for them.
    """

    run: Callable[[], None]
    members: int
    compile_seconds: float = 0.0
    saes: Sequence[Any] = ()


Contender = Callable[[Workload, np.ndarray], Runner]


class LeftOut(Exception):
    """A contender cannot take part; the message says why."""
