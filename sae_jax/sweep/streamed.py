"""Batches of samples that do not lie on the device; the only file that knows Grain."""

from collections.abc import Iterator

import grain
import jax
import numpy as np

from sae_jax.activations.matrix import Matrix, live_of
from sae_jax.sweep.batches import Batches, Samples, WindowedOrder, epoch_order
from sae_jax.sweep.memory import give_back_free_memory
from sae_jax.sweep.placement import Placement

# Threads that read, a part each, so that a disk has several requests to serve.
NUM_READERS = 4
# The threads free what others allocate, so that more and more free memory lies between the blocks
# in use: some 20 KB a part were seen. After so many parts it is given back.
_PARTS_PER_CLEANUP = 100


class Streamed:
    """Samples that stay where they are, in the shards of a store, read a few batches at a time.

    The batches are those of `InMemory`, bit for bit. Grain's own shuffle is not used: it has no
    order of ours, so that the same samples would give other results on disk than in memory.

    Live samples come in a `WindowedOrder` instead, and their parts when their shards are there.
    """

    def __init__(
        self,
        x: Matrix,
        batch_size: int,
        steps_per_part: int,
        placement: Placement,
        target: Matrix | None = None,
    ):
        """Reads nothing.

        Args:
          x: `[n, D]`.
          batch_size: samples b a step.
          steps_per_part: full batches that are read, and trained on, at a time.
          placement: where they are put; only what this process's devices have of a batch is read.
          target: `[n, D_out]`.
        """
        self.num_samples, self.d_in = x.shape
        self._samples = Samples(x, target)
        self._batch_size, self._steps_per_part = batch_size, steps_per_part
        self._num_full = self.num_samples // batch_size
        self.parts_per_epoch = max(1, -(-self._num_full // steps_per_part))
        self._placement, self._own_rows = placement, placement.own_rows(batch_size)
        self._live = live_of(x)

    def first_step(self, part: int) -> int:
        """Number of steps before a part."""
        epoch, in_epoch = divmod(part, self.parts_per_epoch)
        return epoch * -(-self.num_samples // self._batch_size) + in_epoch * self._steps_per_part

    def last_part(self, window: int) -> int:
        """Number of parts, all told, that training needs of the windows of live samples up to one.

        The last of them may reach into the next window.
        """
        assert self._live is not None
        part_size = self._steps_per_part * self._batch_size
        return min(-(-self._live.ends[window] // part_size), self.parts_per_epoch)

    def parts(self, data_seed: int, first: int, last: int) -> Iterator[Batches]:
        """The batches of each part from `first` up to, without it, `last`, read ahead.

        Raises:
          ValueError: if live samples of the first part are gone.
        """
        if self._live is not None and first < last:
            self._live.check_kept(first * self._steps_per_part * self._batch_size)
        read_ahead = grain.ReadOptions(num_threads=NUM_READERS, prefetch_buffer_size=NUM_READERS)
        while first < last:
            epoch, start = divmod(first, self.parts_per_epoch)
            stop = min(start + last - first, self.parts_per_epoch)
            order = self._order(data_seed, epoch)
            of_epoch = grain.MapDataset.source(_Parts(self, order))[start:stop]
            for i, batches in enumerate(of_epoch.to_iter_dataset(read_ahead), first + 1):
                if i % _PARTS_PER_CLEANUP == 0:
                    give_back_free_memory()
                yield Batches(
                    self._placement.put_divided(batches.full, self._batch_size),
                    self._placement.put(batches.rest),
                )
            first += stop - start

    def _order(self, data_seed: int, epoch: int) -> np.ndarray | WindowedOrder:
        if self._live is not None:
            return WindowedOrder(data_seed, self._live.ends)
        return np.asarray(epoch_order(data_seed, epoch, self.num_samples))

    def read(self, order: np.ndarray | WindowedOrder, part: int) -> Batches:
        """A part of an epoch that visits the samples in an order `[n]`; arrays of NumPy.

        Of full batches it has this process's rows alone; what is left over is whole everywhere.
        """
        start = part * self._steps_per_part
        stop = min(start + self._steps_per_part, self._num_full)
        is_last = part + 1 == self.parts_per_epoch
        full = order[start * self._batch_size : stop * self._batch_size]
        full = full.reshape(stop - start, self._batch_size)[:, self._own_rows]
        rest = order[stop * self._batch_size :] if is_last else order[:0]

        def batches(x: Matrix) -> np.ndarray:
            return x[full.ravel()].reshape(*full.shape, x.shape[1])

        return Batches(
            jax.tree.map(batches, self._samples), jax.tree.map(lambda x: x[rest], self._samples)
        )


class _Parts(grain.sources.RandomAccessDataSource):
    """The parts of one epoch, by their number in it."""

    def __init__(self, streamed: Streamed, order: np.ndarray | WindowedOrder):
        self._streamed, self._order = streamed, order

    def __len__(self) -> int:
        return self._streamed.parts_per_epoch

    def __getitem__(self, part: int) -> Batches:
        return self._streamed.read(self._order, part)
