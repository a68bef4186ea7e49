"""The one wrapper of Orbax: pytrees are saved and restored, and what is restored is verified.

A checkpoint is a directory named after its step. It holds named items, which are pytrees, and `meta`, a JSON
table with the caller's entries and a digest of every leaf. Orbax alone would restore a flipped bit silently.
"""

import asyncio
import contextlib
import itertools
import logging
import shutil
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax import Array

from jaxgpt import hosts
from jaxgpt.errors import DivergedError, MissingError, StorageError
from jaxgpt.files import sync
from jaxgpt.parallel import path_of
from jaxgpt.weights.damage import DamagedError, damaged, read_together
from jaxgpt.weights.digests import digests, is_key, kind, storable
from jaxgpt.weights.kept import Kept

CHECKPOINTS = "checkpoints"  # the name of their directory in a run directory
# A checkpoint that is no longer kept is first moved into this folder. So none is ever half there.
EVICTED = "evicted"
UNFINISHED = "*.orbax-checkpoint-tmp*"  # what Orbax calls a checkpoint that it still writes
# Orbax has each device write a slice of an array that all of them hold. Small arrays are not worth slicing:
# of a small model on eight devices, that took most of the time of a save.
SLICE = 1 << 20  # bytes


class _ArrayHandler(ocp.type_handlers.ArrayHandler):  # type: ignore[misc]
    """Reads and writes arrays as Orbax does, but where one cannot be read, it waits for the others.

    Orbax leaves their reads unfinished, and Python would print a traceback for each of them.
    """

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        before = asyncio.all_tasks()
        try:
            return await super().deserialize(infos, args)
        except BaseException:
            await asyncio.gather(*asyncio.all_tasks() - before, return_exceptions=True)
            raise


logger = logging.getLogger("absl")
level = logger.level
logger.setLevel(logging.ERROR)  # Orbax warns whoever overrides a handler, which every notebook would show
ocp.type_handlers.register_type_handler(
    jax.Array, _ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE), override=True
)
logger.setLevel(level)


class Checkpoints:
    """The checkpoints of one run directory. As a context manager, it waits for the last save at the end."""

    def __init__(self, folder: Path, *, keep: int = 2, best: Callable[[], int | None] = lambda: None) -> None:
        """Open or make the directory `folder`, in which only the newest `keep` checkpoints stay.

        The step that `best()` names at a save stays besides.
        """
        self.folder = folder.absolute()
        hosts.decide(lambda: tidy(self.folder))
        self._kept = Kept(self.folder, keep, best)
        self._saving: int | None = None  # the step of a save that may not be on the disk yet
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            todelete_subdir=EVICTED,
            # Orbax would otherwise make directories in the background. When that fails, its threads keep the
            # process waiting long after the error was reported.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        # Compression makes weights hardly smaller, but costs much time and memory.
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add(None, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(use_compression=False))
        handlers.add(None, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
        self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=handlers)

    def __enter__(self) -> "Checkpoints":
        """Return the checkpoints themselves."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait for the last save. Raises StorageError when it could not be written."""
        if not isinstance(error, DivergedError):  # from which the run may go back
            hosts.announce(error)  # the last save needs every process
        try:
            self._manager.close()
            self._finish()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Begin to save the items and entries of a step; the arrays may be donated as soon as this returns.

        Raises StorageError when this save, or the one before it, could not be written.
        """
        self.wait()
        meta = meta | {"digests": {name: digests(tree) for name, tree in items.items()}}
        arguments: dict[str, Any] = {
            name: ocp.args.PyTreeSave(storable(tree)) for name, tree in items.items()
        }
        try:
            self._saving = step
            self._manager.save(
                step, args=ocp.args.Composite(**arguments, meta=ocp.args.JsonSave(meta)), force=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Wait until the last save is on disk. Raises StorageError when it could not be written."""
        try:
            self._manager.wait_until_finished()
            self._finish()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def _finish(self) -> None:
        """Wait until the last save is on the disk, and not only with the system; then delete older ones."""
        if hosts.is_first():
            if self._saving is not None:
                _sync(self.folder / str(self._saving))
            shutil.rmtree(self.folder / EVICTED, ignore_errors=True)
        self._saving = None
        self._kept.let_go()

    def _failed(self, error: Exception) -> StorageError:
        """The error of a save that failed. What was written of it is deleted."""
        self._saving = None
        self._kept.let_go()
        if hosts.is_first():
            for path in self.folder.glob(UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)
        return StorageError(
            "checkpoint not saved",
            path=self.folder,
            why=_reason(error),
            fix="make room on the disk and run again: older checkpoints are intact",
        )


