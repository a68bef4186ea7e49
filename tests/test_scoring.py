"""Scores of spans against a full forward pass of each text alone, whatever they are read beside."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from rounding import rounded_to_int8

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference import scoring
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.scoring import score_spans
from jaxgpt.inference.served import Served
from jaxgpt.model.gpt import Params, define
from jaxgpt.parallel import mesh_of

Span = tuple[list[int], int]


def drawn(count: int, longest: int, vocab: int = 61) -> list[Span]:
    rng = np.random.default_rng(count)
    sizes = rng.integers(1, longest + 1, count)
    return [(rng.integers(0, vocab, size).tolist(), int(rng.integers(1, size + 1))) for size in sizes]


@functools.cache
def full_forward(config: GPTConfig) -> jax.stages.Wrapped:
    return jax.jit(define(config).apply)


def alone(config: GPTConfig, params: Params, span: Span) -> tuple[np.ndarray, np.ndarray]:
    """[T, V] log-probabilities at the places of the span's tokens, and these tokens."""
    ids, start = span
    # One shape for all texts, because later tokens cannot change earlier logits.
    tokens_1T = np.zeros((1, config.context), np.int32)
    tokens_1T[0, : len(ids) - 1] = ids[:-1]
    logits_TV = full_forward(config)(params, tokens_1T)[0]
    return np.asarray(jax.nn.log_softmax(logits_TV))[start - 1 : len(ids) - 1], np.array(ids[start:], int)


