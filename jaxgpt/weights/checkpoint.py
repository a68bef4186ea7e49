"""The one wrapper of Orbax: plain pytrees in, plain pytrees out, with what Orbax leaves to us.

A checkpoint is a directory named for its step. It holds named items (pytrees) and `meta`, a JSON table with the
caller's entries and a digest of every leaf: Orbax itself restores a flipped bit without a word.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array

from jaxgpt.errors import DataError, MissingError, StorageError
from jaxgpt.parallel import path_of

CHECKPOINTS = "checkpoints"  # their directory inside a run's


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager: leaving it waits for the last save."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder.absolute()
        if jax.process_index() == 0:
            _set_aside_unfinished(self.folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            # Made in the background, a directory that cannot be made keeps Orbax's threads, and so the process that
            # reported the error, waiting for 20 minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        # Weights compress by a tenth; doing it took three times as long, and half their size in memory (GPT-2 XL).
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add(None, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(use_compression=False))
        handlers.add(None, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
        self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the last save. Raises StorageError when it is not on disk."""
        try:
            self._manager.close()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start saving; the arrays may be donated right after. Raises StorageError, also for the save before."""
        meta = meta | {"digests": {name: digests(tree) for name, tree in items.items()}}
        arguments: dict[str, Any] = {
            name: ocp.args.PyTreeSave(_storable(tree)) for name, tree in items.items()
        }
        try:
            self._manager.save(
                step, args=ocp.args.Composite(**arguments, meta=ocp.args.JsonSave(meta)), force=True
            )
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
            "checkpoint not saved",
            path=self.folder,
            why=reason,
            fix="make room and run again: older ones are intact",
        )


def latest_step(folder: Path) -> int | None:
    """The newest finished step in a directory of checkpoints, or None; directories without one do not count."""
    finished, unfinished = _named_for_steps(folder)
    for path in unfinished:
        print(f"jaxgpt: {path} is not a finished checkpoint; passed over", file=sys.stderr)
    return max((int(path.name) for path in finished), default=None)


def _named_for_steps(folder: Path) -> tuple[list[Path], list[Path]]:
    """The directories named for a step: the finished checkpoints, and the others."""
    named = [path for path in folder.glob("*") if path.is_dir() and path.name.isdecimal()]
    finished = [path for path in named if (path / "_CHECKPOINT_METADATA").is_file()]
    return finished, [path for path in named if path not in finished]


def _set_aside_unfinished(folder: Path) -> None:
    """Orbax counts any directory named for a step as a checkpoint: it would not save there, and evict real ones."""
    for path in _named_for_steps(folder)[1]:
        names = (path.with_name(f"{path.name}.unfinished-{n}") for n in itertools.count(1))
        path.rename(next(name for name in names if not name.exists()))


def read_meta(folder: Path, step: int) -> dict[str, Any]:
    """The JSON table saved with a checkpoint. Raises DataError when it cannot be read."""
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            meta = reader.restore(folder.absolute() / str(step) / "meta")
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(folder / str(step), f"meta: {error}") from error
    tables = meta.get("digests") if isinstance(meta, dict) else None
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise _damaged(folder / str(step), "meta: it holds no table of digests")
    return meta


def restore(folder: Path, step: int, name: str, target: Any) -> Any:
    """One item of a checkpoint, as `target` describes it: shapes, dtypes and shardings (`parallel.abstract`).

    Raises MissingError without such a checkpoint, DataError when it does not fit the target or its bytes are not the
    ones that were saved.
    """
    path, expected = _saved(folder, step, name, target)
    tree = _read(path, _storable_target(target))
    _check_digests(path, expected, digests(tree))
    return jax.tree.map(
        lambda want, have: jax.random.wrap_key_data(have) if _is_key(want) else have, target, tree
    )


def restore_leaf(folder: Path, step: int, name: str, target: Any, leaf: str) -> Array:
    """The leaf of an item at a path such as `h/attn/c_attn/kernel`; no other is read. Raises as `restore` does."""
    path, expected = _saved(folder, step, name, target)
    alone = jax.tree_util.tree_map_with_path(
        lambda place, shape: shape if path_of(place) == leaf else ocp.PLACEHOLDER, _storable_target(target)
    )
    read = jax.tree_util.tree_map_with_path(
        lambda place, found: found if path_of(place) == leaf else None, _read(path, alone)
    )
    _check_digests(path, {leaf: expected[leaf]}, digests(read))
    [array] = jax.tree.leaves(read)
    return array


def _saved(folder: Path, step: int, name: str, target: Any) -> tuple[Path, dict[str, str]]:
    """Where an item of this kind lies, and the digests it was saved with."""
    path = folder.absolute() / str(step) / name
    if not path.is_dir():
        raise MissingError(
            "no checkpoint", path=path, why="there is no such directory", fix="name a trained run"
        )
    expected = read_meta(folder, step)["digests"].get(name)
    if expected is None:
        raise _damaged(path, f"meta: it holds no digests of {name}")
    _refuse_other(path, expected, target)
    return path, expected


def _read(path: Path, target: Any) -> Any:
    """The arrays of an item; placeholders stay."""
    arguments = jax.tree.map(
        lambda leaf: (
            ocp.RestoreArgs(restore_type=type(leaf))
            if leaf is ocp.PLACEHOLDER
            else ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype, global_shape=leaf.shape)
        ),
        target,
    )
    try:
        # So much is read ahead: by default everything at once, twice the parameters' memory.
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_gigabytes_of_largest(target))
        with ocp.Checkpointer(handler) as reader:
            return reader.restore(path, args=ocp.args.PyTreeRestore(item=target, restore_args=arguments))
    except Exception as error:  # Orbax raises a dozen kinds for a damaged or other checkpoint
        raise _damaged(
            path, str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        ) from error


def _check_digests(path: Path, expected: dict[str, str], found: dict[str, str]) -> None:
    if wrong := sorted({leaf for leaf, _ in set(expected.items()) ^ set(found.items())}):
        raise _damaged(path, f"other contents than were saved in {', '.join(wrong)}")


def _gigabytes_of_largest(tree: Any) -> int:
    """The size of the largest leaf, rounded up: less than that Orbax refuses to read."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf is not ocp.PLACEHOLDER]
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return -(-largest // 10**9)


def _refuse_other(path: Path, expected: dict[str, Any], target: Any) -> None:
    """Raises DataError naming every leaf that is saved but not wanted, wanted but not saved, or of another kind.

    (Orbax would cast a leaf of another dtype without a word.)
    """
    wanted = {
        path_of(place): _kind(leaf)
        for place, leaf in jax.tree_util.tree_leaves_with_path(_storable_target(target))
    }
    saved = {leaf: str(digest).partition(":")[0] for leaf, digest in expected.items()}
    problems = [
        f"{leaf} is {saved.get(leaf, 'not there')}, not {kind}"
        for leaf, kind in wanted.items()
        if saved.get(leaf) != kind
    ]
    problems += [f"{leaf} is not wanted" for leaf in saved.keys() - wanted.keys()]
    if problems:
        raise DataError(
            "checkpoint holds other arrays",
            path=path,
            why=", ".join(sorted(problems)),
            fix="use the settings of its run",
        )


def digests(tree: Any) -> dict[str, str]:
    """A fingerprint of every leaf: shape, dtype and 64 bits that any changed element changes.

    Computed where the arrays lie, the same however they are sharded; it guards against accidents, not forgery.
    """
    leaves = jax.tree_util.tree_flatten_with_path(_storable(tree))[0]
    sums = jax.device_get(_sums([leaf for _, leaf in leaves]))
    return {
        path_of(path): f"{_kind(leaf)}:{int(low):08x}{int(high):08x}"
        for (path, leaf), (low, high) in zip(leaves, sums, strict=True)
    }


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


@jax.jit
def _sums(leaves: list[Array]) -> list[tuple[Array, Array]]:
    return [(_sum(leaf, 0x9E3779B9), _sum(leaf, 0x85EBCA6B)) for leaf in leaves]


def _sum(leaf: Array, salt: int) -> Array:
    """Sum modulo 2^32 of every element's bits, mixed one to one with its place: a single change always shows.

    Stacked matrices are summed a layer at a time: at once, the CPU writes all the mixed bits to memory first.
    """
    if leaf.ndim < 3:
        return _part_sum(leaf, jnp.uint32(salt))

    def add(total: Array, layer: tuple[Array, Array]) -> tuple[Array, None]:
        number, part = layer
        return total + _part_sum(part, _mix(jnp.uint32(salt) ^ number)), None

    return jax.lax.scan(add, jnp.uint32(0), (jnp.arange(len(leaf), dtype=jnp.uint32), leaf))[0]


def _part_sum(part: Array, place: Array) -> Array:
    """The sum over a leaf, or over a part of it whose index in the leaf is mixed into `place` already."""
    size = part.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(part, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]).astype(
        jnp.uint32
    )
    places = jnp.full(part.shape, place, jnp.uint32)
    for axis in range(part.ndim):
        places = _mix(places ^ jax.lax.broadcasted_iota(jnp.uint32, part.shape, axis))
    return jnp.sum(_mix(bits ^ places), dtype=jnp.uint32)


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
    return DataError(
        "checkpoint is damaged", path=path, why=why, fix="remove it to go back to the one before"
    )
