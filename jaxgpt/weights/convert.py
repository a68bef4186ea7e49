"""Any file of GPT-2 weights to a StoredModel, and a StoredModel to any format that has a writer.

What a file holds is told by its contents. What a format cannot say of a model is refused by name, or, where that
changes nothing, added and stated in the model's notes.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgpt.config import CONFIG_FILE, GPTConfig
from jaxgpt.errors import ConfigError, DataError, MissingError, StorageError
from jaxgpt.text.tokenizer import JSON_FILE, TOKENIZER_FILE, Tokenizer, load_tokenizer
from jaxgpt.weights.formats.huggingface import HEAD, open_huggingface, write_huggingface
from jaxgpt.weights.formats.llmc_bin import MODEL, is_llmc, open_llmc, write_llmc
from jaxgpt.weights.formats.nanogpt import ACTIVATION, CHECKPOINT, open_nanogpt, write_nanogpt
from jaxgpt.weights.formats.openai import HPARAMS, open_openai
from jaxgpt.weights.hub import PUBLIC, fetch
from jaxgpt.weights.names import places
from jaxgpt.weights.run import is_run, open_run, write_run
from jaxgpt.weights.tensors import DTYPES, StoredModel, Tensor

GPT2_VOCAB = 50257


class Format(NamedTuple):
    """A format we write."""

    write: Callable[[StoredModel, Path], None]
    file: str | None
    """Its one file's name in a folder; None: it is a folder."""
    says: frozenset[str]
    """What it can say of a model beside its sizes."""


# Beside its sizes, what decides what a model computes.
TRAITS = frozenset(
    {
        "mlp_size",
        "bias",
        "layer_norm_epsilon",
        "activation",
        "tied_head",
        "scale_attention",
        "scale_by_inverse_layer",
        "position",
    }
)
FORMATS = {
    "huggingface": Format(write_huggingface, None, TRAITS - {"bias", "position"}),
    "jaxgpt": Format(write_run, None, TRAITS),
    "llmc": Format(write_llmc, MODEL, frozenset()),
    "nanogpt": Format(write_nanogpt, CHECKPOINT, frozenset({"bias", "activation"})),
}


def open_model(source: str | Path, *, layer_norm_epsilon: float | None = None) -> StoredModel:
    """The model in a folder or file of any format, or of a public name, which is fetched; what lies here goes first.

    `layer_norm_epsilon` is for OpenAI's files, which do not state it. Raises MissingError when there is no such thing,
    DataError when it is not a GPT-2 in one of the formats.
    """
    path = Path(source)
    if not path.exists() and str(source) in PUBLIC:
        path = fetch(str(source))
    elif not path.exists():
        raise MissingError(
            f"no model {str(source)!r}",
            why=f"it is neither a file or folder here nor one of {', '.join(PUBLIC)}",
            fix="train one with `jaxgpt pretrain nano --out-dir runs/nano`",
        )
    if layer_norm_epsilon is not None and not (path / HPARAMS).is_file():
        raise ConfigError(
            f"layer_norm_epsilon = {layer_norm_epsilon:g}",
            why="the model's own files state it",
            fix=f"give it only with OpenAI's {HPARAMS}",
        )
    try:
        model = _open(path, layer_norm_epsilon)
    except OSError as error:
        raise StorageError("cannot read", path=path, why=str(error), fix="check the files") from error
    folder = path if path.is_dir() else path.parent
    return dataclasses.replace(model, tokenizer=tokenizer_of(folder, model.config.vocab))


def _open(path: Path, layer_norm_epsilon: float | None) -> StoredModel:
    if path.is_file():
        return _open_file(path)
    if is_run(path):
        return open_run(path)
    if (path / HPARAMS).is_file():
        return open_openai(path, layer_norm_epsilon=layer_norm_epsilon)
    if (path / CONFIG_FILE).is_file():
        return open_huggingface(path)
    for name in (CHECKPOINT, MODEL):
        if (path / name).is_file():
            return _open_file(path / name)
    raise MissingError(
        "no model",
        path=path,
        fix="name the folder or file the weights are in",
        why=f"it is no run directory and has neither {CONFIG_FILE} nor {HPARAMS} nor {CHECKPOINT} nor {MODEL}",
    )


def _open_file(path: Path) -> StoredModel:
    if is_llmc(path):
        return open_llmc(path)
    if path.suffix == ".safetensors" or (path.parent / CONFIG_FILE).is_file():
        return open_huggingface(path)
    return open_nanogpt(path)


def tokenizer_of(folder: Path, vocab: int) -> Tokenizer | None:
    """The tokenizer beside weights of this vocabulary; GPT-2's where there is none and the ids have room for it.

    (A run directory holds its own or none.) Raises DataError when it has more ids than the model.
    """
    own = any((folder / name).is_file() for name in (TOKENIZER_FILE, JSON_FILE))
    if not own and (vocab < GPT2_VOCAB or is_run(folder)):
        return None
    tokenizer = load_tokenizer(folder if own else "gpt2")
    if tokenizer.vocab > vocab:
        raise DataError(
            "another model's tokenizer",
            path=folder,
            fix="put the model's own tokenizer.json there",
            why=f"the tokenizer {tokenizer.name} has {tokenizer.vocab} ids, the model {vocab}",
        )
    return tokenizer


