"""Our own directories: the weights of a run read to where they belong, and converted weights written as one."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import GPTConfig, MeshConfig, TrainConfig, read_config, save_config
from jaxgpt.errors import MissingError
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import abstract, mesh_of
from jaxgpt.text.tokenizer import TOKENIZER_FILE
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints, latest_step, read_meta, restore, restore_leaf
from jaxgpt.weights.names import Place, leaf_at, leaf_shapes, places, tree_of
from jaxgpt.weights.params import part_of, read_params
from jaxgpt.weights.tensors import DTYPES, StoredModel, Tensor


def one_device() -> Mesh:
    """The mesh of this process's first device alone."""
    return mesh_of(MeshConfig(data=1), jax.local_devices()[:1])


def is_run(folder: Path) -> bool:
    return (folder / CHECKPOINTS).is_dir()


def read_run(folder: Path, mesh: Mesh) -> tuple[GPTConfig, Params]:
    """The newest parameters of a run, averaged where it keeps an average, in their stored dtype.

    Dropout is off and computation in float32, whatever it was trained with. Raises MissingError without a finished
    checkpoint, DataError for a damaged one.
    """
    config, step, item, target = _newest(folder, mesh)
    return config, restore(folder / CHECKPOINTS, step, item, target)


def open_run(folder: Path) -> StoredModel:
    """The newest parameters of a run as `read_run` finds them, read a leaf at a time when they are asked for."""
    config, step, item, target = _newest(folder, one_device())

    @functools.lru_cache(maxsize=1)  # the tensors of a leaf are asked for one after another, layer by layer
    def leaf(path: str) -> jax.Array:
        return restore_leaf(folder / CHECKPOINTS, step, item, target, path)

    def tensor(place: Place) -> Tensor:
        dtype = np.dtype(leaf_at(target, place.path).dtype)
        return Tensor(place.shape, dtype, lambda: part_of(leaf(place.path), place))

    return StoredModel(config, {place.name: tensor(place) for place in places(config)})


def _newest(folder: Path, mesh: Mesh) -> tuple[GPTConfig, int, str, Params]:
    """What a run's newest parameters are, in which item of which step they lie, and what to restore them into."""
    train = read_config(folder)
    step = latest_step(folder / CHECKPOINTS)
    if step is None:
        raise MissingError("no checkpoint", path=folder, why="the run saved none yet", fix="train it further")
    config = dataclasses.replace(train.model, dropout=0.0, compute_dtype="float32")
    item = "average" if train.optim.ema_decay else "params"
    saved = read_meta(folder / CHECKPOINTS, step)["digests"].get(item, {})
    shapes = leaf_shapes(config)
    target = tree_of(
        {path: jax.ShapeDtypeStruct(shape, _dtype(saved, path)) for path, shape in shapes.items()}
    )
    return config, step, item, abstract(target, mesh)


def _dtype(saved: dict[str, Any], path: str) -> Any:
    """The dtype that a checkpoint's table of digests says a leaf has; float32 where it says nothing of use."""
    kind = re.match(r"\w+", str(saved.get(path)))
    return DTYPES.get(kind[0] if kind else "", DTYPES["float32"])


def write_run(model: StoredModel, folder: Path) -> None:
    """Write a directory that everything takes for a run of no steps. Raises StorageError."""
    params = read_params(model, one_device())
    folder.mkdir(parents=True, exist_ok=True)
    save_config(TrainConfig(model=model.config), folder)
    if model.tokenizer:
        model.tokenizer.save(folder / TOKENIZER_FILE)
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(0, {"params": params}, {})
