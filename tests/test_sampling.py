"""Drawing tokens: each filter by hand, and the drawn frequencies against the exact distribution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.errors import ConfigError
from jaxgpt.inference.sampling import (
    Plan,
    Sampling,
    Seen,
    choose,
    filtered,
    keep_top_k,
    keep_top_p,
    penalised,
    settings_of,
)

# A row of logits out of order, so that sorting must be undone; the last is an id past the vocabulary.
P_V = np.array([0.05, 0.4, 0.15, 0.1, 0.3, 0.0])
with np.errstate(divide="ignore"):
    LOGITS_1V = jnp.asarray(np.log(P_V)[None], jnp.float32)

DRAWS, FEWER_DRAWS = 20_000, 5_000


def chosen(logits_BV: jax.Array, sampling: Sampling, seen: Seen | None = None, first: int = 0) -> np.ndarray:
    """A token of each row, row n drawn with seed first + n."""
    rows = len(logits_BV)
    drawing = (
        settings_of([sampling] * rows),
        jnp.arange(first, first + rows, dtype=jnp.uint32),
        jnp.zeros(rows, int),
    )
    return np.asarray(
        jax.jit(choose, static_argnames="plan")(
            logits_BV, *drawing, plan=Plan.of([sampling], "cpu"), seen=seen
        )
    )


def distribution(**settings: Any) -> np.ndarray:
    """The frequencies of DRAWS tokens."""
    logits_BV = jnp.broadcast_to(LOGITS_1V, (DRAWS, len(P_V)))
    return np.bincount(chosen(logits_BV, Sampling(**settings)), minlength=len(P_V)) / DRAWS


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
        ({"min_p": 0.5}, [0, 4 / 7, 0, 0, 3 / 7, 0]),
        ({"min_p": 1.0}, [0, 1, 0, 0, 0, 0]),
        # min-p compares with the most probable token after temperature: 0.5 ** 2 < 0.5625 = (0.3 / 0.4) ** 2
        ({"min_p": 0.5, "temperature": 0.5}, [0, 0.64, 0, 0, 0.36, 0]),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_asked_for(
    settings: dict[str, Any], expected: list[float]
) -> None:
    check_frequencies(distribution(**settings), expected)


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits_BV = jax.random.normal(jax.random.key(1), (50, 30))
    tokens_B = chosen(logits_BV, Sampling(temperature=0, top_k=3, top_p=0.5))
    np.testing.assert_array_equal(tokens_B, np.argmax(logits_BV, axis=-1))


@pytest.mark.parametrize("vocab", [40, pytest.param(2000, marks=pytest.mark.exhaustive)])
def test_rows_of_other_settings_draw_what_each_draws_alone(vocab: int) -> None:
    logits_1V = jax.random.normal(jax.random.key(1), (1, vocab))
    samplings = [
        Sampling(),
        Sampling(temperature=0),
        Sampling(top_k=3),
        Sampling(top_p=0.3),
        Sampling(temperature=3.0),
        Sampling(min_p=0.2),
        Sampling(top_k=1),
    ]
    seeds, numbers = np.arange(7, dtype=np.uint32), np.arange(7, dtype=np.int32)
    together = choose(
        jnp.broadcast_to(logits_1V, (7, vocab)),
        settings_of(samplings),
        seeds,
        numbers,
        Plan.of(samplings, "cpu"),
    )
    for n, sampling in enumerate(samplings):
        alone = choose(
            logits_1V,
            settings_of([sampling]),
            seeds[n : n + 1],
            numbers[n : n + 1],
            Plan.of([sampling], "cpu"),
        )
        assert int(alone[0]) == int(together[n])
    assert len(set(np.asarray(together).tolist())) > 3


def kept_by_sorting(logits_V: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probabilities after temperature and the filters, as their definitions say it; no logits may tie."""
    p_V = np.exp(logits_V / sampling.temperature)
    order_V = np.argsort(-p_V)
    if sampling.top_k:
        p_V[order_V[sampling.top_k :]] = 0
    before_V = np.cumsum(p_V[order_V]) - p_V[order_V]  # the weight of those before each
    p_V[order_V[before_V >= sampling.top_p * p_V.sum()]] = 0
    p_V[p_V < sampling.min_p * p_V.max()] = 0
    return p_V / p_V.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 5},
        {"top_k": 400, "top_p": 0.5},
        {"temperature": 0.5, "top_p": 0.9, "min_p": 0.05},
        *(
            pytest.param(settings, marks=pytest.mark.exhaustive)
            for settings in (
                {"top_k": 400},
                {"top_p": 0.5},
                {"top_p": 0.9},
                {"min_p": 0.3},
                {"min_p": 0.001},
                {"top_k": 5, "top_p": 0.8},
            )
        ),
    ],
)
def test_of_many_tokens_those_are_drawn_that_the_filters_keep(settings: dict[str, Any]) -> None:
    logits_1V = 2 * jax.random.normal(jax.random.key(1), (1, 2000))
    sampling = Sampling(**settings)
    expected_V = kept_by_sorting(np.asarray(logits_1V[0], np.float64), sampling)
    tokens = chosen(jnp.broadcast_to(logits_1V, (FEWER_DRAWS, 2000)), sampling)
    assert (expected_V[tokens] > 0).all()
    kept_V = np.isfinite(filtered(logits_1V, settings_of([sampling]), Plan.of([sampling], "cpu")))[0]
    np.testing.assert_array_equal(kept_V, expected_V > 0)
    for some_V in np.array_split(np.argsort(-expected_V), [1, 2, 5, 20, 100]):  # from the most probable down
        share = float(expected_V[some_V].sum())
        assert (
            abs(np.isin(tokens, some_V).mean() - share)
            <= 4 * np.sqrt(share * (1 - share) / FEWER_DRAWS) + 1e-6
        )


