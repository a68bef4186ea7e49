"""The one wrapper of Orbax: plain pytrees in, plain pytrees out, with what Orbax leaves to us.

A checkpoint is a directory named for its step. It holds named items (pytrees) and `meta`, a JSON table with the
caller's entries and a digest of every leaf: Orbax itself restores a flipped bit without a word.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array

from jaxgpt.errors import DataError, MissingError, StorageError
from jaxgpt.parallel import path_of


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager: leaving it waits for the last save."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The newest finished step on disk, or None."""
        return latest_step(self.folder)

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start saving; the arrays may be donated right after. Raises StorageError, also for the save before."""
        meta = meta | {"digests": {name: digests(tree) for name, tree in items.items()}}
        arguments: dict[str, Any] = {name: ocp.args.StandardSave(_storable(tree)) for name, tree in items.items()}
        try:
            self._manager.save(step, args=ocp.args.Composite(**arguments, meta=ocp.args.JsonSave(meta)), force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Return when the last save is on disk. Raises StorageError when it is not."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> StorageError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return StorageError(
            "checkpoint not saved", path=self.folder, why=reason, fix="make room and run again: older ones are intact"
        )


def latest_step(folder: Path) -> int | None:
    """The newest finished step in a directory of checkpoints, or None; directories without one do not count."""
    named = [path for path in folder.glob("*") if path.is_dir() and path.name.isdecimal()]
    finished = [int(path.name) for path in named if (path / "_CHECKPOINT_METADATA").is_file()]
    for path in named:
        if int(path.name) not in finished:
            print(f"jaxgpt: {path} is not a finished checkpoint; passed over", file=sys.stderr)
    return max(finished, default=None)


def read_meta(folder: Path, step: int) -> dict[str, Any]:
    """The JSON table saved with a checkpoint. Raises DataError when it cannot be read."""
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(folder.absolute() / str(step) / "meta")
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(folder / str(step), f"meta: {error}") from error


def restore(folder: Path, step: int, name: str, target: Any) -> Any:
    """One item of a checkpoint, as `target` describes it: shapes, dtypes and shardings (`parallel.abstract`).

    Raises MissingError without such a checkpoint, DataError when it does not fit the target or its bytes are not the
    ones that were saved.
    """
    path = folder.absolute() / str(step) / name
    if not path.is_dir():
        raise MissingError("no checkpoint", path=path, why="there is no such directory", fix="name a trained run")
    expected = read_meta(folder, step)["digests"][name]
    try:
        with ocp.StandardCheckpointer() as reader:
            tree = reader.restore(path, _storable_target(target))
    except Exception as error:  # Orbax raises a dozen kinds for a damaged or other checkpoint
        raise _damaged(path, str(error).strip().splitlines()[0] if str(error).strip() else repr(error)) from error
    tree = jax.tree.map(lambda want, have: jax.random.wrap_key_data(have) if _is_key(want) else have, target, tree)
    found = digests(tree)
    wrong = sorted(set(expected.items()) ^ set(found.items()))
    if wrong:
        leaves = ", ".join(sorted({leaf for leaf, _ in wrong}))
        raise _damaged(path, f"other contents than were saved in {leaves}")
    return tree


def digests(tree: Any) -> dict[str, str]:
    """A fingerprint of every leaf: shape, dtype and 64 bits that any changed element changes.

    Computed where the arrays lie, the same however they are sharded; it guards against accidents, not forgery.
    """
    leaves = jax.tree_util.tree_flatten_with_path(_storable(tree))[0]
    sums = jax.device_get(_sums([leaf for _, leaf in leaves]))
    return {
        path_of(path): f"{leaf.dtype}{list(leaf.shape)}:{int(low):08x}{int(high):08x}"
        for (path, leaf), (low, high) in zip(leaves, sums, strict=True)
    }


@jax.jit
def _sums(leaves: list[Array]) -> list[tuple[Array, Array]]:
    return [(_sum(leaf, 0x9E3779B9), _sum(leaf, 0x85EBCA6B)) for leaf in leaves]


def _sum(leaf: Array, salt: int) -> Array:
    """Sum modulo 2^32 of every element's bits, mixed one to one with its place: a single change always shows."""
    size = leaf.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]).astype(jnp.uint32)
    place = jnp.full(leaf.shape, salt, jnp.uint32)
    for axis in range(leaf.ndim):
        place = _mix(place ^ jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis))
    return jnp.sum(_mix(bits ^ place), dtype=jnp.uint32)


def _mix(x: Array) -> Array:
    """MurmurHash3's 32-bit finaliser (Appleby, public domain): a permutation of the 32-bit numbers."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(tree: Any) -> Any:
    """Typed random keys as the integers they are made of."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _storable_target(target: Any) -> Any:
    def describe(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)

    return jax.tree.map(describe, target)


def _damaged(path: Path, why: str) -> DataError:
    return DataError("checkpoint is damaged", path=path, why=why, fix="remove it to go back to the one before")
