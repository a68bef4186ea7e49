"""The book's own model: its settings, and the weights that its code begins with after a seed.

Source: the code of chapters 3 to 5 of "Build a Large Language Model (From Scratch)".
"""

import numpy as np

from jaxgpt.book.torch_random import TorchGenerator, linear
from jaxgpt.config import GPTConfig
from jaxgpt.model.gpt import Params


def book_params(generator: TorchGenerator, config: GPTConfig) -> Params:
    """Our parameters with the numbers that the book's GPTModel draws, in the order in which it makes layers.

    First come the embeddings, then of each block W_query, W_key, W_value, out_proj and the two layers of the
    MLP, and the output head at last. A linear layer draws its weight and then its biases.
    """
    width, mlp = config.width, config.mlp_size
    tokens = generator.normal(config.vocab, width)
    positions = generator.normal(config.context, width)
    blocks = [_block(generator, width, mlp, qkv_bias=config.qkv_bias) for _ in range(config.layers)]
    (head,) = linear(generator, width, config.vocab, bias=False)
    return {
        "wte": {"embedding": _padded(tokens, config)},
        "wpe": {"embedding": positions},
        "h": _stacked(blocks),
        "ln_f": _norm(width),
        "lm_head": {"embedding": _padded(head, config)},
    }


def _block(generator: TorchGenerator, width: int, mlp: int, *, qkv_bias: bool) -> Params:
    parts = [linear(generator, width, width, bias=qkv_bias) for _ in range(3)]
    c_attn = {"kernel": np.stack([weight.T for weight, *_ in parts], axis=1)}
    if qkv_bias:
        c_attn["bias"] = np.stack([bias for _, bias in parts])
    sizes = {"proj": (width, width), "fc": (width, mlp), "mlp": (mlp, width)}
    made = {name: linear(generator, *size, bias=True) for name, size in sizes.items()}
    layers = {name: {"kernel": weight.T, "bias": bias} for name, (weight, bias) in made.items()}
    return {
        "ln_1": _norm(width),
        "attn": {"c_attn": c_attn, "c_proj": layers["proj"]},
        "ln_2": _norm(width),
        "mlp": {"c_fc": layers["fc"], "c_proj": layers["mlp"]},
    }


def _norm(width: int) -> Params:
    return {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}


def _padded(table_VD: np.ndarray, config: GPTConfig) -> np.ndarray:
    return np.pad(table_VD, ((0, config.padded_vocab - config.vocab), (0, 0)))


def _stacked(blocks: list[Params]) -> Params:
    """One tree whose leaves have a leading axis of layers."""
    first = blocks[0]
    return {
        name: _stacked([block[name] for block in blocks])
        if isinstance(first[name], dict)
        else np.stack([block[name] for block in blocks])
        for name in first
    }