def with_dtype(model: StoredModel, dtype: str) -> StoredModel:
    """The model with every tensor cast. Reading one raises DataError when a number is too large for that."""
    cast = {name: _cast(name, tensor, DTYPES[dtype]) for name, tensor in model.tensors.items()}
    before = ", ".join(sorted({str(tensor.dtype) for tensor in model.tensors.values()} - {dtype}))
    notes = (*model.notes, f"cast from {before} to {dtype}") if before else model.notes
    return dataclasses.replace(model, tensors=cast, notes=notes)


def _cast(name: str, tensor: Tensor, dtype: np.dtype) -> Tensor:
    def read() -> np.ndarray:
        given = tensor.read()
        with np.errstate(over="ignore"):
            array = given.astype(dtype)
        if np.isinf(array).any() and not np.isinf(given).any():
            raise DataError(
                f"{name} as {dtype}", why="a number is too large for that", fix="choose a wider dtype"
            )
        return array

    return tensor if tensor.dtype == dtype else Tensor(tensor.shape, dtype, read)


def with_vocab(model: StoredModel, vocab: int) -> StoredModel:
    """The model with so many rows in its embedding: zeros added, or the last ones left out; its notes say which.

    Raises ConfigError when its tokenizer needs more.
    """
    before = model.config.vocab
    if model.tokenizer and vocab < model.tokenizer.vocab:
        raise ConfigError(
            f"vocab = {vocab}",
            why=f"the tokenizer has {model.tokenizer.vocab} ids",
            fix="keep at least these",
        )
    if vocab == before:
        return model
    tensors = dict(model.tensors)
    for name in ("wte.weight", HEAD):
        if name in tensors:
            tensors[name] = _with_rows(tensors[name], vocab)
    change = (
        f"{vocab - before} rows of zeros added"
        if vocab > before
        else f"the last {before - vocab} rows left out"
    )
    config = dataclasses.replace(model.config, vocab=vocab)
    return dataclasses.replace(
        model, config=config, tensors=tensors, notes=(*model.notes, f"vocabulary: {change}")
    )


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    def read() -> np.ndarray:
        array = tensor.read()[:rows]
        return np.pad(array, ((0, rows - len(array)), (0, 0)))

    return Tensor((rows, *tensor.shape[1:]), tensor.dtype, read)


def write_model(model: StoredModel, path: Path, to: str) -> StoredModel:
    """Write the model in a format of FORMATS, whole or not at all; returns what was written, with all its notes.

    `path` is a folder to be made, or for a format of one file also that file. Raises ConfigError when something is
    there already or the format cannot say what the model is, StorageError when writing fails.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(
            "something is there already", path=path, why="it would be lost", fix="name another place"
        )
    model = sayable(model, to)
    fmt = FORMATS[to]
    if fmt.file and path.suffix == Path(fmt.file).suffix:
        fmt.write(model, path)
        return model
    part = path.with_name(path.name + ".part")
    try:
        if part.exists():  # of a conversion that was killed
            shutil.rmtree(part)
        part.mkdir(parents=True)
        fmt.write(model, part / fmt.file if fmt.file else part)
        if fmt.file and model.tokenizer and model.tokenizer.name != "gpt2":
            model.tokenizer.save(part / TOKENIZER_FILE)
        if path.is_dir():
            path.rmdir()  # empty, as was seen above
        part.rename(path)
    except OSError as error:
        raise StorageError(
            "cannot write", path=path, why=str(error), fix="check space and permission"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return model


def sayable(model: StoredModel, to: str) -> StoredModel:
    """The model as the format can say it, with notes of what that took. Raises ConfigError for what it cannot."""
    config, notes, says = model.config, list(model.notes), FORMATS[to].says
    tensors = dict(model.tensors)
    if not config.bias and "bias" not in says:
        config = dataclasses.replace(config, bias=True)
        missing = {place.name: place.shape for place in places(config) if place.name not in tensors}
        tensors |= {name: Tensor.of(np.zeros(shape, model.dtype)) for name, shape in missing.items()}
        notes.append(f"{len(missing)} biases of zeros added: {to} has no model without")
    if to == "nanogpt" and config.activation != ACTIVATION:
        notes.append(
            f"nanoGPT computes {ACTIVATION}, this model {config.activation}: only jaxgpt will see that"
        )
    if to == "llmc" and config.activation == "gelu":
        says = says | {"activation"}
        notes.append("llm.c computes gelu_tanh, this model gelu: its logits will differ a little")
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
        wrong.append(f"dtype = {model.dtype}, not float32 or bfloat16 (--dtype casts)")
    if wrong:
        raise ConfigError(
            f"{to} cannot say what this model is", why=", ".join(wrong), fix="write another format"
        )
    return dataclasses.replace(model, config=config, tensors=tensors, notes=tuple(notes))
