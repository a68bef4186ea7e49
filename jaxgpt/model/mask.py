"""Who may look at whom in attention: one description that every implementation reads in its own way."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["segments_BT", "key_segments_BS"],
    meta_fields=["causal", "window"],
)
@dataclass(frozen=True, kw_only=True)
class Mask:
    """Which keys a query may look at: those for which all conditions hold. `Mask(causal=False)` sets none."""

    causal: bool = True
    """A query sees no key that stands behind it."""
    window: int | None = None
    """A query sees keys fewer than this many positions before it; None sets no limit."""
    segments_BT: Array | None = None
    """A query sees keys of its own segment only, so that texts packed into one row do not see each other."""
    key_segments_BS: Array | None = None
    """The segments of the keys, where these are another sequence than the queries, as in cross-attention."""

    def allowed(self, first: int, last: int, keys: int) -> Array:
        """True where queries `first` to `last - 1` may look at keys `0` to `keys - 1`: [B, T, S], or [1, T,
        S].
        """
        distance_TS = first + jnp.arange(last - first)[:, None] - jnp.arange(keys)[None, :]
        allowed_TS = jnp.ones(distance_TS.shape, bool)
        if self.causal:
            allowed_TS = allowed_TS & (distance_TS >= 0)
        if self.window is not None:
            allowed_TS = allowed_TS & (distance_TS < self.window)
        if self.segments_BT is None:
            return allowed_TS[None]
        of_keys_BS = self.segments_BT if self.key_segments_BS is None else self.key_segments_BS
        same_BTS = self.segments_BT[:, first:last, None] == of_keys_BS[:, None, :keys]
        return allowed_TS[None] & same_BTS
