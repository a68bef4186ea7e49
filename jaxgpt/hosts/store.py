"""What one process tells, all can read: the key-value store that JAX's processes share."""

import itertools
import time
from typing import Any

import jax

from jaxgpt.errors import ConfigError

POLL = 0.05  # seconds between two looks for what another process has to say

_numbers = itertools.count()


def next_key() -> str:
    """A key that every process gets from the same call, and from no other: calls are counted."""
    return f"jaxgpt/{next(_numbers)}"


def tell(key: str, value: bytes) -> None:
    """Set a key for all processes to read. Raises jax.errors.JaxRuntimeError when it is set already."""
    store().key_value_set_bytes(f"{key}/value", value)


def told(key: str) -> list[bytes]:
    """What has been told so far under a key, and under the keys that begin with it and a slash."""
    return [value for _, value in store().key_value_dir_get_bytes(f"{key}/")]


def wait_for(key: str) -> bytes:
    """What is told under a key, once it is. Ctrl-C interrupts the wait."""
    while not (found := told(key)):
        time.sleep(POLL)
    return found[0]


def coordinator() -> str:
    """The name or the address at which all processes reach process 0."""
    from jax._src import distributed

    address: str = distributed.global_state.coordinator_address or ""
    return address.rpartition(":")[0].strip("[]")


def store() -> Any:
    """JAX's client of the store. There is no public name for it in JAX 0.10 and 0.12.

    What `jax.experimental.multihost_utils` offers instead are programs on all devices. A process that is
    busy or stuck on its own devices could not hear through them that another one has failed.

    Raises ConfigError when the processes have not joined one another.
    """
    from jax._src import distributed

    if distributed.global_state.client is None:
        raise ConfigError(
            f"{jax.process_count()} processes",
            why="JAX sees them, but they have not joined one another",
            fix="start each of them with --distributed",
        )
    return distributed.global_state.client
