"""OpenAI's own GPT-2: hparams.json and a TensorFlow checkpoint. Source: openai/gpt-2, src/model.py.

hparams.json knows five sizes. What it cannot say is what OpenAI's code computes: an MLP of 4 x width, GELU's tanh
approximation, epsilon 1e-5; the MLP's width shows in the tensors, the epsilon does not.
"""

import json
import re
from pathlib import Path
from typing import Any

from jaxgpt.config import GPTConfig
from jaxgpt.errors import DataError, MissingError
from jaxgpt.weights.formats.tf_bundle import open_bundle
from jaxgpt.weights.names import fitted, foreign_config, places
from jaxgpt.weights.tensors import StoredModel, Tensor

HPARAMS = "hparams.json"
FIELDS = {"n_vocab": "vocab", "n_ctx": "context", "n_embd": "width", "n_head": "heads", "n_layer": "layers"}
MLP = "model/h0/mlp/c_fc/w"


def open_openai(folder: Path, *, layer_norm_epsilon: float | None = None) -> StoredModel:
    """The model of a folder with hparams.json and `model.ckpt.*`. Raises MissingError or DataError."""
    found = open_bundle(_index(folder))
    # Their convolutions of width 1 carry that width as a leading axis.
    flat = {
        n: t.reshaped(*t.shape[1:]) if len(t.shape) == 3 and t.shape[0] == 1 else t for n, t in found.items()
    }
    config = _config(folder / HPARAMS, flat, layer_norm_epsilon)
    names = {place.openai: place.name for place in places(config)} if config.layers <= len(flat) else {}
    named = {names.get(stored, stored): tensor for stored, tensor in flat.items()}
    note = f"{HPARAMS} has no layer_norm_epsilon: {config.layer_norm_epsilon:g} assumed, as in OpenAI's code"
    notes = (f"{note}; --layer-norm-epsilon states another",) if layer_norm_epsilon is None else ()
    return StoredModel(config, fitted(config, named, folder), notes=notes)


def _config(path: Path, tensors: dict[str, Tensor], epsilon: float | None) -> GPTConfig:
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
        problems = [f"unknown key {key[:80]}" for key in stored.keys() - FIELDS.keys()]
        problems += [f"no {key}" for key in FIELDS.keys() - stored.keys()]
        problems += [
            f"{key} is no integer" for key in stored if key in FIELDS and type(stored[key]) is not int
        ]
    except (ValueError, AttributeError, RecursionError) as error:
        problems = [str(error)[:200]]
    if problems:
        raise DataError(f"not OpenAI's {HPARAMS}", path=path, why=", ".join(problems), fix="fetch it again")
    fields = {ours: stored[theirs] for theirs, ours in FIELDS.items()}
    if MLP in tensors and len(tensors[MLP].shape) == 2 and tensors[MLP].shape[1] != 4 * stored["n_embd"]:
        fields["mlp_width"] = tensors[MLP].shape[1]
    if epsilon is not None:
        fields["layer_norm_epsilon"] = epsilon
    return foreign_config(path, **fields)


def _index(folder: Path) -> Path:
    """The index of the checkpoint that the file `checkpoint` names, or of the only one there is."""
    pointer = folder / "checkpoint"
    if pointer.is_file():
        text = pointer.read_text(encoding="utf-8", errors="replace")
        named = re.search(r'^model_checkpoint_path: "([^"/\\]+)"$', text, re.MULTILINE)
        if named and (folder / f"{named[1]}.index").is_file():
            return folder / f"{named[1]}.index"
    found = sorted(folder.glob("*.index"))
    if len(found) != 1:
        raise MissingError(
            "no TensorFlow checkpoint",
            path=folder,
            why=f"{len(found)} files *.index, and `checkpoint` names none",
            fix="keep one model.ckpt.index with its data file",
        )
    return found[0]
