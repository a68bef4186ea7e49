"""Beam search against greedy decoding, against every possible text, and against full forward passes."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference import beam as beam_module
from jaxgpt.inference.beam import Beam, Candidates, beam_search
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
from jaxgpt.model.gpt import Params, define
from jaxgpt.parallel import mesh_of, shardings

TINY = GPTConfig(vocab=5, context=16, layers=1, heads=2, width=8, vocab_multiple=8)
PROMPT, NEW = [3, 1], 4
TEXTS = list(itertools.product(range(TINY.vocab), repeat=NEW))


@pytest.fixture(scope="module")
def params(params: Params) -> Params:  # type: ignore[no-redef]
    """The shared ones with large position embeddings, or greedy text is one token for ever."""
    return params | {"wpe": {"embedding": 10 * params["wpe"]["embedding"]}}


@pytest.fixture(scope="module")
def served(config: GPTConfig, params: Params) -> Served:
    return Served.of(config, params)


@pytest.fixture(scope="module")
def tiny_params() -> Params:
    """Parameters with which the greedy text is far from the most probable one."""
    return jax.tree.map(lambda leaf: 4 * leaf, jax.jit(define(TINY).init)(jax.random.key(11)))


@pytest.fixture(scope="module")
def tiny(tiny_params: Params) -> Served:
    return Served.of(TINY, tiny_params)


@pytest.fixture(scope="module")
def logprobs_of_texts(tiny_params: Params) -> np.ndarray:
    """[625, 4]: log-probability of each token of each of TEXTS, by full forward passes."""
    tokens_BT = np.array([[*PROMPT, *text] for text in TEXTS], np.int32)
    logprobs_BTV = jax.nn.log_softmax(jax.jit(define(TINY).apply)(tiny_params, tokens_BT))[
        :, len(PROMPT) - 1 : -1
    ]
    picked = jnp.take_along_axis(logprobs_BTV, tokens_BT[:, len(PROMPT) :, None], axis=-1)
    return np.asarray(picked[..., 0], np.float64)


def search(tiny: Served, beams: int, **more: Any) -> list[Beam]:
    return beam_search(tiny, PROMPT, beams=beams, max_new_tokens=NEW, **more)


def best_ended(logprobs_BT: np.ndarray, end: int, length_penalty: float) -> dict[tuple[int, ...], float]:
    """The score of every text there is when `end` ends one, its tokens with the end token, by enumeration."""
    scores = {}
    for text, logprobs_T in zip(TEXTS, logprobs_BT, strict=True):
        length = text.index(end) + 1 if end in text else NEW
        scores[text[:length]] = logprobs_T[:length].sum() / length**length_penalty
    return dict(sorted(scores.items(), key=lambda pair: -pair[1]))


@pytest.mark.parametrize("length", [1, 5, 17])
def test_one_beam_is_greedy_decoding(config: GPTConfig, served: Served, length: int) -> None:
    prompt = np.random.default_rng(length).integers(0, config.vocab, length).tolist()
    request = Request(prompt=tuple(prompt), max_new_tokens=12, sampling=Sampling(temperature=0))
    greedy = [new.token for _, new in Engine(served, slots=1).run([request])]
    (beam,) = beam_search(served, prompt, beams=1, max_new_tokens=12)
    assert list(beam.tokens) == greedy and len(set(greedy)) > 2 and not beam.finished
    (ended,) = beam_search(served, prompt, beams=1, max_new_tokens=12, ends={greedy[4]}, length_penalty=0)
    assert list(ended.tokens) == greedy[: greedy.index(greedy[4])] and ended.finished


def test_enough_beams_find_the_most_probable_text_of_all(tiny: Served, logprobs_of_texts: np.ndarray) -> None:
    total_B = logprobs_of_texts.sum(1)
    order = np.argsort(-total_B)[:10]
    found = search(tiny, TINY.vocab ** (NEW - 1), results=10)
    assert [beam.tokens for beam in found] == [TEXTS[n] for n in order]
    np.testing.assert_allclose([beam.logprob for beam in found], total_B[order], atol=1e-5)
    np.testing.assert_allclose([beam.score for beam in found], total_B[order] / NEW, atol=1e-5)
    assert search(tiny, 1)[0].tokens != found[0].tokens  # or greedy decoding would do


def test_more_beams_find_nothing_worse(tiny: Served) -> None:
    scores = [search(tiny, beams)[0].score for beams in (1, 2, 5, 25, 125)]
    # The same text may get a last digit more or less from products of another number of rows.
    assert (np.diff(scores) > -1e-6).all() and scores[0] < scores[-1] - 0.01


@pytest.mark.parametrize("end", range(TINY.vocab))
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0, -1.0])
def test_enough_beams_find_the_best_texts_with_an_end_token(
    tiny: Served, logprobs_of_texts: np.ndarray, end: int, length_penalty: float
) -> None:
    expected = list(best_ended(logprobs_of_texts, end, length_penalty).items())[:8]
    for results in (1, 2, 8):  # the fewer, the sooner the search is decided
        found = search(
            tiny, TINY.vocab ** (NEW - 1), ends={end}, length_penalty=length_penalty, results=results
        )
        written = [(*beam.tokens, end) if beam.finished else beam.tokens for beam in found]
        assert written == [text for text, _ in expected[:results]]
        np.testing.assert_allclose(
            [beam.score for beam in found], [score for _, score in expected[:results]], atol=1e-5
        )


def test_a_logprob_is_the_sum_over_the_text_by_a_full_forward_pass(config: GPTConfig, params: Params) -> None:
    """A prompt longer than one bucket, and beams that change parents: the cache's rows must move along."""
    prompt = np.random.default_rng(3).integers(0, config.vocab, 18).tolist()
    found = beam_search(Served.of(config, params), prompt, beams=6, max_new_tokens=14, results=6)
    assert len({beam.tokens for beam in found}) == 6
    assert [beam.score for beam in found] == sorted([beam.score for beam in found], reverse=True)
    tokens_BT = np.array([[*prompt, *beam.tokens] for beam in found], np.int32)
    logprobs_BTV = jax.nn.log_softmax(define(config).apply(params, tokens_BT))[:, 17:-1]
    expected_B = jnp.take_along_axis(logprobs_BTV, tokens_BT[:, 18:, None], axis=-1)[..., 0].sum(1)
    np.testing.assert_allclose([beam.logprob for beam in found], expected_B, atol=1e-4)


