"""OpenAI's own GPT-2: hparams.json and a TensorFlow checkpoint. Source: openai/gpt-2, src/model.py.

hparams.json states five sizes. OpenAI's code decides the rest: an MLP of 4 x width, the tanh approximation of
GELU, epsilon 1e-5. The tensors show another width of the MLP, but not another epsilon.
"""

import json
import re
from pathlib import Path
from typing import Any

from jaxgpt.config import GPTConfig
from jaxgpt.errors import DataError, MissingError
from jaxgpt.weights.formats.tf_bundle import open_bundle
from jaxgpt.weights.names import fitted, foreign_config, listed, places
from jaxgpt.weights.tensors import StoredModel, Tensor

HPARAMS = "hparams.json"
FIELDS = {"n_vocab": "vocab", "n_ctx": "context", "n_embd": "width", "n_head": "heads", "n_layer": "layers"}
MLP = "model/h0/mlp/c_fc/w"


def open_openai(folder: Path, *, layer_norm_epsilon: float | None = None) -> StoredModel:
    """Open the model of a folder with hparams.json and `model.ckpt.*`.

    Raises MissingError when the checkpoint is not there, DataError when a file is damaged or is not OpenAI's.
    """
    found = open_bundle(_index(folder))
    # OpenAI's linear layers are convolutions of width 1, with that width as a leading axis.
    flat = {
        n: t.reshaped(*t.shape[1:]) if len(t.shape) == 3 and t.shape[0] == 1 else t for n, t in found.items()
    }
    config = _config(folder / HPARAMS, flat, layer_norm_epsilon)
    names = {place.openai: place.name for place in places(config)} if config.layers <= len(flat) else {}
    named = {names.get(stored, stored): tensor for stored, tensor in flat.items()}
    note = (
        f"{HPARAMS} has no layer_norm_epsilon: {config.layer_norm_epsilon:g} assumed, as in OpenAI's code; "
        "`jaxgpt convert --layer-norm-epsilon` states another"
    )
    notes = (note,) if layer_norm_epsilon is None else ()
    return StoredModel(config, fitted(config, named, folder), notes=notes)


def _config(path: Path, tensors: dict[str, Tensor], epsilon: float | None) -> GPTConfig:
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("it is no JSON object")
        problems = [f"unknown key {key[:80]}" for key in stored.keys() - FIELDS.keys()]
        problems += [f"no {key}" for key in FIELDS.keys() - stored.keys()]
        problems += [
            f"{key} is no integer" for key in stored if key in FIELDS and type(stored[key]) is not int
        ]
    except (ValueError, RecursionError) as error:
        problems = [str(error)[:200]]
    if problems:
        raise DataError(f"not OpenAI's {HPARAMS}", path=path, why=listed(problems), fix="fetch it again")
    fields = {ours: stored[theirs] for theirs, ours in FIELDS.items()}
    if MLP in tensors and len(tensors[MLP].shape) == 2 and tensors[MLP].shape[1] != 4 * stored["n_embd"]:
        fields["mlp_width"] = tensors[MLP].shape[1]
    if epsilon is not None:
        fields["layer_norm_epsilon"] = epsilon
    return foreign_config(path, **fields)


def _index(folder: Path) -> Path:
    """Return the index that the file `checkpoint` names, or the only one in the folder."""
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
            why=f"it has {len(found)} files *.index, and its file `checkpoint` names none of them",
            fix="keep one model.ckpt.index there, with its data file",
        )
    return found[0]
