"""nanoGPT's `ckpt.pt`: a torch file with a state dict and the arguments of the model.

Source: karpathy/nanoGPT, model.py and train.py. Its model is GPT-2 with the exact GELU. Matrices are (out,
in), and `bias=False` means no bias anywhere. Names in a compiled model begin with `_orig_mod.`. What its
arguments cannot state is as in GPT-2: the epsilon is 1e-5 and the MLP has 4 x width. The vocabulary of a data
set of characters is in the data set's own folder, in a file meta.pkl, which may be put beside the ckpt.pt.
"""

from pathlib import Path
from typing import Any

from jaxgpt.config import GPTConfig
from jaxgpt.errors import DataError
from jaxgpt.text.characters import CharacterTokenizer
from jaxgpt.weights.formats.huggingface import BUFFERS, EMBEDDING, HEAD, PREFIX, same
from jaxgpt.weights.formats.torch_pickle import read_pickle
from jaxgpt.weights.formats.torch_storage import Storages, shown
from jaxgpt.weights.formats.torch_zip import open_torch, write_torch
from jaxgpt.weights.names import fitted, foreign_config, in_layout_of_torch, listed
from jaxgpt.weights.tensors import StoredModel, Tensor

CHECKPOINT, META = "ckpt.pt", "meta.pkl"
LARGEST_META = 1 << 24  # bytes; one of all Unicode's characters has less
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
OURS = "jaxgpt"  # our own entry, {"activation": NAME}, for what model_args cannot state; nanoGPT ignores it


def open_nanogpt(path: Path) -> StoredModel:
    """Open the model of a ckpt.pt; its optimizer state is left alone.

    Raises DataError when the file is damaged or is not nanoGPT's, and what `open_torch` raises.
    """
    tree = open_torch(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise _refused(path, "it has no table `model`")
    config = _config(tree, path)
    found: dict[str, Tensor] = {}
    for stored, tensor in tree["model"].items():
        name = str(stored).removeprefix(COMPILED).removeprefix(PREFIX)
        if not isinstance(tensor, Tensor):
            raise _refused(path, f"its model has an entry {shown(name)} that is no tensor")
        if name in found:
            raise _refused(path, f"its model has the tensor {shown(name)} twice")
        if not BUFFERS.fullmatch(name):
            found[name] = tensor
    if HEAD in found and EMBEDDING in found:
        found[EMBEDDING] = same(found[EMBEDDING], found.pop(HEAD), path)
    transposed = in_layout_of_torch(config, found)
    return StoredModel(config, fitted(config, transposed, path))


def open_meta(path: Path) -> CharacterTokenizer:
    """Return the characters that nanoGPT's meta.pkl gives ids to.

    Nothing in the file is executed (`torch_pickle`). Raises DataError when it holds no such table, OSError
    when it cannot be read.
    """
    content = path.read_bytes()[: LARGEST_META + 1]
    tree, end = read_pickle(content, 0, Storages(path), latest=5)
    ids, characters = (tree.get(key) if isinstance(tree, dict) else None for key in ("stoi", "itos"))
    if end < len(content) or not isinstance(ids, dict) or not isinstance(characters, dict):
        raise _not_meta(path, "it holds no tables stoi and itos")
    if {id: character for character, id in ids.items() if type(id) is int} != characters:
        raise _not_meta(path, "its stoi and itos do not agree")
    return CharacterTokenizer(ids, path)


def _not_meta(path: Path, why: str) -> DataError:
    fix = "copy the meta.pkl of the data set that the model was trained on"
    return DataError("not nanoGPT's table of characters", path=path, why=why, fix=fix)


def _config(tree: dict[Any, Any], path: Path) -> GPTConfig:
    arguments = tree.get("model_args")
    if not isinstance(arguments, dict):
        raise _refused(path, "it has no table `model_args`")
    ours = tree.get(OURS, {})
    problems = [f"unknown {shown(key)}" for key in sorted(map(str, arguments.keys() - FIELDS.keys()))]
    problems += [f"no {key}" for key in FIELDS.keys() - arguments.keys() - {"dropout"}]
    for key, value in arguments.items():
        kinds = (bool,) if key == "bias" else (int, float) if key == "dropout" else (int,)
        if key in FIELDS and (not isinstance(value, kinds) or isinstance(value, bool) != (key == "bias")):
            problems.append(f"{key} is no {kinds[-1].__name__}")
    if not isinstance(ours, dict) or ours.keys() - {"activation"}:
        problems.append(f"the entry {OURS} has other keys than activation")
    elif not isinstance(ours.get("activation", ACTIVATION), str):
        problems.append(f"the activation in the entry {OURS} is no text")
    if problems:
        raise _refused(path, f"its model_args have problems: {listed(problems)}")
    fields = {FIELDS[key]: value for key, value in arguments.items()}
    return foreign_config(path, **fields | {"activation": ACTIVATION} | ours)


def _refused(path: Path, why: str) -> DataError:
    return DataError(
        "not nanoGPT's checkpoint of a GPT-2", path=path, why=why, fix="name a ckpt.pt that nanoGPT saved"
    )


def write_nanogpt(model: StoredModel, path: Path) -> None:
    """Write a ckpt.pt that nanoGPT can sample from and train further, at step 0 and without optimizer state.

    Raises StorageError when writing fails.
    """
    config = model.config
    named = {PREFIX + name: tensor for name, tensor in in_layout_of_torch(config, model.tensors).items()}
    named[HEAD] = named[PREFIX + EMBEDDING]
    arguments = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
    tree = {"model": named, "model_args": arguments, "iter_num": 0, "best_val_loss": 1e9, "config": {}}
    extra = {} if config.activation == ACTIVATION else {OURS: {"activation": config.activation}}
    write_torch(path, tree | extra)
