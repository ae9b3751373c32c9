"""The processes of a job, one or more a host, that `jax.distributed.initialize` has joined.

All run the same program on the same inputs, each with its own devices. What depends on a clock, a
signal or a file is process 0's word, or they would run different programs and wait for each other.
Words go through JAX's coordination service and not through devices, which may be busy. With one
process nothing here does anything.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

Value = TypeVar("Value")

# Process 0 may compile or write for hours. If it dies the coordination service says so.
_PATIENCE_MS = 2**31 - 1
# NFS may remember for a minute, as long as its `acdirmax`, that a file was not there.
_SECONDS_UNSEEN = 70
_FOLDER = "sae_jax"

_numbers = itertools.count()


class MainFailed(RuntimeError):
    """Process 0 raised an error, which is its to tell; no other process can go on without it."""


def is_main() -> bool:
    """Whether this is process 0, which alone decides, writes and speaks."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether there is no other process, so that nothing has to go in the same order elsewhere."""
    return jax.process_count() == 1


def of_main(work: Callable[[], Value]) -> Value:
    """What a function returns in process 0, which alone calls it; all have to ask, in one order.

    Args:
      work: returns a JSON value, such as `None` where something was written.

    Raises:
      MainFailed: in all but process 0, if `work` raises something there.
      ValueError: if there are several processes that `jax.distributed.initialize` has not joined.
    """
    if jax.process_count() == 1:
        return work()
    client, key = _client(), f"{_FOLDER}/words/{next(_numbers)}"
    if not is_main():
        word = json.loads(client.blocking_key_value_get(key, _PATIENCE_MS))
        if "error" in word:
            raise MainFailed(f"process 0 raised {word['error']}")
        return word["value"]
    try:
        value = work()
    except Exception as error:
        client.key_value_set(key, json.dumps({"error": f"{type(error).__name__}: {error}"}))
        raise
    client.key_value_set(key, json.dumps({"value": value}))
    return value


def enter(stack: ExitStack, context: AbstractContextManager[Any]) -> Any:
    """Enters a context in process 0 alone, and gives its value there and `None` elsewhere.

    Raises:
      MainFailed: in all but process 0, if entering it raises something.
    """
    value = None

    def entered() -> None:
        nonlocal value
        value = stack.enter_context(context)

    of_main(entered)
    return value


def check_same(inputs: Mapping[str, Any]) -> None:
    """Refuses inputs, by name, that print as others than those of process 0.

    Raises:
      ValueError: if one of them is another.
    """
    digests = {
        name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in inputs.items()
    }
    of_zero = of_main(lambda: digests)
    if other := [name for name in digests if digests[name] != of_zero[name]]:
        raise ValueError(
            f"process {jax.process_index()} was given other {' and '.join(other)} than process 0;"
            " expected the same in every process"
        )


def check_only(what: str) -> None:
    """Refuses several processes.

    Raises:
      ValueError: if there are several; it names what one process alone can do.
    """
    if jax.process_count() > 1:
        raise ValueError(f"{what} and {jax.process_count()} processes; expected a single one")


def check_sees(path: Path) -> None:
    """Refuses a folder that the processes do not share.

    Raises:
      ValueError: if this process does not come to see a path that process 0 has written.
    """
    end = time.monotonic() + _SECONDS_UNSEEN
    while not path.exists() and not is_main() and time.monotonic() < end:
        time.sleep(0.1)
    if not path.exists():
        raise ValueError(
            f"process {jax.process_index()} does not see {path}, which process 0 wrote; expected a"
            " folder that all processes share, such as one on NFS"
        )


def note(name: str) -> None:
    """Tells all processes that something happened, once and for all."""
    if jax.process_count() > 1:
        _client().key_value_set(f"{_FOLDER}/notes/{name}/told", "", allow_overwrite=True)


def is_noted(name: str) -> bool:
    """Whether any process has told so."""
    return jax.process_count() > 1 and bool(_client().key_value_dir_get(f"{_FOLDER}/notes/{name}/"))


def meet(seconds: float = _PATIENCE_MS / 1000) -> bool:
    """Waits until every process has come here, which each does once, before it ends.

    Returns:
      Whether they came in time.
    """
    if jax.process_count() > 1:
        try:
            _client().wait_at_barrier(f"{_FOLDER}/end", int(1000 * seconds))
        except jax.errors.JaxRuntimeError:
            return False
    return True


def readable(tree: Any) -> Any:
    """A pytree of arrays, those of them that lie on devices of several processes copied to each."""

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        assert isinstance(leaf.sharding, NamedSharding)
        return jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))

    return jax.tree.map(copied, tree)


def gathered(tree: Any) -> Any:
    """A pytree of arrays as arrays of NumPy, wherever they lie."""
    return jax.device_get(readable(tree))


def _client() -> Any:
    """The client of JAX's coordination service, for which JAX has no public name."""
    from jax._src.distributed import global_state

    if global_state.client is None:
        raise ValueError(
            f"there are {jax.process_count()} processes, and nothing joins them; expected a call of"
            " jax.distributed.initialize() before any other of JAX"
        )
    return global_state.client
