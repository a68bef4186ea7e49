"""Choosing the next token from logits, each row of a batch with settings and random numbers of its own.

One compiled program serves rows with different k and p. What top-k and top-p keep is described by the
smallest logit that stays, which is found bit by bit (`_kept`). Usually that logit is among the few largest of
the row; a CPU looks at those first, and at the whole vocabulary only where they are not enough.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgpt.errors import ConfigError

CANDIDATES = 256  # on CPU, filters are tried first among so many of the most probable tokens


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn: by penalties, temperature, top-k, top-p and min-p, in this order."""

    temperature: float = 1.0
    """Divides the logits. Below 1, probable tokens become more probable; above 1, improbable ones do; 0
    always takes the most probable token."""
    top_k: int = 0
    """Only the k most probable tokens stay; 0 keeps all."""
    top_p: float = 1.0
    """Only the smallest set of tokens with this much probability together stays; 1 keeps all, 0 only the most
    probable one."""
    min_p: float = 0.0
    """Only tokens with at least this share of the most probable one's probability stay; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens already in the text, prompt included, and multiplies negative ones; 1
    does nothing. Source: Keskar et al. 2019 (CTRL), section 4.1."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens already written, prompt not included."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it has been written."""

    def __post_init__(self) -> None:
        for holds, name, rule in (
            (0 <= self.temperature < math.inf, "temperature", "finite, 0 or more"),
            (0 <= self.top_k < 2**31, "top_k", "from 0 to 2147483647"),
            (0 <= self.top_p <= 1, "top_p", "from 0 to 1"),
            (0 <= self.min_p <= 1, "min_p", "from 0 to 1"),
            (0 < self.repetition_penalty < math.inf, "repetition_penalty", "finite, greater than 0"),
            (abs(self.presence_penalty) < math.inf, "presence_penalty", "finite"),
            (abs(self.frequency_penalty) < math.inf, "frequency_penalty", "finite"),
        ):
            if not holds:
                raise ConfigError(
                    f"{name} = {getattr(self, name)}",
                    why=f"it must be {rule}",
                    fix=f"give a number that is {rule}",
                )

    @property
    def penalises(self) -> bool:
        """Whether a penalty changes any logit."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def filters(self) -> bool:
        """Whether some tokens are left out before one is drawn."""
        return self.temperature > 0 and (self.top_k, self.top_p, self.min_p) != (0, 1, 0)


class Plan(NamedTuple):
    """What a compiled program has to be able to do, which is all that its rows ask for, and where it runs."""

    draws: bool
    filters: bool
    penalises: bool
    platform: str
    """`cpu`, `gpu` or `tpu`. It decides between ways of computing the same tokens."""

    @classmethod
    def of(cls, samplings: Sequence[Sampling], platform: str) -> "Plan":
        """The plan for rows with these settings."""
        return cls(
            any(s.temperature > 0 for s in samplings),
            any(s.filters for s in samplings),
            any(s.penalises for s in samplings),
            platform,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Settings:
    """The `Sampling` of every row, as arrays [B]."""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    repetition_penalty: Array
    presence_penalty: Array
    frequency_penalty: Array


def settings_of(samplings: Sequence[Sampling]) -> Settings:
    """The rows' settings as arrays."""
    return Settings(
        *(
            jnp.array([getattr(s, name) for s in samplings], jnp.int32 if name == "top_k" else jnp.float32)
            for name in Settings.__dataclass_fields__
        )
    )


def choose(
    logits_BV: Array,
    settings: Settings,
    seed_B: Array,
    number_B: Array,
    plan: Plan,
    seen: "Seen | None" = None,
    biases: "Biases | None" = None,
) -> Array:
    """The next token of every row [B], int32, from float32 logits [B, V].

    The random numbers of a row depend only on its seed and on the number of the token, not on the rows beside
    it.
    """
    if biases is not None:
        logits_BV = biases.on(logits_BV, number_B)
    if plan.penalises:
        assert seen is not None, "penalties need what was seen"
        logits_BV = penalised(logits_BV, settings, seen)
    if not plan.draws:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    key_B = jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))(seed_B, number_B)
    drawn_B = draw(key_B, filtered(logits_BV, settings, plan), plan.platform)
    return jnp.where(settings.temperature > 0, drawn_B, jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)


def draw(key_B: Array, logits_BV: Array, platform: str) -> Array:
    """A token of each row with the probabilities of softmax (the Gumbel-max trick).

    On CPU the largest number is found by `top_k` of one: XLA fuses the random numbers into an argmax there,
    and computes them more slowly.
    """
    noisy_BV = logits_BV + jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(key_B)
    if platform == "cpu":
        return jax.lax.top_k(noisy_BV, 1)[1][:, 0]
    return jnp.argmax(noisy_BV, axis=-1).astype(jnp.int32)


def filtered(logits_BV: Array, settings: Settings, plan: Plan) -> Array:
    """The logits that tokens are drawn from: after temperature and the filters. Rows of temperature 0 keep
    theirs.

    On CPU the filters are tried on the CANDIDATES most probable tokens of each row. Where these hold all that
    the filters keep, they tell what the smallest logit is that stays; only where they do not is the whole
    vocabulary searched. An accelerator always searches: passes over the logits are cheap there, and sorting
    is not.
    """
    logits_BV = logits_BV - logits_BV.max(axis=-1, keepdims=True)  # or a small temperature would overflow
    logits_BV = logits_BV / jnp.where(settings.temperature > 0, settings.temperature, 1.0)[:, None]
    if not plan.filters:
        return logits_BV
    if logits_BV.shape[1] <= CANDIDATES or plan.platform != "cpu":
        return _keep(logits_BV, settings)
    kept_BC = _keep(jax.lax.top_k(logits_BV, CANDIDATES)[0], settings, jax.nn.logsumexp(logits_BV, axis=-1))
    # If the last candidate is filtered out, so are all tokens behind it.
    found_B = (settings.top_k <= CANDIDATES) & (kept_BC[:, -1] == -jnp.inf)
    smallest_B = jnp.where(kept_BC == -jnp.inf, jnp.inf, kept_BC).min(axis=-1)
    kept_BV = jnp.where(logits_BV >= smallest_B[:, None], logits_BV, -jnp.inf)
    filtered_BV: Array = jax.lax.cond(
        (found_B | (settings.temperature == 0)).all(),
        lambda: kept_BV,
        lambda: jnp.where(found_B[:, None], kept_BV, _keep(logits_BV, settings)),
    )
    return filtered_BV


