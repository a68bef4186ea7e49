"""Hugging Face's folders and files of GPT-2 weights: safetensors or torch files beside a config.json."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.config import CONFIG_FILE
from jaxgpt.errors import DataError, MissingError
from jaxgpt.files import write_atomically, write_files
from jaxgpt.text.tokenizer import RankTokenizer, Tokenizer
from jaxgpt.text.tokenizer_folder import JSON_FILE, MERGES_FILE, SETTINGS_FILE, VOCAB_FILE
from jaxgpt.weights.ends import as_stated, generation_file
from jaxgpt.weights.formats.huggingface_config import config_json, read_config_json
from jaxgpt.weights.formats.safetensors_file import open_safetensors, write_safetensors
from jaxgpt.weights.formats.torch_zip import open_torch
from jaxgpt.weights.names import fitted
from jaxgpt.weights.tensors import StoredModel, Tensor, bytes_of

SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
PREFIX = "transformer."
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # causal masks, which older files contain
HEAD, EMBEDDING = "lm_head.weight", "wte.weight"
SCORE = "score.weight"  # of a classifier: (classes, width), as torch stores a linear layer


def open_huggingface(path: Path) -> StoredModel:
    """Open the model of a folder with config.json, or of one file of weights with config.json beside it.

    The weights are safetensors or torch files, single or in shards with an index. Raises MissingError when a
    file is not there, DataError that lists every problem of the config or every problem of the tensors.
    """
    folder = path if path.is_dir() else path.parent
    config, head, notes = read_config_json(folder / CONFIG_FILE)
    found: dict[str, Tensor] = {}
    for file in _weight_files(folder) if path.is_dir() else [path]:
        tensors = open_torch(file) if _is_torch(file) else open_safetensors(file)
        found |= _state_dict(tensors, file, found)
    if config.tied_head and HEAD in found:
        output = found.pop(HEAD)
        # safetensors' own save_model keeps only one of two tensors that share their numbers.
        found[EMBEDDING] = same(found[EMBEDDING], output, folder) if EMBEDDING in found else output
    if config.classes and SCORE in found:
        found[SCORE] = found[SCORE].transposed()
    return StoredModel(config, fitted(config, found, folder), notes=notes, head=head)


def _is_torch(path: Path) -> bool:
    return path.suffix != ".safetensors"


def _state_dict(tree: Any, file: Path, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by their names without prefix; the mask buffers are left out."""
    if not isinstance(tree, dict) or not all(isinstance(leaf, Tensor) for leaf in tree.values()):
        raise DataError(
            "not a file of weights",
            path=file,
            why="its content is not a table of tensors by name",
            fix="name a file that holds the state dict of a model",
        )
    found: dict[str, Tensor] = {}
    for stored, tensor in tree.items():
        name = str(stored).removeprefix(PREFIX)
        if name in found or name in before:
            raise DataError(
                f"tensor {name[:80]} twice",
                path=file,
                why="one of the two would be ignored",
                fix="fetch the weights again",
            )
        if not BUFFERS.fullmatch(name):
            found[name] = tensor
    return found


def same(embedding: Tensor, head: Tensor, path: Path) -> Tensor:
    """Return the token embedding of a model with a tied head that is stored as well.

    Reading it raises DataError when the two differ.
    """

    def read() -> np.ndarray:
        array = embedding.read()
        if bytes_of(array) != head.raw():
            raise DataError(
                "two output heads",
                path=path,
                why=f"the head is tied, and {HEAD} is not {EMBEDDING}",
                fix="set tie_word_embeddings to false in config.json to keep both",
            )
        return array

    tied = embedding.source is not None and embedding.source == head.source
    return embedding if tied else dataclasses.replace(embedding, read=read)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a folder. Raises MissingError when one is not there."""
    for single in (SAFETENSORS, TORCH):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return [folder / single]
        if index.is_file():
            files = _indexed(index)
            if missing := [file.name for file in files if not file.is_file()]:
                raise MissingError(
                    "no weights",
                    path=folder,
                    why=f"{', '.join(missing)} not found",
                    fix="fetch the folder again",
                )
            return files
    raise MissingError(
        "no weights",
        path=folder,
        why=f"neither {SAFETENSORS} nor {TORCH} nor an index of them is there",
        fix="name a folder that holds one of them",
    )


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("its weight_map names no files of this folder")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            "not an index of weights", path=index, why=str(error)[:200], fix="fetch it again"
        ) from error
    return [index.parent / name for name in names]


def write_huggingface(model: StoredModel, folder: Path) -> None:
    """Write a folder that transformers opens. The caller has checked that config.json can state the model.

    Raises StorageError when writing fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {name if name in (HEAD, SCORE) else PREFIX + name: t for name, t in model.tensors.items()}
    if SCORE in named:
        named[SCORE] = named[SCORE].transposed()
    write_safetensors(folder / SAFETENSORS, named, {"format": "pt"})  # transformers refuses files without it
    tokenizer = model.tokenizer
    ends = {"bos_token_id": tokenizer.beginning if tokenizer else None, "eos_token_id": as_stated(model.ends)}
    stated = config_json(model.config, model.head) | ends | {"torch_dtype": str(model.dtype)}
    if model.head:  # transformers takes a text's last token for the one before the first of these
        stated["pad_token_id"] = tokenizer.end_of_text if tokenizer else None
    _write_json(folder / CONFIG_FILE, stated)
    write_files(folder, generation_file(ends))
    if tokenizer:
        write_tokenizer(tokenizer, model.config.context, folder)
    write_atomically(folder / "README.md", _card(model).encode())


def write_tokenizer(tokenizer: Tokenizer, context: int, folder: Path) -> None:
    """Write tokenizer.json, and the files that older readers expect instead. Raises StorageError.

    The files that another folder's tokenizer came with are written as they were.
    """
    if not isinstance(tokenizer, RankTokenizer):
        tokenizer.save_in(folder)
        return
    tokenizer.save_json(folder / JSON_FILE)
    model = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))["model"]
    _write_json(folder / VOCAB_FILE, model["vocab"])
    write_atomically(
        folder / MERGES_FILE, ("#version: 0.2\n" + "".join(f"{m}\n" for m in model["merges"])).encode()
    )
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": context}
    _write_json(folder / SETTINGS_FILE, dict(tokenizer.special_tokens) | settings)


def _write_json(path: Path, table: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode())


def _card(model: StoredModel) -> str:
    c = model.config
    notes = "".join(f"- {note}\n" for note in model.notes)
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- gpt2\n- jaxgpt\n---\n\n"
        f"# A GPT-2-class language model\n\n"
        f"{c.layers} layers, {c.heads} heads, width {c.width}, MLP width {c.mlp_size}, context {c.context}, "
        f"vocabulary {c.vocab}; stored as {model.dtype}. Written by `jaxgpt convert`.\n\n"
        "The converter does not know what the model was trained on, its licence or its uses: state them here "
        f"before publishing.\n\n{notes and '## Conversion notes' + chr(10) * 2 + notes}"
    )
