"""Other people's weights to ours: a Hugging Face GPT-2 folder becomes a config and parameters."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.model.gpt import Params, define
from jaxgpt.weights.names import leaf_at, tensor_names
from jaxgpt.weights.safetensors_file import read_tensors

# config.json key -> our field
FIELDS = {
    "vocab_size": "vocab",
    "n_positions": "context",
    "n_layer": "layers",
    "n_head": "heads",
    "n_embd": "width",
    "n_inner": "mlp_width",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "activation_function": "activation",
    "scale_attn_weights": "scale_attention",
    "scale_attn_by_inverse_layer_idx": "scale_by_inverse_layer",
    "tie_word_embeddings": "tied_head",
}
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
# Other keys that change the computation, with the value that leaves it as ours.
REQUIRED = {"model_type": "gpt2", "add_cross_attention": False}
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # causal masks that older files store


def read_huggingface(folder: Path) -> tuple[GPTConfig, Params]:
    """Architecture and parameters of a folder with config.json and safetensors; dtypes as stored, on the host.

    Raises MissingError or DataError: every tensor must be consumed, every parameter filled; all problems at once.
    """
    config = _read_config(folder / "config.json")
    shapes = jax.eval_shape(define(config).init, jax.random.key(0))
    wanted = {name: (path, layer) for name, path, layer in tensor_names(shapes)}
    found: dict[str, np.ndarray] = {}
    for stored, array in read_tensors(folder):
        name = stored.removeprefix("transformer.")
        tied = name == "lm_head.weight" and config.tied_head
        if not tied and not BUFFERS.fullmatch(name):
            found[name] = array
    problems = [f"unknown tensor {name}" for name in sorted(found.keys() - wanted.keys())]
    problems += [f"no tensor {name}" for name in sorted(wanted.keys() - found.keys())]
    leaves: dict[str, list[np.ndarray]] = {}
    for name, (path, layer) in wanted.items():
        shape = leaf_at(shapes, path).shape[0 if layer is None else 1 :]  # type: ignore[union-attr]
        array = found.get(name, np.zeros(shape, np.float32))
        try:
            leaves.setdefault(path, []).append(_shaped(array, shape, config, name))
        except ValueError:
            problems.append(f"{name} is {array.shape}, not {shape}")
    if problems:
        raise DataError("weights do not fit config.json", path=folder, why=", ".join(problems), fix="fetch them again")
    params: Params = {}
    for path, parts in leaves.items():
        node = params
        *parents, last = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.stack(parts) if path.startswith("h/") else parts[0]
    return config, params


def _shaped(array: np.ndarray, shape: tuple[int, ...], config: GPTConfig, name: str) -> np.ndarray:
    if name in ("wte.weight", "lm_head.weight") and array.shape == (config.vocab, config.width):
        return np.pad(array, ((0, shape[0] - config.vocab), (0, 0)))
    if name.endswith(("c_attn.weight", "c_attn.bias")) and array.shape == (*shape[:-2], shape[-2] * shape[-1]):
        return array.reshape(shape)
    if array.shape != shape:
        raise ValueError
    return array


def _read_config(path: Path) -> GPTConfig:
    if not path.is_file():
        raise MissingError("no architecture", path=path, why="there is no such file", fix="name a model folder")
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError("not JSON", path=path, why=str(error), fix="fetch it again") from None
    wrong = [f"{key} = {stored[key]!r}" for key, value in REQUIRED.items() if stored.get(key, value) != value]
    activation = stored.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        wrong.append(f"activation_function = {activation!r}")
    if wrong:
        raise DataError("not a GPT-2 we compute", path=path, why=", ".join(wrong), fix="use a GPT-2 model")
    fields = {ours: stored[theirs] for theirs, ours in FIELDS.items() if theirs in stored}
    try:
        return GPTConfig(**fields | {"activation": ACTIVATIONS[activation]})
    except (ConfigError, TypeError) as error:
        raise DataError("not a GPT-2 we compute", path=path, why=str(error), fix="use a GPT-2 model") from error