def _keep(logits_BV: Array, settings: Settings, total_B: Array | None = None) -> Array:
    """-inf for what a row's filters do not keep.

    `total_B` is for logits that are only part of their rows: what `keep_top_p` takes where top-k filters
    nothing out.
    """
    kept_BV = keep_top_k(logits_BV, settings.top_k)
    if total_B is not None:
        total_B = jnp.where(settings.top_k == 0, total_B, jax.nn.logsumexp(kept_BV, axis=-1))
    return keep_min_p(keep_top_p(kept_BV, settings.top_p, total_B), settings.min_p)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """Which tokens stand in the prompt of each row, and how often each was written since; both [B, V]."""

    prompt: Array
    written: Array

    def after(self, token_B: Array, active_B: Array) -> "Seen":
        """With one more token of each active row."""
        rows_B = jnp.arange(len(token_B))
        return Seen(self.prompt, self.written.at[rows_B, token_B].add(active_B.astype(self.written.dtype)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Biases:
    """What is added to the logits of each row, and which tokens may not be among its first `least_B` ones."""

    added_BV: Array
    ends_BV: Array
    least_B: Array

    def on(self, logits_BV: Array, number_B: Array) -> Array:
        """The logits of each row's token with this number."""
        early_B1 = (number_B < self.least_B)[:, None]
        return jnp.where(self.ends_BV & early_B1, -jnp.inf, logits_BV + self.added_BV)


def penalised(logits_BV: Array, settings: Settings, seen: Seen) -> Array:
    """Logits with the three penalties."""
    repeated_BV = seen.prompt | (seen.written > 0)
    factor_B1 = settings.repetition_penalty[:, None]
    scaled_BV = jnp.where(logits_BV > 0, logits_BV / factor_B1, logits_BV * factor_B1)
    logits_BV = jnp.where(repeated_BV, scaled_BV, logits_BV)
    subtracted_BV = settings.presence_penalty[:, None] * (seen.written > 0)
    return logits_BV - subtracted_BV - settings.frequency_penalty[:, None] * seen.written


def keep_top_k(logits_BV: Array, k_B: Array) -> Array:
    """-inf for all but the k largest logits of each row (ties with the k-th stay); 0 keeps all.

    Source: Fan et al. 2018, section 5.3.
    """
    wanted_B = jnp.where(k_B == 0, logits_BV.shape[1], k_B).astype(jnp.float32)
    return _kept(logits_BV, jnp.ones_like(logits_BV), wanted_B)


def keep_top_p(logits_BV: Array, p_B: Array, total_B: Array | None = None) -> Array:
    """-inf for all but the most probable tokens, as few as have probability p together (ties with the last
    stay).

    `total_B` is for logits that are only part of their rows: the logarithm of the sum of the exponentials of
    all logits of each row. Source: Holtzman et al. 2020, equation 3.
    """
    total_B = jax.nn.logsumexp(logits_BV, axis=-1) if total_B is None else total_B
    kept_BV = _kept(logits_BV, jnp.exp(logits_BV - total_B[:, None]), p_B)
    return jnp.where(p_B[:, None] < 1, kept_BV, logits_BV)


def keep_min_p(logits_BV: Array, p_B: Array) -> Array:
    """-inf for tokens with less than p times the largest probability; 0 keeps all.

    Source: Nguyen et al. 2024.
    """
    smallest_B1 = logits_BV.max(axis=-1, keepdims=True) + jnp.log(p_B)[:, None]
    return jnp.where(logits_BV >= smallest_B1, logits_BV, -jnp.inf)


def _kept(logits_BV: Array, weight_BV: Array, wanted_B: Array) -> Array:
    """-inf for all but the largest logits of each row, as few as weigh `wanted_B` together.

    All stay where all together weigh less. The smallest logit that stays is found from its highest bit down:
    the integers `order_BV` have the order of the floats.
    """
    bits_BV = jax.lax.bitcast_convert_type(logits_BV, jnp.uint32)
    order_BV = jnp.where(bits_BV >> 31 == 1, ~bits_BV, bits_BV | jnp.uint32(1 << 31))

    def try_bit(step: Array, smallest_B: Array) -> Array:
        larger_B = smallest_B | (jnp.uint32(1 << 31) >> step.astype(jnp.uint32))
        weight_B = jnp.sum(jnp.where(order_BV >= larger_B[:, None], weight_BV, 0), axis=-1)
        return jnp.where(weight_B >= wanted_B, larger_B, smallest_B)

    smallest_B = jax.lax.fori_loop(0, 32, try_bit, jnp.zeros(len(logits_BV), jnp.uint32))
    smallest_B = jnp.minimum(smallest_B, order_BV.max(axis=-1))  # where nothing is wanted, the largest stays
    return jnp.where(order_BV >= smallest_B[:, None], logits_BV, -jnp.inf)