def _reason(error: BaseException) -> str:
    """The first line of the error that caused this one."""
    while error.__cause__:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _sync(checkpoint: Path) -> None:
    """Wait until a checkpoint is on the disk. Raises OSError."""
    for path in (*checkpoint.rglob("*"), checkpoint, checkpoint.parent):
        sync(path)


def latest_step(folder: Path, damaged: Collection[Path] = ()) -> int | None:
    """Return the newest finished step in a directory of checkpoints, or None when there is none.

    Checkpoints that are known to be `damaged` do not count. A directory that is named after a step but holds
    no finished checkpoint is ignored, with a warning.
    """
    finished, unfinished = _named_after_steps(folder)
    for path in unfinished:
        warnings.warn(f"{path} is not a finished checkpoint and is ignored", stacklevel=2)
    return max((int(path.name) for path in finished if path.absolute() not in damaged), default=None)


def finished_steps(folder: Path) -> list[int]:
    """Return the steps of all finished checkpoints in a directory, in order."""
    return sorted(int(path.name) for path in _named_after_steps(folder)[0])


def _named_after_steps(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the directories named after a step: those with a finished checkpoint, and the others."""
    named = [path for path in folder.glob("*") if path.is_dir() and path.name.isdecimal()]
    finished = [path for path in named if (path / "_CHECKPOINT_METADATA").is_file()]
    return finished, [path for path in named if path not in finished]


def tidy(folder: Path) -> None:
    """Delete what a process that was killed left behind, and set aside what is no finished checkpoint.

    Orbax counts each directory that is named after a step as a checkpoint: it would refuse to save that step,
    and delete real ones instead.
    """
    for path in (folder / EVICTED, *folder.glob(UNFINISHED)):
        shutil.rmtree(path, ignore_errors=True)
    for path in _named_after_steps(folder)[1]:
        set_aside(path)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it does not count any more. Returns its new path."""
    names = (checkpoint.with_name(f"{checkpoint.name}.damaged-{n}") for n in itertools.count(1))
    return checkpoint.rename(next(name for name in names if not name.exists()))


def read_meta(folder: Path, step: int) -> dict[str, Any]:
    """Return the JSON table saved with a checkpoint. Raises DataError when it cannot be read."""
    try:
        meta: Any = ocp.JsonCheckpointHandler().restore(folder.absolute() / str(step) / "meta")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise damaged(folder, step, f"meta: {error}") from error
    tables = meta.get("digests") if isinstance(meta, dict) else None
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise damaged(folder, step, "meta: it holds no table of digests")
    return dict(meta)


def restore(folder: Path, step: int, name: str, target: Any) -> Any:
    """Return one item of a checkpoint, in the shapes, dtypes and shardings of `target` (`parallel.abstract`).

    Raises MissingError when there is no such checkpoint, DamagedError when it does not fit the target or its
    bytes are not those that were saved.
    """
    expected = read_together(folder, lambda: _saved(folder, step, name, target))
    tree = read_together(folder, lambda: _read(folder, step, name, _storable_target(target)))
    found = digests(tree)
    read_together(folder, lambda: _check_digests(folder, step, name, expected, found))
    return jax.tree.map(
        lambda want, have: jax.random.wrap_key_data(have) if is_key(want) else have, target, tree
    )


def restore_leaf(folder: Path, step: int, name: str, target: Any, leaf: str) -> Array:
    """Return only the leaf at a path such as `h/attn/c_attn/kernel`. Raises what `restore` raises."""
    expected = read_together(folder, lambda: _saved(folder, step, name, target))
    alone = jax.tree_util.tree_map_with_path(
        lambda place, shape: shape if path_of(place) == leaf else ocp.PLACEHOLDER, _storable_target(target)
    )
    tree = read_together(folder, lambda: _read(folder, step, name, alone))
    read = jax.tree_util.tree_map_with_path(
        lambda place, array: array if path_of(place) == leaf else None, tree
    )
    found = digests(read)
    read_together(folder, lambda: _check_digests(folder, step, name, {leaf: expected[leaf]}, found))
    leaves: list[Array] = jax.tree.leaves(read)
    [array] = leaves
    return array


def _saved(folder: Path, step: int, name: str, target: Any) -> dict[str, str]:
    """Return the digests that an item was saved with. Refuses an item unlike the target."""
    path = folder.absolute() / str(step)
    expected: dict[str, str] | None = read_meta(folder, step)["digests"].get(name) if path.is_dir() else None
    if expected is None and not (path / name).is_dir():
        raise MissingError(
            "no checkpoint",
            path=path / name,
            why="there is no such directory",
            fix="name a trained run directory",
        )
    if expected is None:
        raise damaged(folder, step, f"meta: it holds no digests of {name}")
    _refuse_other(folder, step, name, expected, target)
    return expected


def _read(folder: Path, step: int, name: str, target: Any) -> Any:
    """Return the arrays of an item; a placeholder in the target stays one.

    A Checkpointer of Orbax would wait for all processes, and for ever where one of them fails. Its handler
    waits for none.
    """
    arguments = jax.tree.map(
        lambda leaf: (
            ocp.RestoreArgs(restore_type=type(leaf))
            if leaf is ocp.PLACEHOLDER
            else ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype, global_shape=leaf.shape)
        ),
        target,
    )
    try:
        # By default Orbax reads everything at once, which needs twice the memory of the parameters.
        handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_gigabytes_of_largest(target))
        path = folder.absolute() / str(step) / name
        with contextlib.closing(handler):
            return handler.restore(path, args=ocp.args.PyTreeRestore(item=target, restore_args=arguments))
    except Exception as error:  # Orbax raises a dozen kinds of error for a damaged checkpoint
        raise damaged(folder, step, f"{name}: {_reason(error)}") from error