def check(config: GPTConfig, params: Params, served: Served, spans: list[Span]) -> None:
    scores = score_spans(served, spans, alternatives=3)
    assert len(scores) == len(spans)
    for span, score in zip(spans, scores, strict=True):
        logprobs_TV, targets = alone(config, params, span)
        expected_T = np.take_along_axis(logprobs_TV, targets[:, None], axis=1)[:, 0]
        assert score.logprobs_T.shape == score.greedy_T.shape == (len(span[0]) - span[1],)
        np.testing.assert_allclose(score.logprobs_T, expected_T, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(score.greedy_T, logprobs_TV.argmax(-1) == targets)
        assert score.top is not None
        best_TK = np.argsort(-logprobs_TV, axis=-1)[:, :3]
        np.testing.assert_array_equal(score.top[1], best_TK)
        np.testing.assert_allclose(
            score.top[0], np.take_along_axis(logprobs_TV, best_TK, axis=1), rtol=0, atol=1e-5
        )


@pytest.fixture(scope="module")
def params(params: Params) -> Params:  # type: ignore[no-redef]
    """The shared ones with large position embeddings, or greedy text is one token for ever."""
    return params | {"wpe": {"embedding": 10 * params["wpe"]["embedding"]}}


@pytest.fixture(scope="module")
def served(config: GPTConfig, params: Params) -> Served:
    return Served.of(config, params)


def test_many_spans_together_are_scored_as_each_alone(
    config: GPTConfig, params: Params, served: Served
) -> None:
    """Of 1 to 33 tokens: 33 fill the context of 32 with what is read. Two buckets, in any order."""
    check(config, params, served, [*drawn(60, 33), (list(range(33)), 1), (list(range(33)), 33)])


def test_more_than_a_call_of_the_device_takes_are_scored_in_several(
    config: GPTConfig, params: Params, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 128 tokens a call, and chunks of 48 scored tokens, which do not divide them."""
    monkeypatch.setattr(scoring, "TOKENS", 128)
    monkeypatch.setattr(scoring, "CHUNK", 48)
    scoring._score.clear_cache()
    check(config, params, served, [(ids, 1) for ids, _ in drawn(40, 33)])
    scoring._score.clear_cache()


def test_what_greedy_decoding_writes_is_greedy_and_what_it_does_not_is_not(served: Served) -> None:
    prompt = (5, 9, 2)
    request = Request(prompt=prompt, max_new_tokens=12, sampling=Sampling(temperature=0))
    text = [new.token for _, new in Engine(served, slots=1).run([request]) if new.token is not None]
    assert len(set(text)) > 3
    other = [*text[:5], (text[5] + 1) % 61, *text[6:]]
    right, wrong = score_spans(served, [([*prompt, *text], 3), ([*prompt, *other], 3)])
    assert right.greedy_T.all() and right.top is None
    assert wrong.greedy_T[:5].all() and not wrong.greedy_T[5]
    np.testing.assert_allclose(right.logprobs_T[:5], wrong.logprobs_T[:5], atol=1e-6)


def test_barred_ids_are_not_greedy_as_the_first_scored_token_of_a_text_alone(
    config: GPTConfig, params: Params, served: Served
) -> None:
    texts = [[5, 9, 2], [7, 7, 30, 4]]
    spans = []
    for ids in texts:  # three tokens more: the second best one, and then the best ones
        for rank in (2, 1, 1):
            logprobs_TV, _ = alone(config, params, ([*ids, 0], len(ids)))
            ids = [*ids, int(np.argsort(-logprobs_TV[0])[rank - 1])]
        spans.append((ids, len(ids) - 3))
    plain = score_spans(served, spans)
    assert [score.greedy_T.tolist() for score in plain] == [[False, True, True]] * 2
    best = [int(np.argmax(alone(config, params, span)[0][0])) for span in spans]
    barred = score_spans(served, spans, barred={*best, spans[0][0][-1], spans[0][0][-2]} - {spans[0][0][3]})
    assert barred[0].greedy_T.tolist() == [True, True, True]
    for one, other in zip(plain, barred, strict=True):
        np.testing.assert_array_equal(one.logprobs_T, other.logprobs_T)
    ids = {*best, spans[0][0][-1], spans[0][0][-2]} - {spans[0][0][3]}
    many = score_spans(served, spans * 50, barred=ids)  # more tokens than have logits at one time
    assert [score.greedy_T.tolist() for score in many] == [score.greedy_T.tolist() for score in barred] * 50


@pytest.mark.slow
def test_int8_weights_and_a_mesh_are_scored_too(config: GPTConfig, params: Params) -> None:
    spans = drawn(10, 30)
    check(config, rounded_to_int8(params), Served.of(config, params, int8=True), spans)
    mesh = mesh_of(MeshConfig(data=2, fsdp=2, tensor=2))
    check(config, params, Served.of(config, params, mesh=mesh), spans)


@pytest.mark.slow
def test_any_mix_of_spans_compiles_few_programs() -> None:
    config = GPTConfig(vocab=61, context=200, layers=1, heads=2, width=8, vocab_multiple=8)
    served = Served.of(config, jax.jit(define(config).init)(jax.random.key(0)))
    scoring._score.clear_cache()
    for count in (1, 2, 3, 7, 20, 50, 100, 400):
        score_spans(served, drawn(count, 201))
    # Buckets of 16, 32, 64, 128 and 200 tokens; 1, 4, 16, 64 rows or as many as fit: 256, 128, 64, 32, 20.
    assert 5 < scoring._score._cache_size() <= 5 + 5 + 4 + 4 + 4


def test_a_longer_text_than_a_call_takes_is_scored_alone(
    config: GPTConfig, params: Params, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TOKENS", 8)
    check(config, params, served, drawn(3, 33))


def test_padding_rows_and_other_texts_change_nothing_but_rounding(served: Served) -> None:
    spans = drawn(30, 33)
    told: list[tuple[int, int]] = []
    together = score_spans(served, spans, show=lambda *counts: told.append(counts))
    assert told[0] == (0, len(spans)) and told[-1] == (len(spans), len(spans)) and told == sorted(told)
    for span, score in zip(spans, together, strict=True):
        (single,) = score_spans(served, [span])
        np.testing.assert_allclose(single.logprobs_T, score.logprobs_T, rtol=0, atol=1e-5)


def test_nothing_to_score_is_nothing(served: Served) -> None:
    assert score_spans(served, []) == []
    (score,) = score_spans(served, [([3, 4], 2)], alternatives=5)
    assert score.logprobs_T.shape == (0,) and score.top is not None and score.top[0].shape == (0, 5)


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (
            ([3, 4], 0),
            "text 1, 2 tokens scored from 0 on: 1 to 33 tokens can be scored, from the second one on",
        ),
        (([3, 4], 3), "text 1, 2 tokens scored from 3 on"),
        (([], 1), "text 1, 0 tokens"),
        (([1] * 34, 3), "text 1, 34 tokens"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_its_number(served: Served, span: Span, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        score_spans(served, [([1, 2], 1), span])


def test_ids_and_alternatives_that_are_not_there_are_refused(config: GPTConfig, served: Served) -> None:
    with pytest.raises(DataError, match="token id 61"):
        score_spans(served, [([1, 61], 1)])
    with pytest.raises(ConfigError, match="alternatives = 21"):
        score_spans(served, [([1, 2], 1)], alternatives=21)
    few = dataclasses.replace(config, vocab=5)
    assert score_spans(
        Served.of(few, jax.jit(define(few).init)(jax.random.key(0))), [([1, 2], 1)], alternatives=20
    )[0].top[0].shape == (1, 5)
