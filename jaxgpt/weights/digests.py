"""A digest of every array of a pytree, by which a checkpoint is verified, and one of a whole model."""

import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt.parallel import by_path, one_by_one, path_of


def digests(tree: Any) -> dict[str, str]:
    """Return a digest of every leaf by its path: dtype, shape, and 64 bits that any changed element changes.

    It is computed where the arrays lie, and does not depend on how they are sharded. It protects against
    accidents, not against forgery.
    """
    leaves = jax.tree_util.tree_flatten_with_path(storable(tree))[0]
    sums = one_by_one(_sums, (leaf for _, leaf in leaves))
    return {
        path_of(path): f"{kind(leaf)}:{int(low):08x}{int(high):08x}"
        for (path, leaf), (low, high) in zip(leaves, sums, strict=True)
    }


def model_digest(params: Any, vocab: int) -> str:
    """Return one digest of a language model's first `vocab` tokens and all its other parameters.

    It does not depend on where the parameters came from: they are taken in float32, and without the rows of
    the tables behind these tokens. Adapters and the head of a classifier do not count.
    """
    counted = {
        path: _rows(leaf, vocab) if path in ("wte/embedding", "lm_head/embedding") else leaf.astype("float32")
        for path, leaf in by_path(params).items()
        if path != "score/kernel" and "/lora_" not in path
    }
    return hashlib.sha256(json.dumps(digests(counted), sort_keys=True).encode()).hexdigest()


@functools.partial(jax.jit, static_argnames="vocab")
def _rows(table_VD: Array, vocab: int) -> Array:
    return table_VD[:vocab].astype("float32")


def kind(leaf: Any) -> str:
    """Dtype and shape of an array, such as float32[768, 2304]."""
    return f"{leaf.dtype}{list(leaf.shape)}"


@jax.jit
def _sums(leaf: Array) -> tuple[Array, Array]:
    """Two sums of a leaf. Parameters and their moments are alike, so that they share a program."""
    return _sum(leaf, 0x9E3779B9), _sum(leaf, 0x85EBCA6B)


def _sum(leaf: Array, salt: int) -> Array:
    """Return the sum, modulo 2^32, of the bits of every element, each mixed one to one with its place.

    A change of a single element therefore always changes the sum. Stacked matrices are summed layer by layer;
    otherwise the CPU would write the mixed bits of all layers to memory first. Inside that loop its compiler
    takes short floats through float32, which turns the smallest numbers into zero and one NaN into another.
    Their bits are therefore taken before it.
    """
    if leaf.ndim < 3:
        return _part_sum(leaf, jnp.uint32(salt))

    def add(total: Array, layer: tuple[Array, Array]) -> tuple[Array, None]:
        number, part = layer
        return total + _part_sum(part, _mix(jnp.uint32(salt) ^ number)), None

    parts = leaf if leaf.dtype.itemsize == 4 else _bits(leaf)
    layers = (jnp.arange(len(parts), dtype=jnp.uint32), parts)
    total: Array = jax.lax.scan(add, jnp.uint32(0), layers)[0]
    return total


def _part_sum(part: Array, place: Array) -> Array:
    """Return the sum over a leaf, or over a part of a leaf whose index is already mixed into `place`."""
    places = jnp.full(part.shape, place, jnp.uint32)
    for axis in range(part.ndim):
        places = _mix(places ^ jax.lax.broadcasted_iota(jnp.uint32, part.shape, axis))
    return jnp.sum(_mix(_bits(part).astype(jnp.uint32) ^ places), dtype=jnp.uint32)


def _bits(x: Array) -> Array:
    """Return the bits of every element, as a number that is as long."""
    return jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])


def _mix(x: Array) -> Array:
    """Permute the 32-bit numbers. Source: MurmurHash3's 32-bit finaliser (Appleby, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def is_key(leaf: Any) -> bool:
    """Whether an array is a typed random key, which has no bytes of its own to store."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def storable(tree: Any) -> Any:
    """Return the tree with each typed random key as the integers that it is made of."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)
