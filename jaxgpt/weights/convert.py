"""A StoredModel becomes a file of any format that we write, cast or with another vocabulary if asked.

A model is refused, with the reason, if the format cannot state what it computes, such as another activation.
What a format needs in addition, such as biases of zeros, is added and stated in the model's notes.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.files import new_folder, refuse_occupied, write_files
from jaxgpt.text.chat_template import template_files
from jaxgpt.weights.ends import as_stated, generation_file
from jaxgpt.weights.formats.huggingface import EMBEDDING, HEAD, SCORE, write_huggingface
from jaxgpt.weights.formats.llmc_bin import MODEL, write_llmc
from jaxgpt.weights.formats.nanogpt import ACTIVATION, CHECKPOINT, write_nanogpt
from jaxgpt.weights.names import places
from jaxgpt.weights.run import write_run
from jaxgpt.weights.tensors import DTYPES, StoredModel, Tensor


class Format(NamedTuple):
    """A format that we write."""

    write: Callable[[StoredModel, Path], None]
    file: str | None
    """The name of its one file, or None when the format is a whole folder."""
    says: frozenset[str]
    """Which of TRAITS the format can state. The others must have GPT-2's values."""


# The fields of GPTConfig that decide what a model computes, beside its sizes.
TRAITS = frozenset(
    {
        "mlp_size",
        "bias",
        "qkv_bias",
        "layer_norm_epsilon",
        "activation",
        "tied_head",
        "scale_attention",
        "qk_norm",
        "scale_by_inverse_layer",
        "position",
        "classes",
    }
)
FORMATS = {
    "huggingface": Format(write_huggingface, None, TRAITS - {"bias", "qkv_bias", "position", "qk_norm"}),
    "jaxgpt": Format(write_run, None, TRAITS),
    "llmc": Format(write_llmc, MODEL, frozenset()),
    "nanogpt": Format(write_nanogpt, CHECKPOINT, frozenset({"bias", "activation"})),
}


def with_dtype(model: StoredModel, dtype: str) -> StoredModel:
    """Return the model with every tensor cast to `dtype`, a name in DTYPES.

    Reading a tensor later raises DataError when one of its numbers is too large for that dtype.
    """
    cast = {name: _cast(name, tensor, DTYPES[dtype]) for name, tensor in model.tensors.items()}
    before = ", ".join(sorted({str(tensor.dtype) for tensor in model.tensors.values()} - {dtype}))
    notes = (*model.notes, f"cast from {before} to {dtype}") if before else model.notes
    return dataclasses.replace(model, tensors=cast, notes=notes)


def _cast(name: str, tensor: Tensor, dtype: np.dtype) -> Tensor:
    def read() -> np.ndarray:
        given = tensor.read()
        with np.errstate(over="ignore"):
            array = given.astype(dtype)
        if np.any(np.isinf(array) & ~np.isinf(given)):
            raise DataError(
                f"{name} as {dtype}",
                why="a number is too large for that dtype",
                fix="choose float32, or bfloat16 instead of float16",
            )
        return array

    return tensor if tensor.dtype == dtype else Tensor(tensor.shape, dtype, read)


def without_head(model: StoredModel) -> StoredModel:
    """Return a classifier without its head: the language model that it was made from."""
    tensors = {name: tensor for name, tensor in model.tensors.items() if name != SCORE}
    config = dataclasses.replace(model.config, classes=0)
    return dataclasses.replace(model, config=config, tensors=tensors, head=None)


def with_vocab(model: StoredModel, vocab: int) -> StoredModel:
    """Return the model with `vocab` rows in its embedding and head; its notes say what changed.

    Rows of zeros are added, or the last rows are left out. Raises ConfigError if the tokenizer needs more.
    """
    before = model.config.vocab
    if model.tokenizer and vocab < model.tokenizer.vocab:
        raise ConfigError(
            f"vocab = {vocab}",
            why=f"the tokenizer has {model.tokenizer.vocab} ids",
            fix=f"choose {model.tokenizer.vocab} or more",
        )
    if vocab == before:
        return model
    tensors = dict(model.tensors)
    for name in (EMBEDDING, HEAD):
        if name in tensors:
            tensors[name] = _with_rows(tensors[name], vocab)
    change = (
        f"{vocab - before} rows of zeros added"
        if vocab > before
        else f"the last {before - vocab} rows left out"
    )
    config = dataclasses.replace(model.config, vocab=vocab)
    return dataclasses.replace(
        model,
        config=config,
        tensors=tensors,
        stated_ends=frozenset(id for id in model.stated_ends if id < vocab),
        notes=(*model.notes, f"vocabulary: {change}"),
    )


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    def read() -> np.ndarray:
        array = tensor.read()[:rows]
        return np.pad(array, ((0, rows - len(array)), (0, 0)))

    return Tensor((rows, *tensor.shape[1:]), tensor.dtype, read)


