"""On which devices state and samples lie, and how much each holds."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from sae_jax.configs import MESH_AXES, SAEConfig, TrainConfig, mesh_shape
from sae_jax.sweep.cores import num_cores
from sae_jax.sweep.memory import memory_limit

MEMBERS, DATA, LATENTS = MESH_AXES


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh of devices, `members x data x latents`; nothing else asks JAX for devices.

    Each device along `members` has members of its own, each along `data` a share of every
    batch, and each along `latents` a share of every dictionary: rows of encoder and decoder.

    Attributes:
      devices: the devices, those along `latents` beside each other.
      shape: number of devices along each axis.
    """

    devices: tuple[Any, ...]
    shape: tuple[int, int, int] = (1, 1, 1)

    @classmethod
    def default(cls) -> Self:
        """JAX's first device, for everything."""
        return cls(tuple(jax.local_devices()[:1]))

    @classmethod
    def of(cls, train_config: TrainConfig, configs: Sequence[SAEConfig]) -> Self:
        """The mesh that a sweep asks for, or else all devices.

        Unless the sweep says otherwise `members` gets as many devices as there are members that
        may train together, and `data` those that are left, as far as they divide a batch. Cores of
        a processor are not made to share a batch: operations are divided among them anyway.

        Raises:
          ValueError: if there are fewer devices than the mesh needs, or a process has none of them.
        """
        devices = jax.devices()
        if train_config.mesh is not None:
            shape = mesh_shape(train_config.mesh)
        else:
            alike = collections.Counter(
                (config.data_slice, train_config.data_seed_of(config), config.template)
                for config in configs
            )
            most = max(alike.values())
            if devices[0].platform == "cpu" and jax.process_count() == 1:
                shape = min(len(devices), most), 1, 1
            else:
                members = _largest_divisor(len(devices), up_to=most)
                shape = members, math.gcd(len(devices) // members, train_config.batch_size), 1
        if math.prod(shape) > len(devices):
            raise ValueError(
                f"mesh is {train_config.mesh!r}, of {math.prod(shape)} devices; there are"
                f" {len(devices)}: {devices}"
            )
        placement = cls(tuple(devices[: math.prod(shape)]), shape)
        processes = {device.process_index for device in placement.devices}
        if len(processes) < jax.process_count():
            named = ",".join(f"{name}:{n}" for name, n in zip(MESH_AXES, shape, strict=True))
            raise ValueError(
                f"mesh is '{named}', which has devices of {len(processes)} of"
                f" {jax.process_count()} processes; expected devices of each: there are"
                f" {len(devices)} of them, and `data` takes as many as divide the"
                f" {train_config.batch_size} samples of a batch"
            )
        return placement

    def __str__(self) -> str:
        axes = zip(MESH_AXES, self.shape, strict=True)
        named = ",".join(f"{name}:{size}" for name, size in axes if size > 1)
        return f"{len(self.devices)} {self.platform} devices, {named}"

    @property
    def platform(self) -> str:
        """ "cpu", "gpu" or "tpu"."""
        return self.devices[0].platform

    @property
    def memory(self) -> int:
        """Bytes that a group may take unless the user says otherwise, of each accelerator or of all
        cores together, as this process sees it."""
        stats = self._own_devices[0].memory_stats()
        if stats and "bytes_limit" in stats:
            return int(0.8 * stats["bytes_limit"])
        return memory_limit() // 2

    def each_of(self, memory: int) -> int:
        """Of so many bytes those of one device: all, but for cores, which share them."""
        return memory if self.platform != "cpu" else memory // len(self._own_devices)

    def for_members(self, num_members: int) -> Self:
        """The part of the cores that so few members keep busy; the same mesh elsewhere.

        The operations of one member are divided among more cores if these have none of their own.
        """
        is_shared = len({device.process_index for device in self.devices}) > 1
        if self.platform != "cpu" or is_shared or self.divides_members:
            return self
        num_members = min(num_members, len(self.devices))
        return dataclasses.replace(
            self, devices=self.devices[:num_members], shape=(num_members, 1, 1)
        )

    @property
    def has_a_core_each(self) -> bool:
        """Whether the devices are as many cores as there are, so that none has help."""
        return self.platform == "cpu" and 1 < len(self.devices) >= num_cores()

    @property
    def divides_members(self) -> bool:
        """Whether several devices work on one member."""
        return len(self.devices) > self.shape[0]

    def members_each(self, num_members: int) -> int:
        """How many of a group's members a device has, where copies of the last fill up."""
        return -(-num_members // self.shape[0])

    def width(self, num_latents: int) -> int:
        """The number of latents to allocate for so many, the same on every device."""
        return -(-num_latents // self.shape[2]) * self.shape[2]

    def put(self, tree: Any) -> Any:
        """A pytree of arrays, whole on every device."""
        return jax.tree.map(partial(_put, sharding=self._sharding()), tree)

    def own_rows(self, batch_size: int) -> np.ndarray:
        """The rows of a batch, in order, of which this process's devices have a share."""
        shares = self._sharding(DATA).addressable_devices_indices_map((batch_size,)).values()
        return np.unique([np.arange(batch_size)[share] for share in shares])

    def put_divided(self, batches: Any, batch_size: int) -> Any:
        """A pytree of batches, each of them shared out.

        Args:
          batches: arrays `[steps, r, ...]` of the r rows that `own_rows` names.
          batch_size: number of rows of a whole batch.
        """
        rows, sharding = self.own_rows(batch_size), self._sharding(None, DATA)

        def put(leaf: np.ndarray) -> jax.Array:
            def share(index: Any) -> np.ndarray:
                start, stop, _ = index[1].indices(batch_size)
                first = np.searchsorted(rows, start)
                return leaf[:, first : first + stop - start]

            shape = leaf.shape[0], batch_size, *leaf.shape[2:]
            return jax.make_array_from_callback(shape, sharding, share)

        return jax.tree.map(put, batches)

    def spread(self, tree: Any, width: int | None = None) -> Any:
        """A pytree of arrays of members, leading axis M, each on the devices of its member.

        Where M is no multiple of the devices, copies of the last member fill up: they train like
        others and disturb none. Arrays of NumPy are copied, since training reuses the memory.

        Args:
          tree: the arrays; a second axis that is the latents' is divided too.
          width: number of latents; `None` if the arrays have none.
        """

        def placed(leaf: Any) -> jax.Array:
            missing = -len(leaf) % self.shape[0]
            if missing:
                leaf = np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)])
            sharding = self._sharding(*self._axes(leaf.shape, width))
            return _put(leaf, sharding, may_alias=False if isinstance(leaf, np.ndarray) else None)

        return jax.tree.map(placed, tree)

    def kept_spread(self, tree: Any, width: int) -> Any:
        """Inside a compiled program, arrays of members that stay where `spread` puts them."""
        if len(self.devices) == 1:
            return tree

        def kept(leaf: jax.Array) -> jax.Array:
            sharding = self._sharding(*self._axes(leaf.shape, width))
            return jax.lax.with_sharding_constraint(leaf, sharding)

        return jax.tree.map(kept, tree)

    def divided(self, batches: Any) -> Any:
        """Inside a compiled program, batches `[steps, b, ...]`, each of them shared out."""
        if self.shape[1] == 1:
            return batches
        return jax.lax.with_sharding_constraint(batches, self._sharding(None, DATA))

    def on_each(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Inside a compiled program, a function of arrays with leading axis M in which each device
        sees its own members alone, and so has nothing to tell those of others.

        What it closes over all devices see. How the devices of a member share its work is left to
        XLA.
        """
        if self.shape[0] == 1:
            return function
        own = PartitionSpec(MEMBERS)

        def on_all(*arguments: Any) -> Any:
            leaves, structure = jax.tree.flatten(arguments)

            def on_one(filled: list[jax.Array]) -> Any:
                left = iter(filled)
                mine = [next(left) if leaf.size else self._none_of(leaf) for leaf in leaves]
                return function(*jax.tree.unflatten(structure, mine))

            return jax.shard_map(
                on_one,
                mesh=self._mesh,
                in_specs=own,
                out_specs=own,
                axis_names={MEMBERS},
                check_vma=False,  # Loops start from zeros, which all devices have in common.
            )([leaf for leaf in leaves if leaf.size])

        return on_all

    def _none_of(self, leaf: jax.Array) -> jax.Array:
        """An array without entries, as one device sees it.

        XLA as of jax 0.11.2 crashes when it compiles a `shard_map` that is given one.
        """
        return jnp.zeros((len(leaf) // self.shape[0], *leaf.shape[1:]), leaf.dtype)

    def shares(self, tree: Any, at_once: int) -> Iterator[tuple[np.ndarray, Any]]:
        """Members of a pytree that `spread` gave, so many of each device at a time.

        The last are some of those before too: another number would compile anew.

        Yields:
          Which members they are, `[n]`, and their arrays, on the same devices.
        """
        members = np.arange(len(jax.tree.leaves(tree)[0])).reshape(self.shape[0], -1)
        each = members.shape[1]
        at_once = min(at_once, each)
        for start in range(0, each, at_once):
            first = min(start, each - at_once)
            taken = share(tree, first, at_once=at_once, placement=self)
            yield members[:, first : first + at_once].ravel(), taken

    def spread_shapes(self, tree: Any, width: int | None = None) -> Any:
        """Shapes of arrays of members, and where `spread` puts those that need no filling up."""

        def placed(leaf: Any) -> jax.ShapeDtypeStruct:
            sharding = self._sharding(*self._axes(leaf.shape, width))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(placed, tree)

    def put_shapes(self, tree: Any) -> Any:
        """Shapes of arrays that `put` puts on every device."""
        sharding = self._sharding()
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    @property
    def _own_devices(self) -> list[Any]:
        own = jax.process_index()
        return [device for device in self.devices if device.process_index == own]

    @cached_property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices).reshape(self.shape), MESH_AXES)

    def _sharding(self, *axes: str | None) -> Sharding:
        if len(self.devices) == 1:
            return SingleDeviceSharding(self.devices[0])
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    def _axes(self, shape: tuple[int, ...], width: int | None) -> tuple[str, ...]:
        """Along which axes of the mesh an array of members lies; any choice is right, if divisible.

        A checkpoint from other devices may have latents that this mesh does not divide.
        """
        divides = len(shape) > 1 and shape[1] == width and width % self.shape[2] == 0
        return (MEMBERS, LATENTS) if divides else (MEMBERS,)


@partial(jax.jit, static_argnames=("at_once", "placement"))
def share(tree: Any, first: jax.Array | int, *, at_once: int, placement: Placement) -> Any:
    """Of arrays of members, leading axis M, those of so many of each device from `first` on."""

    def of_leaf(leaf: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(leaf, first, at_once)

    return placement.on_each(partial(jax.tree.map, of_leaf))(tree)


def _put(leaf: Any, sharding: Sharding, may_alias: bool | None = None) -> jax.Array:
    """An array where a sharding wants it; each process puts what its own devices have of it."""
    is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if sharding.is_fully_addressable or is_global:
        return jax.device_put(leaf, sharding, may_alias=may_alias)
    # JAX would first send the whole array around, to see that all processes have the same.
    leaf = np.asarray(leaf)
    shares = [
        jax.device_put(leaf[index], device, may_alias=may_alias)
        for device, index in sharding.addressable_devices_indices_map(leaf.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shares)


def _largest_divisor(number: int, up_to: int) -> int:
    return max(n for n in range(1, min(number, up_to) + 1) if number % n == 0)
