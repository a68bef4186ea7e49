"""One table: the names GPT-2's tensors carry in the world, and where they live in our parameters. Used both ways.

The middle column is what Hugging Face and nanoGPT call a tensor, and what every reader gives and every writer takes;
the right one is OpenAI's own variable. The rows stand in the order in which llm.c writes them. Matrices are (in, out),
as OpenAI's, Hugging Face's and ours are; nanoGPT's and llm.c's are (out, in). `c_attn` is one matrix of 3 x width
columns in the world and has an axis of 3 here. The embeddings' padding rows (`vocab_multiple`) stay here.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.model.gpt import define
from jaxgpt.parallel import path_of
from jaxgpt.weights.tensors import FLOATS, Tensor

# (path of our leaf, GPT-2's name, OpenAI's variable); those under `h/` once a layer.
TABLE = (
    ("wte/embedding", "wte.weight", "wte"),
    ("wpe/embedding", "wpe.weight", "wpe"),
    ("h/ln_1/scale", "ln_1.weight", "ln_1/g"),
    ("h/ln_1/bias", "ln_1.bias", "ln_1/b"),
    ("h/attn/c_attn/kernel", "attn.c_attn.weight", "attn/c_attn/w"),
    ("h/attn/c_attn/bias", "attn.c_attn.bias", "attn/c_attn/b"),
    ("h/attn/c_proj/kernel", "attn.c_proj.weight", "attn/c_proj/w"),
    ("h/attn/c_proj/bias", "attn.c_proj.bias", "attn/c_proj/b"),
    ("h/ln_2/scale", "ln_2.weight", "ln_2/g"),
    ("h/ln_2/bias", "ln_2.bias", "ln_2/b"),
    ("h/mlp/c_fc/kernel", "mlp.c_fc.weight", "mlp/c_fc/w"),
    ("h/mlp/c_fc/bias", "mlp.c_fc.bias", "mlp/c_fc/b"),
    ("h/mlp/c_proj/kernel", "mlp.c_proj.weight", "mlp/c_proj/w"),
    ("h/mlp/c_proj/bias", "mlp.c_proj.bias", "mlp/c_proj/b"),
    ("ln_f/scale", "ln_f.weight", "ln_f/g"),
    ("ln_f/bias", "ln_f.bias", "ln_f/b"),
    ("lm_head/embedding", "lm_head.weight", "lm_head"),  # only where the head is not tied
)


class Place(NamedTuple):
    """One tensor of a model: what it is called, its shape out there, and where it goes here."""

    name: str
    """GPT-2's name, with the layer: `h.3.attn.c_attn.weight`."""
    openai: str
    """OpenAI's variable: `model/h3/attn/c_attn/w`."""
    shape: tuple[int, ...]
    """(in, out) for a matrix, without padding rows."""
    path: str
    """Path of our leaf: `h/attn/c_attn/kernel`."""
    layer: int | None
    """Its index along the leaf's leading axis; None outside the blocks."""

    @property
    def is_linear(self) -> bool:
        """It is the matrix of a linear layer, which torch keeps as (out, in)."""
        return self.path.endswith("/kernel")


LARGEST = 1 << 24  # of any size in a foreign header; the largest of GPT-2 is its vocabulary


def foreign_config(path: Path, **fields: Any) -> GPTConfig:
    """The architecture a foreign file states. Raises DataError for what is not a model, or absurdly large."""
    absurd = [
        f"{name} = {value}" for name, value in fields.items() if isinstance(value, int) and value > LARGEST
    ]
    try:
        if absurd:
            raise ConfigError(", ".join(absurd), why="nothing is that large", fix="check the file")
        return GPTConfig(**fields)
    except (ConfigError, TypeError) as error:
        raise DataError(
            "not a GPT-2 we compute", path=path, why=str(error), fix="use a GPT-2 model"
        ) from error


def leaf_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of this model, by path."""
    shapes = jax.eval_shape(define(config).init, jax.random.key(0))
    return {path_of(place): leaf.shape for place, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


@functools.lru_cache(maxsize=8)
def places(config: GPTConfig) -> tuple[Place, ...]:
    """Every tensor of this model, the table's rows in order, each with all its layers."""
    shapes = leaf_shapes(config)
    found = []
    for path, name, variable in TABLE:
        if path not in shapes:
            continue
        if path.startswith("h/"):
            shape = _outside(path, shapes[path][1:], config)
            for layer in range(config.layers):
                found.append(Place(f"h.{layer}.{name}", f"model/h{layer}/{variable}", shape, path, layer))
        else:
            found.append(Place(name, f"model/{variable}", _outside(path, shapes[path], config), path, None))
    return tuple(found)


def _outside(path: str, shape: tuple[int, ...], config: GPTConfig) -> tuple[int, ...]:
    if path.startswith(("wte/", "lm_head/")):
        return (config.vocab, *shape[1:])
    if "/c_attn/" in path:
        return (*shape[:-2], shape[-2] * shape[-1])
    return shape


def fitted(config: GPTConfig, found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of a model of this shape, in the table's order.

    Raises DataError listing every tensor that is unknown, missing, of another shape or not of floats.
    """
    if config.layers > len(found):  # a damaged header may claim any number: it must not cost memory
        raise DataError(
            "weights do not fit the model",
            path=path,
            why=f"{len(found)} tensors for {config.layers} layers",
            fix="check that files and settings belong together",
        )
    wanted = {place.name: place.shape for place in places(config)}
    problems = [f"unknown tensor {name[:80]}" for name in sorted(found.keys() - wanted.keys())]
    problems += [f"no tensor {name}" for name in wanted if name not in found]
    present = {name: found[name] for name in wanted if name in found}
    problems += [
        f"{n} is {list(t.shape)}, not {list(wanted[n])}" for n, t in present.items() if t.shape != wanted[n]
    ]
    problems += [f"{name} is {t.dtype}, no float" for name, t in present.items() if t.dtype not in FLOATS]
    if problems:
        raise DataError(
            "weights do not fit the model",
            path=path,
            why=_listed(problems),
            fix="check that files and settings belong together",
        )
    return present


def _listed(problems: list[str], most: int = 50) -> str:
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return ", ".join(problems[:most] + more)


def leaf_at(params: Any, path: str) -> Any:
    """The leaf at a path such as `h/attn/c_attn/kernel`."""
    for name in path.split("/"):
        params = params[name]
    return params


def tree_of(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of leaves given by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def in_layout_of_torch(config: GPTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with the linear layers' matrices turned over: (in, out) to (out, in), or back."""
    linear = {place.name for place in places(config) if place.is_linear}
    return {name: tensor.transposed() if name in linear else tensor for name, tensor in tensors.items()}


def leaves(config: GPTConfig) -> dict[str, list[Place]]:
    """The path of each of our leaves with the tensors it is made of, by layer."""
    by_path: dict[str, list[Place]] = {}
    for place in places(config):
        by_path.setdefault(place.path, []).append(place)
    return by_path