@pytest.mark.slow
def test_an_accelerator_draws_the_same() -> None:
    """By another way, which the plan's platform decides, and not the machine that compiles the program."""
    samplings = [Sampling(), Sampling(top_k=5), Sampling(top_p=0.5), Sampling(top_k=400), Sampling(min_p=0.1)]
    logits_BV = 2 * jax.random.normal(jax.random.key(1), (5, 2000))
    drawing = settings_of(samplings), np.arange(5, dtype=np.uint32), np.arange(5, dtype=np.int32)
    plans = [Plan.of(samplings, platform) for platform in ("cpu", "tpu")]
    here, there = (choose(logits_BV, *drawing, plan) for plan in plans)
    np.testing.assert_array_equal(here, there)
    programs = [jax.make_jaxpr(lambda plan=plan: choose(logits_BV, *drawing, plan))() for plan in plans]
    assert ["top_k" in str(program) for program in programs] == [True, False]


@pytest.mark.slow
def test_ties_past_the_candidates_stay() -> None:
    logits_BV = jnp.where(jnp.arange(2000) % 4 == 0, 1.0, -1.0)[None].repeat(FEWER_DRAWS, axis=0)
    tokens = chosen(logits_BV, Sampling(top_k=5))  # 500 are as probable as the fifth
    assert len(np.unique(tokens)) == 500
    assert (tokens % 4 == 0).all()


def test_a_seed_draws_the_same_again_and_the_next_token_another() -> None:
    logits_BV = jnp.zeros((64, 50))
    np.testing.assert_array_equal(chosen(logits_BV, Sampling()), chosen(logits_BV, Sampling()))
    assert len(np.unique(chosen(logits_BV, Sampling()))) > 20
    assert (chosen(logits_BV, Sampling()) != chosen(logits_BV, Sampling(), first=64)).any()
    drawing = settings_of([Sampling()] * 64), jnp.zeros(64, jnp.uint32)
    numbered = choose(logits_BV, *drawing, jnp.arange(64), Plan(True, False, False, "cpu"))
    assert len(np.unique(numbered)) > 20


@pytest.mark.parametrize(
    "settings", [{"temperature": 1e-38}, {"top_p": 1e-45}, {"temperature": 1e-40, "top_p": 1e-40}]
)
def test_the_smallest_settings_are_greedy(settings: dict[str, Any]) -> None:
    logits_BV = 30 * jax.random.normal(jax.random.key(1), (50, 30))
    np.testing.assert_array_equal(chosen(logits_BV, Sampling(**settings)), np.argmax(logits_BV, axis=-1))


def test_penalties_by_hand() -> None:
    logits_BV = jnp.array([[2.0, -2.0, 2.0, -2.0, 1.0]] * 2)
    seen = Seen(jnp.array([[True, True, False, False, False]] * 2), jnp.array([[0, 0, 3, 1, 0]] * 2))
    settings = settings_of(
        [Sampling(repetition_penalty=2.0), Sampling(presence_penalty=0.5, frequency_penalty=0.25)]
    )
    expected = [[1.0, -4.0, 1.0, -4.0, 1.0], [2.0, -2.0, 2.0 - 0.5 - 0.75, -2.0 - 0.5 - 0.25, 1.0]]
    np.testing.assert_allclose(penalised(logits_BV, settings, seen), expected)
    after = seen.after(jnp.array([4, 4]), jnp.array([True, False]))
    assert after.written.tolist() == [[0, 0, 3, 1, 1], [0, 0, 3, 1, 0]]


def test_top_k_keeps_ties_with_the_kth() -> None:
    logits_BV = jnp.array([[1.0, 3.0, 2.0, 2.0], [4.0, 3.0, 2.0, 1.0]])
    kept = keep_top_k(logits_BV, jnp.array([2, 2]))
    np.testing.assert_array_equal(kept > -jnp.inf, [[False, True, True, True], [True, True, False, False]])


@pytest.mark.parametrize(
    ("p", "count"), [(1e-6, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.86, 4), (0.96, 5)]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(p: float, count: int) -> None:
    kept_1V = np.asarray(keep_top_p(LOGITS_1V, jnp.array([p])))
    expected = np.isin(np.arange(len(P_V)), np.argsort(-P_V)[:count])
    np.testing.assert_array_equal(kept_1V[0] > -np.inf, expected)
    np.testing.assert_array_equal(kept_1V[0][expected], LOGITS_1V[0][expected])


def test_top_p_cuts_each_row_by_its_own_probabilities() -> None:
    kept = keep_top_p(
        jnp.log(jnp.array([[0.25, 0.25, 0.25, 0.25], [0.97, 0.01, 0.01, 0.01]])), jnp.array([0.7, 0.7])
    )
    assert (kept > -jnp.inf).sum(-1).tolist() == [4, 1]  # of four equals, all stay


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": float("nan")},
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ConfigError, match=f"{name} = {value}: it must be"):
        Sampling(**settings)


def test_top_p_of_0_keeps_the_most_probable_token() -> None:
    kept_BV = keep_top_p(jnp.array([[1.0, 3.0, 2.0]]), jnp.array([0.0]))
    np.testing.assert_array_equal(kept_BV, [[-np.inf, 3.0, -np.inf]])
