"""The transformer block of GPT-2: pre-LayerNorm attention and MLP, each added to the residual stream."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig
from jaxgpt.model.attention import cached_attention, causal_attention, drop, join_heads, split_heads
from jaxgpt.model.cache import write_positions
from jaxgpt.model.layers import AS_TRAINED, INIT_STD, Kernels, linear
from jaxgpt.model.positions import alibi_slopes, rotate_by_position

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def layer_norm(config: GPTConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm that computes in float32."""
    return nnx.LayerNorm(
        config.width,
        epsilon=config.layer_norm_epsilon,
        use_bias=config.bias,
        use_fast_variance=False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs=rngs,
    )


def residual_std(config: GPTConfig) -> float:
    """Standard deviation of what writes to the residual stream: 2N projections add up. Source: GPT-2, section 2.3."""
    return INIT_STD / math.sqrt(2 * config.layers)


class Attention(nnx.Module):
    """Causal multi-head self-attention. `c_attn` makes query, key and value, stacked on an axis of 3."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs, kernels: Kernels) -> None:
        self.config = config
        self.c_attn = linear(config, config.width, (3, config.width), rngs, kernels)
        self.c_proj = linear(config, config.width, (config.width,), rngs, kernels, std=residual_std(config))

    def __call__(self, x_BTD, layer, positions_BT, segments_BT, cached, key):
        config = self.config
        q_BTHK, k_BTHK, v_BTHK = (
            split_heads(p, config.heads) for p in jnp.moveaxis(self.c_attn(x_BTD), -2, 0)
        )
        if config.position == "rotary":
            q_BTHK, k_BTHK = (rotate_by_position(x, positions_BT) for x in (q_BTHK, k_BTHK))
        scale = 1 / math.sqrt(config.head_size) if config.scale_attention else 1.0
        scale = scale / (layer + 1.0) if config.scale_by_inverse_layer else scale
        slopes_H = jnp.asarray(alibi_slopes(config.heads)) if config.position == "alibi" else None
        keys_BHTK, values_BHTK = jnp.swapaxes(k_BTHK, 1, 2), jnp.swapaxes(v_BTHK, 1, 2)
        if cached is None:
            context_BTHK = causal_attention(
                q_BTHK,
                k_BTHK,
                v_BTHK,
                scale=scale,
                segments_BT=segments_BT,
                slopes_H=slopes_H,
                dropout=config.dropout,
                key=key,
            )
        else:
            keys_BHSK, values_BHSK, start_B = cached
            keys_BHTK = write_positions(keys_BHSK, keys_BHTK, start_B)
            values_BHTK = write_positions(values_BHSK, values_BHTK, start_B)
            context_BTHK = cached_attention(
                q_BTHK, keys_BHTK, values_BHTK, start_B, scale=scale, slopes_H=slopes_H
            )
        return self.c_proj(join_heads(context_BTHK)), (keys_BHTK, values_BHTK)


class MLP(nnx.Module):
    """Two linear layers with the activation between."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs, kernels: Kernels) -> None:
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = linear(config, config.width, (config.mlp_size,), rngs, kernels)
        self.c_proj = linear(
            config, config.mlp_size, (config.width,), rngs, kernels, std=residual_std(config)
        )

    def __call__(self, x_BTD: Array) -> Array:
        return self.c_proj(self.activation(self.c_fc(x_BTD)))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs, kernels: Kernels = AS_TRAINED) -> None:
        self.dropout = config.dropout
        self.ln_1 = layer_norm(config, rngs)
        self.attn = Attention(config, rngs, kernels)
        self.ln_2 = layer_norm(config, rngs)
        self.mlp = MLP(config, rngs, kernels)

    def __call__(self, x_BTD, layer, positions_BT, segments_BT, cached, key):
        """The new residual stream, and the keys and values of this layer: with those cached before, or of x alone.

        `layer` counts from 0 and may be traced; `cached` is (keys_BHSK, values_BHSK, start_B) or None; `key` turns
        dropout on.
        """
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        with jax.named_scope("attn"):
            update_BTD, key_values = self.attn(
                self.ln_1(x_BTD), layer, positions_BT, segments_BT, cached, keys[0]
            )
        x_BTD = x_BTD + drop(update_BTD, self.dropout, keys[1])
        with jax.named_scope("mlp"):
            return x_BTD + drop(self.mlp(self.ln_2(x_BTD)), self.dropout, keys[2]), key_values
