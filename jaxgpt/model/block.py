"""The transformer block of GPT-2: pre-LayerNorm attention and MLP, each added to the residual stream."""

import functools
import math
from collections.abc import Callable
from typing import TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxgpt.config import GPTConfig
from jaxgpt.model.attend import PRODUCT, attend, attend_cached, plain_weights
from jaxgpt.model.attention import join_heads, split_heads
from jaxgpt.model.cache import Cached, write_positions
from jaxgpt.model.dropout import drop
from jaxgpt.model.initializers import INIT_STD
from jaxgpt.model.layers import AS_TRAINED, Layers
from jaxgpt.model.mask import Mask
from jaxgpt.model.positions import alibi_slopes, rotate_by_position
from jaxgpt.parallel import NOWHERE, Placement

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, Primer, section 4
}
QK_EPSILON = 1e-6  # added to the mean square of a query or key


class Scoring(TypedDict):
    """What `attend` and its like are told of the scores."""

    scale: float | Array
    slopes_H: Array | None


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
    """The initial standard deviation of the 2N projections that add to the residual stream.

    Source: GPT-2, section 2.3. With `gpt2_zero` they begin with 0.
    """
    if config.init == "gpt2_zero":
        return 0.0
    return INIT_STD / math.sqrt(2 * config.layers)


