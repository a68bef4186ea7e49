"""A run directory: locking it, writing its settings, and saving and restoring its state.

It holds `config.json`, `settings.jsonl` (a line for each time that settings were changed), `starts.jsonl` (by
which commands and versions it was run, and how long), `metrics.jsonl`, `checkpoints/`, the tokenizer's file,
`report.md` and `report.html`, and `data/` if the run prepared its own tokens.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh

from jaxgpt import hosts
from jaxgpt.config import RunConfig, save_config
from jaxgpt.errors import unwritable
from jaxgpt.files import write_atomically
from jaxgpt.log import METRICS_FILE, read_rows
from jaxgpt.parallel import abstract, shardings
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_files import tokenizer_in, vocabulary_files
from jaxgpt.training.divergence import refuse_non_finite_arrays
from jaxgpt.training.guard import Recent, no_losses
from jaxgpt.training.lock import RunLock
from jaxgpt.training.metrics import MetricsLog
from jaxgpt.training.optim import averaged
from jaxgpt.training.resume import Found, changes
from jaxgpt.training.state import TrainState
from jaxgpt.training.trainable import combine, partition
from jaxgpt.weights.adapted import ADAPTER, saved_base
from jaxgpt.weights.adapter import Base, check_base
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints, read_meta, restore
from jaxgpt.weights.damage import read_together

DATA = "data"
SETTINGS_FILE = "settings.jsonl"
RECENT = "recent"  # the item of a checkpoint with the losses of the last steps


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the run directory if it is missing, and lock it for this run alone.

    Of several processes the first one holds the lock. Raises BusyError while another run holds it,
    StorageError when the directory cannot be made, and ConfigError when it is not the same directory for
    every process.
    """
    lock = RunLock(folder)
    hosts.decide(lock.acquire)
    try:
        hosts.check_shared(folder)
        yield
    finally:
        lock.release()


def write_settings(
    folder: Path,
    recipe: RunConfig,
    tokenizer: Tokenizer,
    found: Found | None,
    tell: Callable[[str], None],
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write the settings of a run that begins, or that continues what was found, with the tokenizer and the
    task's own `files`.

    Rows of the log beyond the step where the run continues are removed. The log of an attempt that saved
    nothing is kept under another name. Raises StorageError when something cannot be written.
    """

    def write() -> None:
        try:
            if found is None:
                _set_aside(folder, tell)
            else:
                MetricsLog(folder / METRICS_FILE).cut_back(found.step)
                _append_changes(folder, found, recipe)
            if found is None or not tokenizer_in(folder):
                tokenizer.save_in(folder)
            for name, content in files.items():
                if found is None or not (folder / name).is_file():
                    write_atomically(folder / name, content)
            if found is None or found.recipe != recipe:
                save_config(recipe, folder, vocabulary_files(folder))
        except OSError as error:
            raise unwritable(folder, error, "cannot write the run's settings") from error

    hosts.decide(write)


def _set_aside(folder: Path, tell: Callable[[str], None]) -> None:
    """Rename the log of an attempt that ended before it saved anything."""
    if not read_rows(folder / METRICS_FILE):
        return
    names = (folder / f"metrics.before-{number}.jsonl" for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    (folder / METRICS_FILE).rename(aside)
    tell(f"{folder} holds no finished checkpoint; training begins at step 0")
    tell(f"the log so far is kept as {aside.name}")


def _append_changes(folder: Path, found: Found, recipe: RunConfig) -> None:
    if changed := changes(found.recipe, recipe):
        path = folder / SETTINGS_FILE
        before = path.read_bytes() if path.is_file() else b""
        line = json.dumps({"step": found.step, "changed": changed}).encode() + b"\n"
        write_atomically(path, before + line)


def save_state(
    checkpoints: Checkpoints, fingerprint: str, state: TrainState, step: int, *, base: Base | None = None
) -> None:
    """Begin to save a state. `fingerprint` is the fingerprint of the data.

    The checkpoint has an item for the parameters, one for their average if the run keeps it, and one for what
    only training needs. Where the run looks for spikes, another one has the losses of the last steps. Of a
    run that trains adapters on a `base`, it has the adapters in place of the parameters, and says which base
    they belong to. Raises DivergedError where a number is not finite; nothing is saved then.
    """
    kept = {"params": state.params} if base is None else {ADAPTER: state.trainable}
    items = kept | {"rest": _rest(state)}
    average = averaged(state.opt_state)
    if average is not None:  # it has what trains, and every reader of a run expects a whole model
        items["average"] = combine(average, state.frozen, state.chosen) if base is None else average
    if state.recent is not None:
        items[RECENT] = state.recent
    refuse_non_finite_arrays(step, items)
    meta: dict[str, Any] = {"position": {"fingerprint": fingerprint}}
    checkpoints.save(step, items, meta if base is None else meta | {"base": base._asdict()})


def restore_state(folder: Path, step: int, target: TrainState) -> TrainState:
    """The state saved at a step, placed as `target` says (`abstract_state`).

    All parameters are saved together, whichever of them train, so that every reader of a run finds them.
    """
    mesh: Mesh = jax.tree.leaves(target)[0].sharding.mesh
    whole = abstract(jax.eval_shape(lambda state: state.params, target), mesh)
    params = restore(folder / CHECKPOINTS, step, "params", whole)
    rest = restore(folder / CHECKPOINTS, step, "rest", _rest(target))
    if target.chosen.is_everything:
        return TrainState(trainable=params, frozen={}, **rest)
    divide = functools.partial(partition, chosen=target.chosen)
    placed = shardings(jax.eval_shape(divide, whole), mesh)
    trainable, frozen = jax.jit(divide, out_shardings=placed)(params)
    return TrainState(trainable=trainable, frozen=frozen, chosen=target.chosen, **rest)


def restore_adapter(folder: Path, step: int, begun: TrainState, base: Base) -> TrainState:
    """The state saved at a step by a run that trains adapters; `begun` is the state that it began with.

    Raises DataError where the run began with another base.
    """
    check_base(read_together(folder / CHECKPOINTS, lambda: saved_base(folder, step)), base, folder)
    mesh: Mesh = jax.tree.leaves(begun.frozen)[0].sharding.mesh
    target, rest = (abstract(tree, mesh) for tree in (begun.trainable, _rest(begun)))
    trainable = restore(folder / CHECKPOINTS, step, ADAPTER, target)
    return dataclasses.replace(
        begun, trainable=trainable, **restore(folder / CHECKPOINTS, step, "rest", rest)
    )


def restore_recent(folder: Path, step: int, mesh: Mesh) -> Recent | None:
    """The losses of the last steps as a run has saved them; None where it has not looked for spikes."""
    saved = folder / CHECKPOINTS
    if RECENT not in read_together(saved, lambda: read_meta(saved, step))["digests"]:
        return None
    target = abstract(jax.eval_shape(lambda: no_losses(mesh)), mesh)
    recent: Recent = restore(saved, step, RECENT, target)
    return recent


def _rest(state: TrainState) -> dict[str, Any]:
    """What only training needs."""
    return {"step": state.step, "key": state.key, "opt_state": state.opt_state}