def _check_digests(
    folder: Path, step: int, name: str, expected: dict[str, str], found: dict[str, str]
) -> None:
    if wrong := sorted({leaf for leaf, _ in set(expected.items()) ^ set(found.items())}):
        raise damaged(folder, step, f"{name}: other contents than were saved in {', '.join(wrong)}")


def _gigabytes_of_largest(tree: Any) -> int:
    """Return the size of the largest leaf, rounded up to a gigabyte. Orbax cannot read with less."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf is not ocp.PLACEHOLDER]
    largest: int = max(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return -(-largest // 10**9)


def _refuse_other(folder: Path, step: int, name: str, expected: dict[str, Any], target: Any) -> None:
    """Refuse leaves that are saved but not wanted, wanted but not saved, or of another dtype or shape.

    Orbax itself would cast a leaf of another dtype without an error.
    """
    wanted = {
        path_of(place): kind(leaf)
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
        error = DamagedError(
            "checkpoint holds other arrays",
            path=folder.absolute() / str(step) / name,
            why=", ".join(sorted(problems)),
            fix="use the settings with which it was saved",
        )
        error.checkpoint = folder.absolute() / str(step)
        raise error


def _storable_target(target: Any) -> Any:
    def describe(leaf: Any) -> Any:
        if not is_key(leaf):
            return leaf
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)

    return jax.tree.map(describe, target)
