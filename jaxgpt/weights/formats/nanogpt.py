"""nanoGPT's `ckpt.pt`: a torch file with a state dict and the arguments of the model.

Source: karpathy/nanoGPT, model.py and train.py.
Its model is GPT-2 with the exact GELU, matrices (out, in), and `bias=False` meaning no bias anywhere. Compiled models
carry `_orig_mod.` before every name. What its arguments cannot say is GPT-2's: epsilon 1e-5, an MLP of 4 x width.
"""

from pathlib import Path
from typing import Any

from jaxgpt.config import GPTConfig
from jaxgpt.errors import DataError
from jaxgpt.weights.formats.huggingface import BUFFERS, EMBEDDING, HEAD, PREFIX, same
from jaxgpt.weights.formats.torch_zip import open_torch, write_torch
from jaxgpt.weights.names import fitted, foreign_config, in_layout_of_torch
from jaxgpt.weights.tensors import StoredModel, Tensor

CHECKPOINT = "ckpt.pt"
COMPILED = "_orig_mod."
# model_args -> our field
FIELDS = {
    "n_layer": "layers",
    "n_head": "heads",
    "n_embd": "width",
    "block_size": "context",
    "bias": "bias",
    "vocab_size": "vocab",
    "dropout": "dropout",
}
ACTIVATION = "gelu"
OURS = "jaxgpt"  # an entry that nanoGPT passes over: what it cannot say


def open_nanogpt(path: Path) -> StoredModel:
    """The model of a ckpt.pt; its optimizer state is left alone. Raises DataError."""
    tree = open_torch(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise DataError("not nanoGPT's checkpoint", path=path, why="it has no `model`", fix="name a ckpt.pt")
    config = _config(tree, path)
    found: dict[str, Tensor] = {}
    for stored, tensor in tree["model"].items():
        name = str(stored).removeprefix(COMPILED).removeprefix(PREFIX)
        if not isinstance(tensor, Tensor) or name in found:
            raise DataError(
                f"tensor {name[:80]}", path=path, why="it is twice there, or no tensor", fix="save it anew"
            )
        if not BUFFERS.fullmatch(name):
            found[name] = tensor
    if HEAD in found and EMBEDDING in found:
        found[EMBEDDING] = same(found[EMBEDDING], found.pop(HEAD), path)
    turned = in_layout_of_torch(config, found)
    return StoredModel(config, fitted(config, turned, path))


def _config(tree: dict[Any, Any], path: Path) -> GPTConfig:
    arguments = tree.get("model_args")
    if not isinstance(arguments, dict):
        raise DataError(
            "not nanoGPT's checkpoint", path=path, why="it has no `model_args`", fix="name a ckpt.pt"
        )
    ours = tree.get(OURS, {})
    problems = [f"unknown {key}" for key in sorted(map(str, arguments.keys() - FIELDS.keys()))]
    problems += [f"no {key}" for key in FIELDS.keys() - arguments.keys() - {"dropout"}]
    for key, value in arguments.items():
        kinds = (bool,) if key == "bias" else (int, float) if key == "dropout" else (int,)
        if key in FIELDS and (not isinstance(value, kinds) or isinstance(value, bool) != (key == "bias")):
            problems.append(f"{key} is no {kinds[0].__name__}")
    if not isinstance(ours, dict) or ours.keys() - {"activation"}:
        problems.append(f"unknown entries of {OURS}")
    if problems:
        raise DataError(
            "not nanoGPT's model_args", path=path, why=", ".join(problems), fix="name a ckpt.pt of GPT-2"
        )
    fields = {FIELDS[key]: value for key, value in arguments.items()}
    return foreign_config(path, **fields | {"activation": ACTIVATION} | ours)


def write_nanogpt(model: StoredModel, path: Path) -> None:
    """Write a ckpt.pt that nanoGPT resumes from or samples from; without optimizer state, as of step 0."""
    config = model.config
    named = {PREFIX + name: tensor for name, tensor in in_layout_of_torch(config, model.tensors).items()}
    named[HEAD] = named[PREFIX + EMBEDDING]
    arguments = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
    tree = {"model": named, "model_args": arguments, "iter_num": 0, "best_val_loss": 1e9, "config": {}}
    extra = {} if config.activation == ACTIVATION else {OURS: {"activation": config.activation}}
    write_torch(path, tree | extra)
