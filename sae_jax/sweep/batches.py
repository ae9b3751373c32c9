"""Where the batches of an epoch come from."""

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sae_jax.activations.released import MAX_WINDOWS
from sae_jax.ops import random
from sae_jax.sweep.placement import Placement


class Samples(NamedTuple):
    """Samples, and what they should become.

    Attributes:
      x: float32 `[..., D]`.
      target: float32 `[..., D_out]`; `None` where that is the samples themselves.
    """

    x: Any
    target: Any = None


class Batches(NamedTuple):
    """The batches of an epoch, or of a part of one.

    Attributes:
      full: `[num_full, b, D]`.
      rest: what is left over for a last, smaller batch, `[r, D]` with r < b; perhaps nothing.
    """

    full: Samples
    rest: Samples


class BatchSource(Protocol):
    """Samples that come in batches.

    An epoch comes in parts, each of which one device program trains on. Parts are counted from the
    start of training.

    Attributes:
      num_samples: samples in an epoch.
      d_in: width D of a sample.
      parts_per_epoch: number of parts in which an epoch comes.
    """

    num_samples: int
    d_in: int
    parts_per_epoch: int

    def first_step(self, part: int) -> int:
        """Number of steps before a part."""

    def parts(self, data_seed: int, first: int, last: int) -> Iterator[Batches]:
        """The batches of each part from `first` up to, without it, `last`.

        In an epoch every sample is in one batch, in an order of the epoch's own. Equal seeds and
        epochs give equal batches, whatever the source and wherever it starts.
        """


class InMemory:
    """Samples that lie on the device; an epoch's batches are a permuted copy of them."""

    parts_per_epoch = 1

    def __init__(
        self,
        x: np.ndarray,
        batch_size: int,
        placement: Placement,
        target: np.ndarray | None = None,
    ):
        """Puts the samples `[n, D]`, and targets `[n, D_out]`, on the device."""
        self.num_samples, self.d_in = x.shape
        self._samples = placement.put(jax.tree.map(jnp.asarray, Samples(x, target)))
        self._batch_size, self._placement = batch_size, placement

    def first_step(self, part: int) -> int:
        """Number of steps before a part, which is an epoch."""
        return part * -(-self.num_samples // self._batch_size)

    def parts(self, data_seed: int, first: int, last: int) -> Iterator[Batches]:
        """The batches of each epoch from `first` up to, without it, `last`."""
        for epoch in range(first, last):
            yield self.epoch(data_seed, epoch)

    def epoch(self, data_seed: int, epoch: int) -> Batches:
        """The batches of an epoch; equal seeds and epochs give equal batches."""
        return gathered(
            self._samples,
            # NumPy's, since JAX would compile a program to make them.
            np.uint32(data_seed),
            np.int32(epoch),
            batch_size=self._batch_size,
            placement=self._placement,
        )


@partial(jax.jit, static_argnames=("batch_size", "placement"))
def gathered(
    samples: Samples,
    data_seed: jax.Array,
    epoch: jax.Array,
    *,
    batch_size: int,
    placement: Placement,
) -> Batches:
    """The batches of an epoch, of samples `[n, D]` that lie whole on every device."""
    order = epoch_order(data_seed, epoch, len(samples.x))
    num_full = len(samples.x) // batch_size
    full, rest = jnp.split(order, [num_full * batch_size])

    def batches(a: jax.Array) -> jax.Array:
        return a[full].reshape(num_full, batch_size, a.shape[1])

    return Batches(
        placement.divided(jax.tree.map(batches, samples)),
        jax.tree.map(lambda a: a[rest], samples),
    )


class WindowedOrder:
    """The order in which rows that come in windows are visited: each window's, shuffled by itself.

    It reads like an array `[n]`, of which two windows are drawn at a time. It depends on the data
    seed and the windows alone, whenever their rows come.
    """

    def __init__(self, data_seed: int, ends: Sequence[int]):
        """Draws nothing.

        Args:
          data_seed: PRNG seed of the order.
          ends: number of rows up to the end of each window.
        """
        self._bounds = np.array([0, *ends])
        self._seed = data_seed
        self._drawn = lru_cache(maxsize=MAX_WINDOWS)(self._draw)

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(int(self._bounds[-1]))
        order = [np.empty(0, np.int64)]
        window = int(np.searchsorted(self._bounds, first, side="right")) - 1
        while first < last:
            start, stop = self._bounds[window : window + 2]
            order.append(self._drawn(window)[first - start : last - start])
            first, window = int(stop), window + 1
        return np.concatenate(order)

    def _draw(self, window: int) -> np.ndarray:
        start, stop = self._bounds[window : window + 2]
        # NumPy's, since JAX would compile for every number of rows.
        return start + np.random.default_rng([self._seed, window]).permutation(stop - start)


def epoch_order(data_seed: jax.Array | int, epoch: jax.Array | int, num_samples: int) -> jax.Array:
    """The order, `[num_samples]`, in which an epoch visits the samples.

    It depends on nothing else, so that all members of a data seed see the same batches.
    """
    key = jax.random.fold_in(random.key(data_seed), epoch)
    return jax.random.permutation(key, jnp.arange(num_samples, dtype=jnp.int32))
