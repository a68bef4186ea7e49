"""Our own directories: the weights of a run are opened, and converted weights are written as a run."""

import contextlib
import dataclasses
import functools
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import (
    ClassifyConfig,
    GPTConfig,
    MeshConfig,
    RunConfig,
    TrainConfig,
    read_config,
    save_config,
)
from jaxgpt.errors import MissingError, StorageError
from jaxgpt.log import METRICS_FILE, Best, read_rows
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import abstract, mesh_of
from jaxgpt.text.tokenizer_files import vocabulary_files
from jaxgpt.weights.checkpoint import (
    CHECKPOINTS,
    Checkpoints,
    finished_steps,
    latest_step,
    read_meta,
    restore,
    restore_leaf,
)
from jaxgpt.weights.kept import Hold
from jaxgpt.weights.names import Place, leaf_at, leaf_shapes, places, tree_of
from jaxgpt.weights.params import RestorableTensors, part_of, read_params
from jaxgpt.weights.tensors import DTYPES, Head, StoredModel, Tensor

WAIT = 300.0  # seconds that a reader waits while a run replaces the checkpoint that it wants
POLL = 0.02  # seconds between two looks
BEST = "best"  # as a step: that of the best checkpoint


def one_device() -> Mesh:
    """Return the mesh of this process's first device alone."""
    return mesh_of(MeshConfig(data=1), jax.local_devices()[:1])


def is_run(folder: Path) -> bool:
    """Return whether the folder is a run directory, with checkpoints of ours."""
    return (folder / CHECKPOINTS).is_dir()


def named_step(source: str | Path) -> tuple[Path, str | None]:
    """Return what names a model as a path and, of `RUN@STEP`, the step: a number, or `best`.

    A file or folder of that very name goes first.
    """
    folder, _, step = str(source).rpartition("@")
    if Path(source).exists() or not folder or not is_run(Path(folder)):
        return Path(source), None
    return Path(folder), step


def open_run(folder: Path, wanted: str | None = None) -> StoredModel:
    """Return the parameters of a run, averaged if the run keeps an average, in their stored dtype.

    `wanted` is the step of a checkpoint, or `best` for the one that the run's `best_metric` decides. None
    means the newest.

    The config has no dropout, computes in float32 and draws as GPT-2 does, however the run was trained.
    `read_params` restores these parameters straight to a mesh; a single tensor is read with its leaf when it
    is asked for. Raises MissingError when the run has no such checkpoint, DataError when the checkpoint is
    damaged.
    """
    train = read_config(folder)
    held = hold_checkpoint(folder, train, wanted)
    config, item, shapes = _saved(folder, train, held.step)
    one = abstract(shapes, one_device())

    def restored(mesh: Mesh) -> Params:
        params: Params = restore(folder / CHECKPOINTS, held.step, item, abstract(shapes, mesh))
        return params

    @functools.lru_cache(maxsize=1)  # the tensors of one leaf are asked for one after another, layer by layer
    def leaf(path: str) -> jax.Array:
        return restore_leaf(folder / CHECKPOINTS, held.step, item, one, path)

    def tensor(place: Place) -> Tensor:
        dtype = np.dtype(leaf_at(shapes, place.path).dtype)
        return Tensor(place.shape, dtype, lambda: part_of(leaf(place.path), place))

    tensors = {place.name: tensor(place) for place in places(config)}
    return StoredModel(config, RestorableTensors(tensors, restored), head=head_of(train))


def head_of(train: RunConfig) -> Head | None:
    """Return what the head of a run's classifier means; None of other runs."""
    return Head(train.labels, train.reads) if isinstance(train, ClassifyConfig) else None


def hold_checkpoint(folder: Path, train: RunConfig, wanted: str | None) -> Hold:
    """Hold the checkpoint that is wanted, so that a run which goes on training does not delete it.

    While the run replaces its only checkpoint by a new one, this waits for the new one. Raises what `step_of`
    raises, and StorageError where that takes too long.
    """
    end = time.monotonic() + WAIT
    while True:
        checkpoint = folder / CHECKPOINTS / str(step_of(folder, train, wanted))
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            return Hold(checkpoint)
        if time.monotonic() > end:
            raise StorageError(
                "cannot read the checkpoint",
                path=checkpoint,
                why=f"its run has been replacing it for {WAIT:g} seconds",
                fix="wait until the run has saved, or let it keep more checkpoints (--keep-checkpoints)",
            )
        time.sleep(POLL)


def step_of(folder: Path, train: RunConfig, wanted: str | None) -> int:
    """Return the step of the checkpoint that is wanted. Raises MissingError when it is not there."""
    newest = latest_step(folder / CHECKPOINTS)
    if newest is None:
        raise MissingError(
            "no checkpoint",
            path=folder,
            why="the run saved none yet",
            fix="train it until it saves one (--checkpoint-every)",
        )
    if wanted is None:
        return newest
    kept = finished_steps(folder / CHECKPOINTS)
    best = Best.of(read_rows(folder / METRICS_FILE), train.best_metric)
    step = best.step if wanted == BEST else int(wanted) if wanted.isdecimal() else None
    if step not in kept:
        if wanted == BEST:
            none = f"it has not measured {train.best_metric} after a step"
            why = none if step is None else f"its best one, of step {step}, was not kept"
        else:
            why = f"{wanted!r} is not the step of a checkpoint that is kept"
        names = ", ".join(f"{folder}@{number}" for number in kept)
        raise MissingError(f"no checkpoint {folder}@{wanted}", why=why, fix=f"name one of {names}")
    return step


def _saved(folder: Path, train: RunConfig, step: int) -> tuple[GPTConfig, str, Params]:
    """Return the config of a checkpoint, the name of the item with the weights, and their shapes."""
    config = dataclasses.replace(train.model, dropout=0.0, compute_dtype="float32", init="gpt2")
    item = "average" if train.optim.ema_decay else "params"
    saved = read_meta(folder / CHECKPOINTS, step)["digests"].get(item, {})
    shapes = {
        path: jax.ShapeDtypeStruct(shape, _dtype(saved, path)) for path, shape in leaf_shapes(config).items()
    }
    return config, item, tree_of(shapes)


def _dtype(saved: dict[str, Any], path: str) -> np.dtype:
    """Return the dtype that a checkpoint's digest states for a leaf, or float32 if it states none."""
    kind = re.match(r"\w+", str(saved.get(path)))
    return DTYPES.get(kind[0] if kind else "", DTYPES["float32"])


def write_run(model: StoredModel, folder: Path) -> None:
    """Write the model as a run directory of no steps, which everything that takes a run can read.

    Raises StorageError when writing fails.
    """
    params = read_params(model, one_device())
    folder.mkdir(parents=True, exist_ok=True)
    if model.tokenizer:
        model.tokenizer.save_in(folder)
    settings: RunConfig = TrainConfig(model=model.config)
    if model.head is not None:
        reads: Any = model.head.reads  # checked when the settings are made
        settings = ClassifyConfig(model=model.config, labels=model.head.labels, reads=reads)
    save_config(settings, folder, vocabulary_files(folder))
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(0, {"params": params}, {})