class Attention(nnx.Module):
    """Multi-head self-attention. `c_attn` makes query, key and value, stacked on an axis of 3."""

    def __init__(
        self, config: GPTConfig, rngs: nnx.Rngs, layers: Layers, placement: Placement, *, causal: bool = True
    ) -> None:
        self.config, self.placement, self.causal = config, placement, causal
        self.c_attn = layers.linear(
            config, "h/attn/c_attn", config.width, (3, config.width), rngs, bias=config.qkv_bias
        )
        self.c_proj = layers.linear(
            config, "h/attn/c_proj", config.width, (config.width,), rngs, std=residual_std(config)
        )

    def __call__(
        self,
        x_BTD: Array,
        layer: Array | int,
        positions_BT: Array,
        segments_BT: Array | None,
        cached: Cached | None,
        key: Array | None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """What attention adds to the residual stream, and the keys and values [B, H, S, K] it looked at."""
        q_BTHK, k_BTHK, v_BTHK = self._projected(x_BTD, positions_BT, key)
        scoring = self._scoring(layer)
        keys_BHSK, values_BHSK = jnp.swapaxes(k_BTHK, 1, 2), jnp.swapaxes(v_BTHK, 1, 2)
        if cached is None:
            context_BTHK = attend(
                q_BTHK,
                k_BTHK,
                v_BTHK,
                Mask(causal=self.causal, segments_BT=segments_BT),
                dropout=self.config.dropout,
                key=key,
                placement=self.placement,
                **scoring,
            )
        else:
            keys_BHSK = write_positions(cached.keys_BHSK, keys_BHSK, cached.start_B)
            values_BHSK = write_positions(cached.values_BHSK, values_BHSK, cached.start_B)
            context_BTHK = attend_cached(q_BTHK, keys_BHSK, values_BHSK, cached.start_B, **scoring)
        update_BTD = checkpoint_name(self.c_proj(join_heads(context_BTHK), key=_folded(key, 2)), PRODUCT)
        return update_BTD, (keys_BHSK, values_BHSK)

    def weights(self, x_BTD: Array, layer: Array | int, positions_BT: Array) -> Array:
        """How much each position looks at each one, float32 [B, H, T, T], by the plain attention."""
        q_BTHK, k_BTHK, _ = self._projected(x_BTD, positions_BT, None)
        return plain_weights(q_BTHK, k_BTHK, Mask(causal=self.causal), **self._scoring(layer))

    def _projected(self, x_BTD: Array, positions_BT: Array, key: Array | None) -> tuple[Array, Array, Array]:
        """Queries, keys and values [B, T, H, K]."""
        # Split and not indexed: the backward pass then joins three gradients, where it would pad each with
        # zeros and add them up.
        q_BTHK, k_BTHK, v_BTHK = (
            self.placement("heads", split_heads(checkpoint_name(part, PRODUCT)[..., 0, :], self.config.heads))
            for part in jnp.split(self.c_attn(x_BTD, key=_folded(key, 1)), 3, axis=-2)
        )
        if self.config.qk_norm:
            q_BTHK, k_BTHK = _unit_rms(q_BTHK), _unit_rms(k_BTHK)
        if self.config.position == "rotary":
            q_BTHK, k_BTHK = (rotate_by_position(x, positions_BT) for x in (q_BTHK, k_BTHK))
        return q_BTHK, k_BTHK, v_BTHK

    def _scoring(self, layer: Array | int) -> Scoring:
        """How scores are made of queries and keys."""
        config = self.config
        scale: float | Array = 1 / math.sqrt(config.head_size) if config.scale_attention else 1.0
        scale = scale / (layer + 1.0) if config.scale_by_inverse_layer else scale
        slopes_H = jnp.asarray(alibi_slopes(config.heads)) if config.position == "alibi" else None
        return {"scale": scale, "slopes_H": slopes_H}


class MLP(nnx.Module):
    """Two linear layers with the activation between."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs, layers: Layers) -> None:
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = layers.linear(config, "h/mlp/c_fc", config.width, (config.mlp_size,), rngs)
        self.c_proj = layers.linear(
            config, "h/mlp/c_proj", config.mlp_size, (config.width,), rngs, std=residual_std(config)
        )

    def __call__(self, x_BTD: Array, key: Array | None) -> Array:
        """What the MLP adds to the residual stream, [B, T, D]."""
        hidden_BTF = self.activation(checkpoint_name(self.c_fc(x_BTD, key=_folded(key, 1)), PRODUCT))
        return self.c_proj(hidden_BTF, key=_folded(key, 2))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, config: GPTConfig, rngs: nnx.Rngs, layers: Layers = AS_TRAINED, placement: Placement = NOWHERE
    ) -> None:
        self.dropout, self.placement = config.dropout, placement
        self.ln_1 = layer_norm(config, rngs)
        self.attn = Attention(config, rngs, layers, placement)
        self.ln_2 = layer_norm(config, rngs)
        self.mlp = MLP(config, rngs, layers)

    def __call__(
        self,
        x_BTD: Array,
        layer: Array | int,
        positions_BT: Array,
        segments_BT: Array | None = None,
        cached: Cached | None = None,
        key: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """The new residual stream, and this layer's keys and values [B, H, S, K].

        `layer` counts from 0 and may be traced. With `cached`, the keys and values are those cached before
        and those of `x_BTD` behind them; without, those of `x_BTD` alone. `key` turns dropout on.
        """
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x_BTD = self.placement("stream", x_BTD)
        with jax.named_scope("attn"):
            update_BTD, keys_values = self.attn(
                self.ln_1(x_BTD), layer, positions_BT, segments_BT, cached, keys[0]
            )
        x_BTD = self.placement("stream", x_BTD + drop(update_BTD, self.dropout, keys[1]))
        with jax.named_scope("mlp"):
            x_BTD = x_BTD + drop(self.mlp(self.ln_2(x_BTD), keys[2]), self.dropout, keys[2])
        return self.placement("stream", x_BTD), keys_values

    def weights(self, x_BTD: Array, layer: Array | int, positions_BT: Array) -> Array:
        """How much each position looks at each one, float32 [B, H, T, T], for the stream before the block."""
        return self.attn.weights(self.ln_1(x_BTD), layer, positions_BT)


def _unit_rms(x: Array) -> Array:
    """Vectors [..., K] divided by their root mean square, which is computed in float32.

    Source: Henry et al. 2020, Query-Key Normalization, in the form without parameters.
    """
    exact = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(exact), axis=-1, keepdims=True)
    return (exact * jax.lax.rsqrt(mean_square + QK_EPSILON)).astype(x.dtype)


def _folded(key: Array | None, number: int) -> Array | None:
    """A key for something else of the same layer: a key may decide only one thing."""
    return None if key is None else jax.random.fold_in(key, number)
