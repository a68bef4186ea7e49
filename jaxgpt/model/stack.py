"""The blocks of a model, stored stacked: run one after another, or taken apart; and what is kept of them.

Stacked blocks have one leaf a kind with a leading layer axis N, and run under `lax.scan`. Single blocks are a
tuple of N, and run one by one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt.config import Keeps
from jaxgpt.model.attend import PRODUCT
from jaxgpt.model.blockwise import CONTEXT
from jaxgpt.model.cache import Cached, KVCache
from jaxgpt.parallel import Placement, path_of

Params = dict[str, Any]

PRODUCTS = jax.checkpoint_policies.save_only_these_names(PRODUCT, CONTEXT)


def keeping(keeps: Keeps, run_block: Callable[..., Any], *, looped: bool) -> Callable[..., Any]:
    """`run_block`, of which the backward pass finds only this kept, and computes the rest again.

    `looped` says that blocks run in a loop. Where they do not, the compiler is hindered from finding that it
    has computed all of that before.
    """
    if keeps == "all":
        return run_block
    policy = PRODUCTS if keeps == "products" else None
    remade: Callable[..., Any] = jax.checkpoint(run_block, policy=policy, prevent_cse=not looped)
    return remade


def whole(block: Params, placement: Placement, dtype: str) -> Params:
    """A block's parameters, its kernels rounded to this dtype and gathered, where that is done by hand.

    Inside of `keeping`, so that the backward pass gathers them again, unless it finds everything kept.
    """
    if not placement.gathers:
        return block

    def gathered(key_path: Any, leaf: Array) -> Array:
        path = path_of(key_path)
        if not path.endswith("/kernel"):
            return leaf
        return placement.gathered(f"h/{path}", leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf)

    parameters: Params = jax.tree_util.tree_map_with_path(gathered, block)
    return parameters


def run_blocks(
    step: Callable[..., tuple[Array, tuple[Array, Array] | None]],
    blocks: Params | tuple[Params, ...],
    x_BTD: Array,
    cache: KVCache | None,
) -> tuple[Array, tuple[tuple[Array, ...], tuple[Array, ...]] | None]:
    """The residual stream behind the last block; and the keys and the values of all layers where `step` gives
    them.
    """
    if not isinstance(blocks, tuple):
        assert cache is None, "decoding from a cache needs unstacked blocks"
        layers = jax.tree.leaves(blocks)[0].shape[0]
        x_BTD, stacked = jax.lax.scan(lambda x, xs: step(x, *xs), x_BTD, (jnp.arange(layers), blocks))
        return x_BTD, None if stacked is None else (tuple(stacked[0]), tuple(stacked[1]))
    news = []
    for layer, block in enumerate(blocks):
        cached = None if cache is None else Cached(cache.keys[layer], cache.values[layer], cache.length_B)
        x_BTD, new = step(x_BTD, layer, block, cached)
        news.append(new)
    kept = [new for new in news if new is not None]
    return x_BTD, (tuple(k for k, _ in kept), tuple(v for _, v in kept)) if kept else None


@jax.custom_vjp
def unstacked(blocks: Params) -> tuple[Params, ...]:
    """Stacked blocks, one leaf a kind with a leading axis of layers, as a tuple of single blocks.

    The gradient is stacked in one piece; left to itself, JAX would add up a whole stack for each layer.
    """
    layers = jax.tree.leaves(blocks)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, n=n: leaf[n], blocks) for n in range(layers))


def _unstacked_forward(blocks: Params) -> tuple[tuple[Params, ...], None]:
    return unstacked(blocks), None


def _unstacked_backward(_: None, grads: tuple[Params, ...]) -> tuple[Params]:
    return (jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads),)


unstacked.defvjp(_unstacked_forward, _unstacked_backward)
