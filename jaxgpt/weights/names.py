"""One table of the names that GPT-2's tensors have in files and of their places in our parameters.

Readers and writers use the same table. Its middle column holds the names of Hugging Face and nanoGPT; every
reader returns tensors by these names and every writer takes them so. The right column holds OpenAI's own
variables. The rows are in the order in which llm.c writes them.

Three things differ between files and our parameters. Matrices are (in, out) in OpenAI's and Hugging Face's
files, as they are here, but (out, in) in nanoGPT's and llm.c's. `c_attn` is one matrix of 3 x width columns
in files and has an axis of size 3 here. The embedding's padding rows (`vocab_multiple`) exist only here.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.model.gpt import define
from jaxgpt.parallel import by_path
from jaxgpt.weights.tensors import FLOATS, Tensor

# (path of our leaf, GPT-2's name, OpenAI's variable). Rows whose path begins with `h/` stand for one tensor a
# layer.
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
    ("lm_head/embedding", "lm_head.weight", "lm_head"),  # only when the head is not tied
    ("score/kernel", "score.weight", "score"),  # only of a classifier
)


class Place(NamedTuple):
    """One tensor of a model: its names and shape in files, and its place in our parameters."""

    name: str
    """GPT-2's name, with the layer: `h.3.attn.c_attn.weight`."""
    openai: str
    """OpenAI's variable: `model/h3/attn/c_attn/w`."""
    shape: tuple[int, ...]
    """(in, out) for a matrix, without padding rows."""
    path: str
    """The path of our leaf: `h/attn/c_attn/kernel`."""
    layer: int | None
    """Its index along the leaf's leading axis, or None outside the blocks."""

    @property
    def is_linear(self) -> bool:
        """Whether it is the matrix of a linear layer, which torch stores as (out, in)."""
        return self.path.endswith("/kernel")


# No size in a foreign header may be larger. The largest size of GPT-2 itself is its vocabulary.
LARGEST = 1 << 24


def foreign_config(path: Path, **fields: Any) -> GPTConfig:
    """Return the architecture that a foreign file states.

    Raises DataError when the values are no architecture or a number is absurdly large.
    """
    absurd = [
        f"{name} = {str(value)[:80]} (the largest we read is {LARGEST})"
        for name, value in fields.items()
        if isinstance(value, int | float) and value > LARGEST
    ]
    try:
        if absurd:
            raise ConfigError(
                ", ".join(absurd), why="no model is that large", fix="download or copy the file again"
            )
        return GPTConfig(**fields)
    except ConfigError as error:
        raise DataError(
            "not a GPT-2 we compute", path=path, why=str(error)[:500], fix="use the files of a GPT-2 model"
        ) from error


def leaf_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of this model, by its path."""
    shapes = jax.eval_shape(define(config).init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in by_path(shapes).items()}


@functools.lru_cache(maxsize=8)
def places(config: GPTConfig) -> tuple[Place, ...]:
    """Return every tensor of this model in the order of the table, with all layers of a row together."""
    shapes = leaf_shapes(config)
    found: list[Place] = []
    for path, name, variable in TABLE:
        if path not in shapes:
            continue
        if path.startswith("h/"):
            shape = _shape_in_files(path, shapes[path][1:], config)
            found.extend(
                Place(f"h.{layer}.{name}", f"model/h{layer}/{variable}", shape, path, layer)
                for layer in range(config.layers)
            )
        else:
            shape = _shape_in_files(path, shapes[path], config)
            found.append(Place(name, f"model/{variable}", shape, path, None))
    return tuple(found)


def _shape_in_files(path: str, shape: tuple[int, ...], config: GPTConfig) -> tuple[int, ...]:
    if path.startswith(("wte/", "lm_head/")):
        return (config.vocab, *shape[1:])
    if "/c_attn/" in path:
        return (*shape[:-2], shape[-2] * shape[-1])
    return shape


def fitted(config: GPTConfig, found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a model of this architecture, in the order of the table.

    Raises DataError that lists every tensor that is unknown, missing, of another shape or not of floats.
    """
    if config.layers > len(found):  # a damaged header may claim any number, which must not cost memory
        raise DataError(
            "weights do not fit the model",
            path=path,
            why=f"there are {len(found)} tensors for {config.layers} layers",
            fix="take the weights and their config.json from the same model",
        )
    wanted = {place.name: place.shape for place in places(config)}
    problems = [f"unknown tensor {name[:80]}" for name in sorted(found.keys() - wanted.keys())]
    problems += [f"no tensor {name}" for name in wanted if name not in found]
    present = {name: found[name] for name in wanted if name in found}
    problems += [
        f"{n} is {list(t.shape)}, not {list(wanted[n])}" for n, t in present.items() if t.shape != wanted[n]
    ]
    problems += [
        f"{name} is {t.dtype}, not a float dtype" for name, t in present.items() if t.dtype not in FLOATS
    ]
    if problems:
        raise DataError(
            "weights do not fit the model",
            path=path,
            why=listed(problems),
            fix="take the weights and their config.json from the same model",
        )
    return present


def listed(problems: list[str], most: int = 50) -> str:
    """Return the problems as one text.

    A foreign file can have any number, so at most `most` are spelled out.
    """
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return ", ".join(problems[:most] + more)


def leaf_at(params: Any, path: str) -> Any:
    """Return the leaf at a path such as `h/attn/c_attn/kernel`."""
    for name in path.split("/"):
        params = params[name]
    return params


def tree_of(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict of leaves that are given by their paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def in_layout_of_torch(config: GPTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the linear layers' matrices transposed: (in, out) to (out, in), or back."""
    linear = {place.name for place in places(config) if place.is_linear}
    return {name: tensor.transposed() if name in linear else tensor for name, tensor in tensors.items()}


def leaves(config: GPTConfig) -> dict[str, list[Place]]:
    """Return the path of each of our leaves, with its tensors in the order of the layers."""
    by_path: dict[str, list[Place]] = {}
    for place in places(config):
        by_path.setdefault(place.path, []).append(place)
    return by_path
