"""One table: the names GPT-2's tensors carry in the world, and where they live in our parameters. Used both ways.

Source of the names: OpenAI's GPT-2 as Hugging Face stores it. Linear weights there are (in, out), as ours are: no
transpose anywhere. `c_attn` is one matrix of 3 x width columns there and has an axis of 3 here.
"""

from collections.abc import Iterator
from typing import Any

from jaxgpt.model.gpt import Params

OUTSIDE = {
    "wte.weight": "wte/embedding",
    "wpe.weight": "wpe/embedding",
    "ln_f.weight": "ln_f/scale",
    "ln_f.bias": "ln_f/bias",
    "lm_head.weight": "lm_head/embedding",
}
BLOCK = {
    "ln_1.weight": "h/ln_1/scale",
    "ln_1.bias": "h/ln_1/bias",
    "attn.c_attn.weight": "h/attn/c_attn/kernel",
    "attn.c_attn.bias": "h/attn/c_attn/bias",
    "attn.c_proj.weight": "h/attn/c_proj/kernel",
    "attn.c_proj.bias": "h/attn/c_proj/bias",
    "ln_2.weight": "h/ln_2/scale",
    "ln_2.bias": "h/ln_2/bias",
    "mlp.c_fc.weight": "h/mlp/c_fc/kernel",
    "mlp.c_fc.bias": "h/mlp/c_fc/bias",
    "mlp.c_proj.weight": "h/mlp/c_proj/kernel",
    "mlp.c_proj.bias": "h/mlp/c_proj/bias",
}


def leaf_at(params: Params, path: str) -> Any | None:
    """The leaf at a path such as `h/attn/c_attn/kernel`, or None."""
    node: Any = params
    for name in path.split("/"):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def tensor_names(params: Params) -> Iterator[tuple[str, str, int | None]]:
    """Every GPT-2 tensor these parameters hold: (name, path of the leaf, layer or None). Shapes will do as leaves."""
    for name, path in OUTSIDE.items():
        if leaf_at(params, path) is not None:
            yield name, path, None
    layers = leaf_at(params, "h/ln_1/scale").shape[0]  # type: ignore[union-attr]
    for layer in range(layers):
        for name, path in BLOCK.items():
            if leaf_at(params, path) is not None:
                yield f"h.{layer}.{name}", path, layer
