"""A run directory: one writer at a time, and resumed only as the run it is.

It holds `config.json`, `metrics.jsonl`, `checkpoints/`, the tokenizer's file, `report.md`, and `data/` where the run
prepared its own.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import jax

from jaxgpt.config import GPTConfig, TrainConfig, read_config
from jaxgpt.errors import BusyError, ConfigError, StorageError
from jaxgpt.text.manifest import Manifest
from jaxgpt.training.optim import averaged
from jaxgpt.training.state import TrainState
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints, latest_step, read_meta, restore

HOW_IT_IS_COMPUTED = ("dropout", "compute_dtype")  # fields of the model that a resumed run may change


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The run directory, made if need be, for this run alone; of several processes the first holds the lock.

    Raises BusyError while another run holds it, StorageError when it cannot be made.
    """
    if jax.process_index() > 0:
        yield
        return
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise BusyError(
            "run directory is in use",
            path=folder,
            why="another process trains in it",
            fix="wait or use another",
        ) from None
    except OSError as error:
        raise StorageError(
            "no run directory", path=folder, why=str(error), fix="name another --out-dir"
        ) from None
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, kw_only=True)
class Position:
    """What decides the order of the data, beside the step; a run goes on only where all of it is as it was."""

    fingerprint: str
    seed: int
    sequences: int
    context: int
    stride: int


def data_position(config: TrainConfig, manifest: Manifest) -> Position:
    """The position of a run of this config on this data."""
    return Position(
        fingerprint=manifest.fingerprint,
        seed=config.seed,
        sequences=config.sequences,
        context=config.model.context,
        stride=config.data.stride or config.model.context,
    )


def resumable_step(config: TrainConfig, folder: Path, position: Position) -> int:
    """The step to go on from; 0 for a new run. Raises ConfigError when the run that is there is another one."""
    step = latest_step(folder / CHECKPOINTS) if (folder / CHECKPOINTS).is_dir() else None
    if step is None:
        return 0
    before = read_meta(folder / CHECKPOINTS, step).get("position")
    if before is None:
        raise ConfigError(
            "weights without a training state are here",
            path=folder,
            why="they were converted, not trained here",
            fix=f"start from them elsewhere: --from {folder} --out-dir ANOTHER",
        )
    changed = _differences(before, dataclasses.asdict(position))
    changed += _differences(_architecture(read_config(folder).model), _architecture(config.model), "model.")
    if step > config.steps:
        changed.append(f"steps: it has done {step}, {config.steps} are asked for")
    if changed:
        raise ConfigError(
            "another run is here",
            path=folder,
            why=", ".join(changed),
            fix="name another --out-dir, or ask for that run",
        )
    return step


def _architecture(model: GPTConfig) -> dict[str, Any]:
    return {
        name: value for name, value in dataclasses.asdict(model).items() if name not in HOW_IT_IS_COMPUTED
    }


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        f"{prefix}{name}: {before.get(name)} then, {value} now"
        for name, value in now.items()
        if before.get(name) != value
    ]


def save_state(checkpoints: Checkpoints, position: Position, state: TrainState, step: int) -> None:
    """Begin to save a state: parameters, their average where kept, and what only training needs, an item each."""
    items = _items(state)
    average = averaged(state.opt_state)
    if average is not None:
        items["average"] = average
    checkpoints.save(step, items, {"position": dataclasses.asdict(position)})


def restore_state(folder: Path, step: int, target: TrainState) -> TrainState:
    """The state saved at a step, placed as `target` says (`abstract_state`)."""
    items = {name: restore(folder / CHECKPOINTS, step, name, tree) for name, tree in _items(target).items()}
    return TrainState(trainable=items["params"], frozen={}, **items["rest"])


def _items(state: TrainState) -> dict[str, Any]:
    rest = {"step": state.step, "key": state.key, "opt_state": state.opt_state}
    return {"params": state.params, "rest": rest}
