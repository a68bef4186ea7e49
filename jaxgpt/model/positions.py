"""Positions without a learned table: sinusoidal, rotary and ALiBi."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def sinusoidal_positions(positions_BT: Array, width: int) -> Array:
    """Fixed position embeddings [B, T, width], float32: sines in the even columns, cosines in the odd ones.

    Column pair i turns with wavelength 2 pi 10000^(2i/width). Source: Vaswani et al. 2017, section 3.5.
    """
    angles = positions_BT[:, :, None] * _frequencies(width)[None, None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions_BT.shape, width)


def rotate_by_position(x_BTHK: Array, positions_BT: Array) -> Array:
    """Queries or keys turned by their position, so that their product depends on the distance alone.

    Pair i is columns (i, i + K/2), turned by position * 10000^(-2i/K). Computed in float32, returned in x's
    dtype. Source: Su et al. 2021, RoFormer, equation 34, with the halves' pairing most implementations use.
    """
    angles_BT1K = positions_BT[:, :, None, None] * _frequencies(x_BTHK.shape[-1])[None, None, None]
    sin, cos = jnp.sin(angles_BT1K), jnp.cos(angles_BT1K)
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTHK.dtype)


def alibi_slopes(heads: int) -> np.ndarray:
    """How fast each head's scores fall with distance, [H] float32.

    A geometric sequence from 2^(-8/H) for a power of two; else that of the power below, followed by every
    other slope of the power above. Source: Press et al. 2022, section 3, and the rule of its published code.
    """
    power = 2 ** int(np.log2(heads))
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    extra = 2.0 ** (-4 / power * np.arange(1, 2 * power + 1, 2))
    return np.concatenate([slopes, extra])[:heads].astype(np.float32)


def alibi_bias(slopes_H: Array | None, distance_BTS: Array) -> Array | None:
    """What ALiBi adds to scores, [B, H, T, S]: -slope * distance of query and key."""
    return None if slopes_H is None else -slopes_H[None, :, None, None] * distance_BTS[:, None]


def _frequencies(size: int) -> np.ndarray:
    return (10_000.0 ** (-np.arange(0, size, 2) / size)).astype(np.float32)
