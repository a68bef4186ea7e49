"""Adapters of low rank (LoRA): linear layers with two small matrices beside their own, apart and merged.

A layer with the kernel W computes x W + scale x (x A) B. A new B is zero, so that a fresh adapter changes
nothing. An adapter is a nested dict with a leaf `lora_A` [N, in, r] and a leaf `lora_B` [N, r, out] beside
each kernel that it changes, stacked like it. Source: Hu et al. 2021, LoRA, section 4.1.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxgpt.config import GPTConfig, LoraConfig
from jaxgpt.errors import ConfigError
from jaxgpt.model.dropout import drop
from jaxgpt.model.gpt import Params, define
from jaxgpt.model.layers import Linear, TrainedLayers
from jaxgpt.parallel import by_path

LAYERS = ("h/attn/c_attn", "h/attn/c_proj", "h/mlp/c_fc", "h/mlp/c_proj")  # those that can have an adapter
LEAVES = ("lora_A", "lora_B")


class LoraLinear(Linear):
    """A linear layer with an adapter beside it, in the compute dtype; the parameters are float32."""

    def __init__(
        self,
        config: GPTConfig,
        inputs: int,
        outputs: tuple[int, ...],
        rngs: nnx.Rngs,
        *,
        lora: LoraConfig,
        **more: Any,
    ) -> None:
        super().__init__(config, inputs, outputs, rngs, **more)
        self.lora, bound = lora, 1 / math.sqrt(inputs)  # torch's kaiming_uniform_(a=sqrt(5)), as PEFT draws A
        self.lora_A = nnx.Param(
            jax.random.uniform(rngs.params(), (inputs, lora.rank), minval=-bound, maxval=bound)
        )
        self.lora_B = nnx.Param(jnp.zeros((lora.rank, *outputs)))

    def __call__(self, inputs: Array, out_sharding: Any = None, *, key: Array | None = None) -> Array:
        """[..., inputs] to [..., *outputs]. `key` turns the adapter's dropout on."""
        y = super().__call__(inputs, out_sharding)
        x_LI = drop(inputs.reshape(-1, inputs.shape[-1]), self.lora.dropout, key).astype(y.dtype)
        x_LR = x_LI @ self.lora_A[...].astype(y.dtype)
        change = jnp.tensordot(x_LR, self.lora_B[...].astype(y.dtype), 1)
        return y + self.lora.scale * change.reshape(y.shape)


@dataclass(frozen=True)
class LoraLayers(TrainedLayers):
    """The factory of layers of a model that trains adapters: those that `lora.targets` names have one."""

    lora: LoraConfig

    def linear(
        self, config: GPTConfig, name: str, inputs: int, outputs: tuple[int, ...], rngs: nnx.Rngs, **more: Any
    ) -> Linear:
        """A linear layer from `inputs` to `outputs`, with an adapter where it is wanted."""
        if not self.lora.adapts(name):
            return super().linear(config, name, inputs, outputs, rngs, **more)
        return LoraLinear(config, inputs, outputs, rngs, **more, lora=self.lora)


def check_targets(lora: LoraConfig) -> None:
    """Raise ConfigError where no linear layer gets an adapter."""
    if not any(map(lora.adapts, LAYERS)):
        raise ConfigError(
            f"lora.targets = {lora.targets}",
            why=f"no linear layer is called so: they are {', '.join(LAYERS)}",
            fix="name some of them, or the ends of their names, such as c_attn or attn/.*",
        )


def is_adapter(path: str) -> bool:
    """Whether the leaf at this path belongs to an adapter."""
    return path.rpartition("/")[2] in LEAVES


def adapter_shapes(config: GPTConfig, lora: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf of an adapter of this model, by its path."""
    shapes = jax.eval_shape(define(config, layers=LoraLayers(lora)).init, jax.random.key(0))
    return {path: leaf.shape for path, leaf in by_path(shapes).items() if is_adapter(path)}


def divided(params: Params) -> tuple[Params, Params]:
    """The parameters of a model with adapters, as those of the plain model and those of the adapter."""
    plain: Params = {}
    adapter: Params = {}
    for name, node in params.items():
        if not isinstance(node, dict):
            (adapter if name in LEAVES else plain)[name] = node
            continue
        inner = divided(node)
        for part, tree in zip(inner, (plain, adapter), strict=True):
            if part:
                tree[name] = part
    return plain, adapter


def merged(params: Params, adapter: Params, lora: LoraConfig) -> Params:
    """The parameters of the plain model that computes what this model computes with the adapter.

    Each kernel W becomes W + scale x A B, computed in float32 and kept in the dtype of W.
    """
    result: Params = _moved(params, adapter, scale=lora.scale)
    return result


def unmerged(params: Params, adapter: Params, lora: LoraConfig) -> Params:
    """The parameters before `merged`, to rounding."""
    result: Params = _moved(params, adapter, scale=-lora.scale)
    return result


@functools.partial(jax.jit, static_argnames="scale")
def _moved(params: Params, adapter: Params, *, scale: float) -> Params:
    """The parameters with `scale` x A B added to each kernel that has an adapter."""

    def move(node: Params, beside: Params) -> Params:
        found = {name: move(part, beside[name]) if name in beside else part for name, part in node.items()}
        if "lora_A" not in beside:
            return found
        product = jnp.einsum("nir,nr...->ni...", beside["lora_A"], beside["lora_B"], precision="highest")
        kernel = node["kernel"]
        return found | {"kernel": (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)}

    return move(params, adapter)


def joined_qkv(query: Params, key: Params, value: Params) -> Params:
    """One adapter of `c_attn` that does what three adapters of query, key and value do, each of rank r.

    Each has `lora_A` [N, in, r] and `lora_B` [N, r, out], as where query, key and value are layers of their
    own (appendix E of the book). The result has `lora_A` [N, in, 3r] and `lora_B` [N, 3r, 3, out], whose
    blocks off the diagonal are zero. Its rank is 3r, so that it means the same with 3 x alpha, and in rsLoRA
    with sqrt(3) x alpha.
    """
    parts = (query, key, value)
    down = jnp.concatenate([part["lora_A"] for part in parts], axis=-1)
    up = [
        jnp.stack([part["lora_B"] if n == place else jnp.zeros_like(part["lora_B"]) for n in range(3)], -2)
        for place, part in enumerate(parts)
    ]
    return {"lora_A": down, "lora_B": jnp.concatenate(up, axis=-3)}