def test_length_penalty_by_hand() -> None:
    """-2 nats over 2 tokens against -2.7 over 3: the first is better as sums, the second as means."""
    texts: list[tuple[int, ...]] = [(7, 8), (7,)]
    found = Candidates(np.array([-2.0, -2.7]), np.array([1, 0]), np.array([9, 9]))
    for penalty, first in ((0.0, (7,)), (1.0, (7, 8)), (0.5, (7,))):  # at 0.5: -1.414 and -1.559
        ended = [
            beam_module._sorted_out(
                Candidates(*(leaf[n : n + 1] for leaf in found)), texts, 2, {9}, length**penalty
            )[0][0]
            for n, length in ((0, 2), (1, 3))
        ]
        assert beam_module._best(ended, 1)[0].tokens == first
    assert ended[0] == Beam((7,), -2.0, -2.0 / 2**0.5, True)


@pytest.mark.parametrize(
    ("penalty", "score", "decided"),
    [  # what runs has -0.9 nats, and 2 to 4 tokens at its end
        (0.0, -0.8, True),
        (0.0, -1.0, False),
        (1.0, -0.2, True),
        (1.0, -0.3, False),  # -0.9 / 4 = -0.225
        (-1.0, -1.7, True),
        (-1.0, -2.0, False),  # -0.9 * 2 = -1.8
    ],
)
def test_it_is_decided_once_no_length_lets_a_running_beam_win(
    penalty: float, score: float, decided: bool
) -> None:
    finished, running = [Beam((), score, score, True)], beam_module._Rows([(1,)], [-0.9], [0])
    assert beam_module._decided(finished, running, 1, 2, 4, penalty) == decided
    assert not beam_module._decided(finished, running, 2, 2, 4, penalty)  # one of two results is missing