def write_model(model: StoredModel, path: Path, to: str) -> StoredModel:
    """Write the model in the format `to`, a name in FORMATS, and return what was written, with all its notes.

    `path` is a new folder, or for a format of one file also a new file. It is written whole or not at all.
    Raises ConfigError when something is there already or the format cannot state what the model is, DataError
    when a tensor is damaged, StorageError when writing fails.
    """
    refuse_occupied(path)
    model = sayable(model, to)
    fmt = FORMATS[to]
    if fmt.file and path.suffix == Path(fmt.file).suffix:
        fmt.write(model, path)
        return _without_companions(model)
    with new_folder(path) as part:
        write_files(part, companions(model))
        fmt.write(model, part / fmt.file if fmt.file else part)
        if fmt.file and model.tokenizer and model.tokenizer.name != "gpt2":
            model.tokenizer.save_in(part)
    return model


def _without_companions(model: StoredModel) -> StoredModel:
    """Return what a single file holds of the model, with a note of what it leaves out."""
    if not companions(model):
        return model
    note = "where its texts end and its chat templates are left out: they stand in files beside the weights"
    return dataclasses.replace(model, stated_ends=frozenset(), templates={}, notes=(*model.notes, note))


def companions(model: StoredModel) -> dict[str, bytes]:
    """Return the files beside the weights that say where the model's texts end and how it chats.

    A format that says these things itself writes its own over them.
    """
    ends = as_stated(model.stated_ends)
    return (generation_file({"eos_token_id": ends}) if model.stated_ends else {}) | template_files(
        model.templates
    )


def sayable(model: StoredModel, to: str) -> StoredModel:
    """Return the model as the format can state it, with a note for each thing that had to be added.

    Raises ConfigError that names everything about the model that the format cannot state.
    """
    config, notes, says = model.config, list(model.notes), FORMATS[to].says
    tensors = dict(model.tensors)
    bias, qkv_bias = (getattr(config, name) or name not in says for name in ("bias", "qkv_bias"))
    config = dataclasses.replace(config, bias=bias, qkv_bias=qkv_bias)
    if missing := {place.name: place.shape for place in places(config) if place.name not in tensors}:
        tensors |= {name: Tensor.of(np.zeros(shape, model.dtype)) for name, shape in missing.items()}
        notes.append(f"{len(missing)} biases of zeros added: {to} has no models without them")
    if to == "nanogpt" and config.activation != ACTIVATION:
        notes.append(
            f"this model computes {config.activation}: jaxgpt reads that from the file, but nanoGPT "
            f"computes {ACTIVATION}"
        )
    if to == "llmc" and config.activation == "gelu":
        says = says | {"activation"}
        notes.append("this model computes gelu and llm.c gelu_tanh: the logits there will differ a little")
    plain = GPTConfig(
        vocab=config.vocab,
        context=config.context,
        layers=config.layers,
        heads=config.heads,
        width=config.width,
    )
    wrong = [
        f"{trait} = {getattr(config, trait)!r}, not {getattr(plain, trait)!r}"
        for trait in sorted(TRAITS - says)
        if getattr(config, trait) != getattr(plain, trait)
    ]
    if to == "llmc" and str(model.dtype) not in ("float32", "bfloat16"):
        wrong.append(f"dtype = {model.dtype}, not float32 or bfloat16 (`--dtype float32` casts)")
    if to == "huggingface" and model.head and model.head.reads != "last":
        wrong.append(f"its head reads {model.head.reads}, not the last token")
    if wrong:
        raise ConfigError(
            f"{to} cannot say what this model is",
            why=", ".join(wrong),
            fix="write another format: jaxgpt can state every model",
        )
    return dataclasses.replace(model, config=config, tensors=tensors, notes=tuple(notes))
