"""Drawing tokens: each filter by hand, and the drawn frequencies against the exact distribution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.errors import ConfigError
from jaxgpt.inference.sampling import Sampling, keep_top_k, keep_top_p, sample

# A row of logits out of order, so that sorting must be undone; the last is an id past the vocabulary.
P_V = np.array([0.05, 0.4, 0.15, 0.1, 0.3, 0.0])
with np.errstate(divide="ignore"):
    LOGITS_1V = jnp.asarray(np.log(P_V)[None], jnp.float32)

DRAWS = 20_000


def distribution(**settings: Any) -> np.ndarray:
    """The frequencies of DRAWS tokens."""
    sampling = Sampling(**settings)
    logits_BV = jnp.broadcast_to(LOGITS_1V, (DRAWS, len(P_V)))
    tokens_B = jax.jit(sample, static_argnums=1)(logits_BV, sampling, jax.random.key(0))
    return np.bincount(tokens_B, minlength=len(P_V)) / DRAWS


def check_frequencies(found_V: np.ndarray, expected_V: list[float]) -> None:
    """Pearson's statistic is below the 99.9% point of chi-square with up to 5 degrees of freedom, 20.5."""
    expected = np.array(expected_V)
    assert not found_V[expected == 0].any()
    drawn = expected > 0
    assert DRAWS * ((found_V - expected)[drawn] ** 2 / expected[drawn]).sum() < 20.5


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, P_V),
        # squares 0.0025 0.16 0.0225 0.01 0.09, sum 0.285
        ({"temperature": 0.5}, [0.0025 / 0.285, 0.16 / 0.285, 0.0225 / 0.285, 0.01 / 0.285, 0.09 / 0.285, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 0, 3 / 7, 0]),
        ({"top_k": 1}, [0, 1, 0, 0, 0, 0]),
        ({"top_k": 100}, P_V),
        ({"top_p": 0.8}, [0, 0.4 / 0.85, 0.15 / 0.85, 0, 0.3 / 0.85, 0]),
        # top-p sees what temperature made: 0.16/0.285 = 0.56 and 0.09/0.285 = 0.32 reach 0.8
        ({"temperature": 0.5, "top_p": 0.8}, [0, 0.64, 0, 0, 0.36, 0]),
        # ... and what top-k left: 0.4/0.85 and 0.3/0.85 reach 0.8
        ({"top_k": 3, "top_p": 0.8}, [0, 4 / 7, 0, 0, 3 / 7, 0]),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_asked_for(settings: dict[str, Any], expected: list[float]) -> None:
    check_frequencies(distribution(**settings), expected)


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits_BV = jax.random.normal(jax.random.key(1), (50, 30))
    tokens_B = sample(logits_BV, Sampling(temperature=0, top_k=3, top_p=0.5), jax.random.key(2))
    np.testing.assert_array_equal(tokens_B, np.argmax(logits_BV, axis=-1))


def test_rows_are_drawn_independently_and_a_key_draws_the_same_again() -> None:
    logits_BV = jnp.zeros((64, 50))
    first = sample(logits_BV, Sampling(), jax.random.key(0))
    np.testing.assert_array_equal(first, sample(logits_BV, Sampling(), jax.random.key(0)))
    assert len(np.unique(first)) > 20 and (first != sample(logits_BV, Sampling(), jax.random.key(1))).any()


def test_top_k_keeps_ties_with_the_kth() -> None:
    logits_BV = jnp.array([[1.0, 3.0, 2.0, 2.0], [4.0, 3.0, 2.0, 1.0]])
    kept = keep_top_k(logits_BV, 2)
    np.testing.assert_array_equal(kept > -jnp.inf, [[False, True, True, True], [True, True, False, False]])


@pytest.mark.parametrize(("p", "count"), [(1e-6, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.86, 4), (0.96, 5)])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(p: float, count: int) -> None:
    kept_1V = np.asarray(keep_top_p(LOGITS_1V, p))
    expected = np.isin(np.arange(len(P_V)), np.argsort(-P_V)[:count])
    np.testing.assert_array_equal(kept_1V[0] > -np.inf, expected)
    np.testing.assert_array_equal(kept_1V[0][expected], LOGITS_1V[0][expected])


def test_top_p_cuts_each_row_by_its_own_probabilities() -> None:
    kept = keep_top_p(jnp.log(jnp.array([[0.25, 0.25, 0.25, 0.25], [0.97, 0.01, 0.01, 0.01]])), 0.7)
    assert (kept > -jnp.inf).sum(-1).tolist() == [3, 1]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_k": -1},
        {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": float("nan")},
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ConfigError, match=f"{name} = {value}: it must be"):
        Sampling(**settings)