def test_the_search_ends_where_nothing_better_can_come(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, extend = [0], beam_module._extend
    monkeypatch.setattr(
        beam_module, "_extend", lambda *a, **k: (steps.__setitem__(0, steps[0] + 1), extend(*a, **k))[1]
    )
    most_probable = search(tiny, 25)[0].tokens
    steps[0] = 0
    (beam,) = beam_search(tiny, PROMPT, beams=5, max_new_tokens=14, ends={most_probable[0]}, length_penalty=0)
    assert beam.tokens == () and beam.finished and steps[0] < 13


def test_several_end_tokens_leave_enough_beams(tiny: Served, logprobs_of_texts: np.ndarray) -> None:
    """The two most probable tokens end a text, which is a bad one as it is short: a third one goes on."""
    first = np.argsort(
        [
            -np.logaddexp.reduce(logprobs_of_texts.sum(1)[[t[0] == n for t in TEXTS]])
            for n in range(TINY.vocab)
        ]
    )
    (beam,) = search(tiny, 1, ends=set(first[:2].tolist()), length_penalty=3.0)
    assert beam.tokens[0] == first[2] and len(beam.tokens) > 1


def test_a_vocabulary_of_one_ends() -> None:
    config = GPTConfig(vocab=1, context=8, layers=1, heads=1, width=4, vocab_multiple=1)
    served = Served.of(config, jax.jit(define(config).init)(jax.random.key(0)))
    (beam,) = beam_search(served, [0], beams=1, max_new_tokens=5, ends={0})
    assert beam == Beam((), 0.0, 0.0, True)
    found = beam_search(served, [0], beams=3, max_new_tokens=5, results=3)
    assert [beam.tokens for beam in found] == [(0,) * 5]


@pytest.mark.slow
def test_any_mix_of_lengths_compiles_few_programs() -> None:
    config = GPTConfig(vocab=13, context=300, layers=1, heads=2, width=8, vocab_multiple=8)
    served = Served.of(config, jax.jit(define(config).init)(jax.random.key(0)))
    before = beam_module._start._cache_size(), beam_module._extend._cache_size()
    for length in (1, 9, 16, 20, 31, 60, 100, 126, 127, 130, 200, 254, 255, 298):
        beam_search(served, [1] * length, beams=3, max_new_tokens=2)
    # Buckets of 16, 32, 64, 128, 256 and 300 tokens; spans of 128, 256 and 300: two buckets meet two of them.
    assert beam_module._start._cache_size() - before[0] <= 6 + 2
    assert beam_module._extend._cache_size() - before[1] <= 3


@pytest.mark.slow
def test_a_mesh_finds_what_one_device_does(config: GPTConfig, params: Params) -> None:
    placed = jax.device_put(params, shardings(params, mesh_of(MeshConfig(data=1, fsdp=2, tensor=4))))
    one, mesh = (
        beam_search(Served.of(config, p), [5, 9], beams=3, max_new_tokens=6, results=3)
        for p in (params, placed)
    )
    assert [beam.tokens for beam in mesh] == [beam.tokens for beam in one]
    np.testing.assert_allclose([beam.logprob for beam in mesh], [beam.logprob for beam in one], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": []}, "empty prompt"),
        ({"beams": 0}, "beams = 0"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"length_penalty": float("nan")}, "length_penalty = nan"),
        ({"results": 0}, "results = 0"),
        ({"results": 4}, "results = 4: it must be from 1 to the number of beams, 3"),
        ({"max_new_tokens": 15}, "max_new_tokens = 15 after a prompt of 2 tokens: the context is 16"),
    ],
)
def test_impossible_searches_are_refused_by_name(tiny: Served, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        beam_search(tiny, **({"prompt": PROMPT, "beams": 3, "max_new_tokens": 2} | change))


def test_ids_outside_the_vocabulary_are_refused(tiny: Served) -> None:
    with pytest.raises(DataError, match="token id 5"):
        beam_search(tiny, [5], beams=1, max_new_tokens=1)
