"""The transformer block of GPT-2: pre-LayerNorm attention and MLP, each added to the residual stream."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig
from jaxgpt.model.attention import causal_attention, drop, join_heads, split_heads
from jaxgpt.model.cache import write_rows
from jaxgpt.model.positions import alibi_slopes, rotate_by_position

INIT_STD = 0.02  # GPT-2's initializer_range

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def normal(std: float) -> nnx.Initializer:
    """Initialiser: normal with this standard deviation."""
    return nnx.initializers.normal(stddev=std)


class Linear(nnx.LinearGeneral):
    """A linear layer over the last axis, in the compute dtype with float32 parameters.

    All leading axes are flattened into one: XLA on CPU is slow on the gradient of a product whose left operand has two
    (unrolled blocks, gradient, before and after: nano 254 and 192 ms, GPT-2 width at 2 x 1024 tokens 1.68 and 1.50 s).
    """

    def __init__(
        self, config: GPTConfig, inputs: int, outputs: int | tuple[int, ...], rngs: nnx.Rngs, *, std: float = INIT_STD
    ) -> None:
        super().__init__(
            inputs, outputs, use_bias=config.bias, dtype=config.compute_dtype, param_dtype=jnp.float32,
            kernel_init=normal(std), rngs=rngs,
        )  # fmt: skip

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        y = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return y.reshape(*inputs.shape[:-1], *y.shape[1:])


def layer_norm(config: GPTConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm that computes in float32."""
    return nnx.LayerNorm(
        config.width, epsilon=config.layer_norm_epsilon, use_bias=config.bias, use_fast_variance=False,
        dtype=jnp.float32, param_dtype=jnp.float32, rngs=rngs,
    )  # fmt: skip


def residual_std(config: GPTConfig) -> float:
    """Standard deviation of what writes to the residual stream: 2N projections add up. Source: GPT-2, section 2.3."""
    return INIT_STD / math.sqrt(2 * config.layers)


class Attention(nnx.Module):
    """Causal multi-head self-attention. `c_attn` makes query, key and value, stacked on an axis of 3."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.c_attn = Linear(config, config.width, (3, config.width), rngs)
        self.c_proj = Linear(config, config.width, config.width, rngs, std=residual_std(config))

    def __call__(self, x_BTD, layer, positions_BT, segments_BT, cached, key):
        config = self.config
        q_BTHK, k_BTHK, v_BTHK = (split_heads(p, config.heads) for p in jnp.moveaxis(self.c_attn(x_BTD), -2, 0))
        if config.position == "rotary":
            q_BTHK, k_BTHK = (rotate_by_position(x, positions_BT) for x in (q_BTHK, k_BTHK))
        start_B = None
        if cached is not None:
            keys_BSHK, values_BSHK, start_B = cached
            k_BTHK, v_BTHK = write_rows(keys_BSHK, k_BTHK, start_B), write_rows(values_BSHK, v_BTHK, start_B)
        scale = 1 / math.sqrt(config.head_size) if config.scale_attention else 1.0
        context_BTHK = causal_attention(
            q_BTHK, k_BTHK, v_BTHK, start_B=start_B, segments_BT=segments_BT, dropout=config.dropout, key=key,
            scale=scale / (layer + 1.0) if config.scale_by_inverse_layer else scale,
            slopes_H=jnp.asarray(alibi_slopes(config.heads)) if config.position == "alibi" else None,
        )  # fmt: skip
        return self.c_proj(join_heads(context_BTHK)), (k_BTHK, v_BTHK)


class MLP(nnx.Module):
    """Two linear layers with the activation between."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs) -> None:
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = Linear(config, config.width, config.mlp_size, rngs)
        self.c_proj = Linear(config, config.mlp_size, config.width, rngs, std=residual_std(config))

    def __call__(self, x_BTD: Array) -> Array:
        return self.c_proj(self.activation(self.c_fc(x_BTD)))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs) -> None:
        self.dropout = config.dropout
        self.ln_1 = layer_norm(config, rngs)
        self.attn = Attention(config, rngs)
        self.ln_2 = layer_norm(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(self, x_BTD, layer, positions_BT, segments_BT, cached, key):
        """The new residual stream, and the (keys, values) of this layer.

        `layer` counts from 0 and may be traced; `cached` is (keys_BSHK, values_BSHK, start_B) or None; `key` turns
        dropout on.
        """
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        with jax.named_scope("attn"):
            update_BTD, key_values = self.attn(self.ln_1(x_BTD), layer, positions_BT, segments_BT, cached, keys[0])
        x_BTD = x_BTD + drop(update_BTD, self.dropout, keys[1])
        with jax.named_scope("mlp"):
            return x_BTD + drop(self.mlp(self.ln_2(x_BTD)), self.dropout, keys[2]), key_values
