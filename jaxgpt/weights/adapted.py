"""Adapters (LoRA) are opened, whoever wrote them, and merged into the models that they belong to."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import FinetuneConfig, read_config
from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.model.gpt import Params
from jaxgpt.model.lora import adapter_shapes, merged
from jaxgpt.parallel import abstract, by_path, shardings
from jaxgpt.text.chat_template import templates_in
from jaxgpt.weights.adapter import Adapter, Base, check_base
from jaxgpt.weights.checkpoint import CHECKPOINTS, read_meta, restore
from jaxgpt.weights.convert import with_dtype, without_head
from jaxgpt.weights.damage import damaged
from jaxgpt.weights.digests import model_digest
from jaxgpt.weights.formats.peft import is_peft, open_peft
from jaxgpt.weights.names import leaf_at, places, tree_of
from jaxgpt.weights.params import RestorableTensors, part_of, read_params
from jaxgpt.weights.run import head_of, hold_checkpoint, is_run, named_step, one_device
from jaxgpt.weights.tensors import Head, StoredModel, Tensor

ADAPTER = "adapter"  # the item of a checkpoint that holds adapters, and the head that trains with them


def is_adapter(path: Path) -> bool:
    """Return whether a folder holds an adapter: a run that trained one, or a folder of PEFT's."""
    if is_run(path):
        config = read_config(path)
        return isinstance(config, FinetuneConfig) and config.adapts
    return is_peft(path)


def open_adapter(path: str | Path) -> Adapter:
    """Return the adapter of a run (`trains = "lora"`), or of a folder of PEFT's.

    Of a run it is the newest one; `RUN@best` and `RUN@500` name others, as they do of models. Raises
    MissingError where there is nothing, DataError where there is something else or it is damaged.
    """
    (path, step), fix = named_step(path), "name a run that trained with --trains lora, or a folder of PEFT's"
    if not path.exists():
        raise MissingError(f"no adapter {str(path)!r}", why="there is no such folder", fix=fix)
    if not is_adapter(path):
        raise DataError("not an adapter", path=path, why="it holds none", fix=fix)
    return _of_run(path, step) if is_run(path) else open_peft(path)


def loaded_already(adapter: str | Path) -> ConfigError:
    """The error for an adapter that is named beside a model in memory."""
    why, fix = "it is merged into a model while that is loaded", "name it there, as load(MODEL, adapter=...)"
    return ConfigError(f"adapter {str(adapter)!r} of a loaded model", why=why, fix=fix)


def _of_run(folder: Path, named: str | None) -> Adapter:
    config: Any = read_config(folder)
    held, head = hold_checkpoint(folder, config, named), head_of(config)
    step = held.step
    layers = range(*(config.span or (0, config.model.layers)))
    shapes = {
        path: (len(layers), *shape[1:]) for path, shape in adapter_shapes(config.model, config.lora).items()
    }
    if head:
        shapes["score/kernel"] = (config.model.width, len(head.labels))
    wanted = tree_of({path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()})
    item = "average" if config.optim.ema_decay else ADAPTER
    saved = by_path(restore(folder / CHECKPOINTS, step, item, abstract(wanted, one_device())))
    leaves = {path: np.asarray(leaf) for path, leaf in saved.items()}
    score, base = leaves.pop("score/kernel", None), saved_base(folder, step)
    return Adapter(config.lora, tuple(layers), leaves, base, head, score, templates_in(folder))


def saved_base(folder: Path, step: int) -> Base:
    """Return the base that a run's checkpoint names. Raises DamagedError where it names none."""
    meta = read_meta(folder / CHECKPOINTS, step)
    try:
        return Base(**meta["base"])
    except (KeyError, TypeError) as error:
        raise damaged(folder / CHECKPOINTS, step, "meta: it names no base") from error


def with_adapter(base: StoredModel, adapter: Adapter, path: str | Path, *, name: str) -> StoredModel:
    """Return the base with an adapter merged into it, in float32, with the adapter's head if it has one.

    `name` names the base, and `path` the adapter. When a tensor is read, the whole model is put together in
    memory. Reading raises DataError where the adapter was trained on another base. That the adapter fits the
    architecture is checked at once (DataError).
    """
    whole, head = tree_of(adapter.whole(base.config, path)), _head(base, adapter)
    if base.config.classes:
        base = without_head(base)
    if str(base.dtype) != "float32":
        base = with_dtype(base, "float32")
    score = {} if adapter.score is None else {"score": {"kernel": adapter.score}}
    config = dataclasses.replace(base.config, classes=len(head.labels) if head else 0)

    def restored(mesh: Mesh) -> Params:
        params = read_params(base, mesh)
        if adapter.base.digest is not None:
            vocab = adapter.base.vocab
            check_base(adapter.base, Base(name, vocab, model_digest(params, vocab)), path)
        params = merged(params, jax.device_put(whole, shardings(whole, mesh)), adapter.lora) | score
        placed: Params = jax.device_put(params, shardings(params, mesh))
        return placed

    at_once = functools.cache(lambda: restored(one_device()))
    tensors = {
        place.name: Tensor(
            place.shape,
            np.dtype(np.float32),
            functools.partial(lambda place: part_of(leaf_at(at_once(), place.path), place), place),
        )
        for place in places(config)
    }
    return dataclasses.replace(
        base,
        config=config,
        tensors=RestorableTensors(tensors, restored),
        head=head,
        notes=(*base.notes, *adapter.notes),
        templates=adapter.templates or base.templates,
    )


def _head(base: StoredModel, adapter: Adapter) -> Head | None:
    """Return what the adapter's head means: where it has no labels, those of a base with as many classes."""
    if adapter.head is None or adapter.score is None or adapter.head.labels:
        return adapter.head
    classes = adapter.score.shape[1]
    if base.head and len(base.head.labels) == classes:
        return base.head
    return Head(tuple(f"LABEL_{number}" for number in range(classes)))
