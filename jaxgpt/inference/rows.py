"""What the engine keeps of each request that has a slot, and what it tells the device of all of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxgpt.config import GPTConfig
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Biases, Sampling, Seen, Settings, settings_of

NO_END = -1  # in place of an id that ends a text: no token is it


@dataclass
class Row:
    """A request in a slot."""

    number: int
    request: Request
    tokens: list[int]
    """The prompt, and what was written."""
    made: int = 0
    """How many tokens were written."""
    filled: int = 0
    """How many positions of the cache are taken. The newest token is not among them yet."""


# What stands in an empty slot.
NOBODY = Row(0, Request(prompt=(0,), max_new_tokens=1, sampling=Sampling(temperature=0)), [0])


def drawing(rows: Sequence[Row]) -> tuple[Settings, np.ndarray, np.ndarray]:
    """How the next token of each row is drawn: settings, seeds, and the tokens' numbers."""
    seeds = np.array([row.request.seed32 for row in rows], np.uint32)
    numbers = np.array([row.made for row in rows], np.int32)
    return settings_of([row.request.sampling for row in rows]), seeds, numbers


def reports(rows: Sequence[Row]) -> bool:
    """Whether any row's log-probabilities are to be told of."""
    return any(row.request.logprobs is not None for row in rows)


def ends_of(rows: Sequence[Row], ends: Collection[int]) -> np.ndarray:
    """The ids that end each row's text, as far as the device looks [B, E]; E is 1 or more."""
    ids, none = sorted(ends) or [NO_END], [NO_END] * max(len(ends), 1)
    return np.array([none if row.request.ignore_end else ids for row in rows], np.int32)


def biases_of(rows: Sequence[Row], ends: Collection[int], vocab: int) -> Biases | None:
    """What is added to logits before anything else, or None if no row asks for that now."""
    if not any(row.request.bias or row.made < row.request.least_new_tokens for row in rows):
        return None
    added_BV = np.zeros((len(rows), vocab), np.float32)
    ends_BV = np.zeros((len(rows), vocab), bool)
    for line, row in enumerate(rows):
        for token, value in row.request.bias:
            added_BV[line, token] = value
        ends_BV[line, [*row.request.stop_ids, *ends]] = True
    least_B = np.array([row.request.least_new_tokens for row in rows], np.int32)
    return Biases(jnp.asarray(added_BV), jnp.asarray(ends_BV), jnp.asarray(least_B))


def pairs_of(ids_K: np.ndarray, values_K: np.ndarray, most: int) -> tuple[tuple[int, float], ...]:
    """The first `most` ids, each with its value."""
    return tuple(zip(ids_K[:most].tolist(), values_K[:most].tolist(), strict=True))


def seen_of(rows: Sequence[Row], config: GPTConfig) -> Seen:
    """What stands in the rows' prompts, and what they have written."""
    prompt_BV = np.zeros((len(rows), config.padded_vocab), bool)
    written_BV = np.zeros((len(rows), config.padded_vocab), np.int32)
    for line, row in enumerate(rows):
        start = len(row.request.prompt)
        prompt_BV[line, row.tokens[:start]] = True
        np.add.at(written_BV[line], row.tokens[start:], 1)
    return Seen(jnp.asarray(prompt_BV), jnp.asarray(written_BV))
