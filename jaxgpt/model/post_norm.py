"""The block of the original Transformer and of BERT: LayerNorm after each addition, not before.

    x = norm(x + attention(x));  in a decoder, x = norm(x + cross_attention(x, memory));  x = norm(x + mlp(x))

Attention and the MLP are GPT's. Source: Vaswani et al. 2017, section 3.1.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig
from jaxgpt.model.attend import attend
from jaxgpt.model.attention import join_heads, split_heads
from jaxgpt.model.block import MLP, Attention, layer_norm
from jaxgpt.model.dropout import drop
from jaxgpt.model.layers import AS_TRAINED
from jaxgpt.model.mask import Mask
from jaxgpt.parallel import NOWHERE


class CrossAttention(nnx.Module):
    """Multi-head attention of one sequence to another. `c_kv` makes key and value, on an axis of 2."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs) -> None:
        self.config, width = config, config.width
        self.c_q = AS_TRAINED.linear(config, "h/cross/c_q", width, (width,), rngs)
        self.c_kv = AS_TRAINED.linear(config, "h/cross/c_kv", width, (2, width), rngs)
        self.c_proj = AS_TRAINED.linear(config, "h/cross/c_proj", width, (width,), rngs)

    def __call__(self, x_BTD: Array, memory_BSD: Array, mask: Mask, key: Array | None) -> Array:
        """What the queries of `x_BTD` find in `memory_BSD`, [B, T, D]."""
        heads = self.config.heads
        k_BSHK, v_BSHK = (split_heads(part, heads) for part in jnp.moveaxis(self.c_kv(memory_BSD), -2, 0))
        context_BTHK = attend(
            split_heads(self.c_q(x_BTD), heads),
            k_BSHK,
            v_BSHK,
            mask,
            scale=1 / math.sqrt(self.config.head_size),
            dropout=self.config.dropout,
            key=key,
        )
        return self.c_proj(join_heads(context_BTHK))


class PostNormBlock(nnx.Module):
    """A block of an encoder, or with `decoder` one of a decoder: causal, and with cross-attention."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs, *, decoder: bool = False) -> None:
        self.dropout, self.decoder = config.dropout, decoder
        self.attn = Attention(config, rngs, AS_TRAINED, NOWHERE, causal=decoder)
        self.ln_1 = layer_norm(config, rngs)
        if decoder:
            self.cross = CrossAttention(config, rngs)
            self.ln_cross = layer_norm(config, rngs)
        self.mlp = MLP(config, rngs, AS_TRAINED)
        self.ln_2 = layer_norm(config, rngs)

    def __call__(
        self,
        x_BTD: Array,
        layer: Array | int,
        segments_BT: Array | None,
        memory_BSD: Array | None = None,
        cross_mask: Mask | None = None,
        *,
        key: Array | None = None,
    ) -> Array:
        """The states behind this block. A decoder takes the encoder's states too. `key` turns dropout on."""
        keys = (None,) * 6 if key is None else jax.random.split(key, 6)
        positions_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])
        update_BTD, _ = self.attn(x_BTD, layer, positions_BT, segments_BT, None, keys[0])
        x_BTD = self.ln_1(x_BTD + drop(update_BTD, self.dropout, keys[1]))
        if self.decoder:
            assert memory_BSD is not None and cross_mask is not None, "a decoder reads what was encoded"
            update_BTD = self.cross(x_BTD, memory_BSD, cross_mask, keys[2])
            x_BTD = self.ln_cross(x_BTD + drop(update_BTD, self.dropout, keys[3]))
        update_BTD = self.mlp(x_BTD, keys[4])
        out_BTD: Array = self.ln_2(x_BTD + drop(update_BTD, self.dropout, keys[5]))
        return out_BTD


def run_blocks(
    block: nnx.GraphDef[PostNormBlock], h: dict[str, Any], x_BTD: Array, *arguments: Any, key: Array | None
) -> Array:
    """The states behind the last of the stacked blocks `h`. `arguments` are those that all blocks share."""
    layers = jax.tree.leaves(h)[0].shape[0]

    def step(x_BTD: Array, numbered: Any) -> tuple[Array, None]:
        layer, one, key = numbered
        return nnx.merge(block, one)(x_BTD, layer, *arguments, key=key), None

    keys = None if key is None else jax.random.split(key, layers)
    x_BTD, _ = jax.lax.scan(step, x_BTD, (jnp.arange(layers), h, keys))
    return x_BTD
