"""Decoding with a draft against the target alone: the same greedy text, and the same distribution of drawn
texts.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference import rounds
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.rounds import judge
from jaxgpt.inference.sampling import Sampling, draw
from jaxgpt.inference.served import Served
from jaxgpt.inference.speculative import SpeculativeDecoder
from jaxgpt.model.gpt import Params, define
from jaxgpt.parallel import mesh_of, shardings

GREEDY = Sampling(temperature=0)
WILD = Sampling(temperature=1.2, top_k=20, top_p=0.95, min_p=0.01)
PROMPTS = [np.random.default_rng(n).integers(0, 61, n).tolist() for n in range(1, 21)]
NEW = 12  # the longest prompt with these fills the context, 32
SMALL = GPTConfig(vocab=61, context=40, layers=1, heads=2, width=8, position="rotary", vocab_multiple=16)


@pytest.fixture(scope="module")
def target_params(params: Params) -> Params:
    """The shared ones with large position embeddings, or greedy text is one token for ever."""
    return params | {"wpe": {"embedding": 10 * params["wpe"]["embedding"]}}


@pytest.fixture(scope="module")
def target(config: GPTConfig, target_params: Params) -> Served:
    return Served.of(config, target_params)


@pytest.fixture(scope="module")
def draft_params() -> Params:
    """A model of another shape, which knows nothing of the target."""
    return jax.tree.map(lambda leaf: 5 * leaf, jax.jit(define(SMALL).init)(jax.random.key(3)))


@pytest.fixture(scope="module")
def draft(draft_params: Params) -> Served:
    return Served.of(SMALL, draft_params)


@pytest.fixture(scope="module")
def greedy(target: Served) -> list[list[int]]:
    """The target's own greedy texts."""
    requests = [Request(prompt=tuple(prompt), max_new_tokens=NEW, sampling=GREEDY) for prompt in PROMPTS]
    found: list[list[int]] = [[] for _ in requests]
    for place, new in Engine(target, slots=4).run(requests):
        assert new.token is not None
        found[place].append(new.token)
    return found


def texts(decoder: SpeculativeDecoder, prompts: list[list[int]], **more: Any) -> list[list[int]]:
    """What each prompt is continued with."""
    found: list[list[int]] = [[] for _ in prompts]
    for news in decoder.rounds(prompts, **({"max_new_tokens": NEW, "seeds": range(len(prompts))} | more)):
        for text, new in zip(found, news, strict=True):
            text += new
    return found


def slow(*values: Any) -> list[Any]:
    """Values that only the slow tests try."""
    return [pytest.param(value, marks=pytest.mark.exhaustive) for value in values]


@pytest.mark.parametrize("lookahead", [1, 3, *slow(2, 4, 5)])
def test_greedy_text_is_the_targets_own_whatever_the_draft(
    target: Served, draft: Served, greedy: list[list[int]], lookahead: int
) -> None:
    decoder = SpeculativeDecoder(target, draft, lookahead=lookahead)
    assert texts(decoder, PROMPTS, sampling=GREEDY) == greedy
    assert decoder.statistics.tokens == 20 * NEW and decoder.statistics.accepted_share < 0.5
    assert len({tuple(text) for text in greedy}) > 10 and np.mean([len(set(text)) for text in greedy]) > 4


@pytest.mark.parametrize("lookahead", [3, *slow(1, 2, 4, 5)])
def test_the_target_as_its_own_draft_has_everything_accepted(
    target: Served, greedy: list[list[int]], lookahead: int
) -> None:
    decoder = SpeculativeDecoder(target, target, lookahead=lookahead)
    assert texts(decoder, PROMPTS, sampling=GREEDY) == greedy
    assert decoder.statistics.accepted_share == 1
    rounds = -(-(NEW - 1) // (lookahead + 1))  # the prompt's pass gives the first token
    assert decoder.statistics.target_passes == 20 * (1 + rounds)
    assert decoder.statistics.passes_per_token == (1 + rounds) / NEW


@pytest.mark.slow
def test_drawn_from_itself_nearly_everything_is_accepted(target: Served) -> None:
    """p and q are computed in passes of different shapes: they differ by rounding."""
    decoder = SpeculativeDecoder(target, target, lookahead=3)
    texts(decoder, PROMPTS, sampling=WILD)
    assert decoder.statistics.accepted_share > 0.99


# --- the distribution

TINY = GPTConfig(vocab=6, context=8, layers=1, heads=2, width=8, vocab_multiple=8)
START, DRAWS, DRAWN = [2, 5], 20_000, 3
Pair = tuple[Params, Params]  # of two models of TINY's shape: the target and the draft
CELLS = list(itertools.product(range(TINY.vocab), repeat=DRAWN))


def tiny_of(seed: int) -> Params:
    return jax.tree.map(lambda leaf: 4 * leaf, jax.jit(define(TINY).init)(jax.random.key(seed)))


@pytest.fixture(scope="module")
def tiny_pair() -> Pair:
    return tiny_of(11), tiny_of(5)


def exact(params: Params, sampling: Sampling) -> np.ndarray:
    """[216]: the probability of each text of three tokens, by full forward passes and filters of our own."""
    tokens_BT = np.array([[*START, *cell] for cell in CELLS], np.int32)
    logits_BTV = np.asarray(jax.jit(define(TINY).apply)(params, tokens_BT), np.float64)[
        :, len(START) - 1 : -1
    ]
    weights_BTV = np.exp(logits_BTV / sampling.temperature)
    if sampling.top_k:
        weights_BTV[weights_BTV < np.sort(weights_BTV)[..., -sampling.top_k, None]] = 0
    p_BTV = weights_BTV / weights_BTV.sum(-1, keepdims=True)
    return np.take_along_axis(p_BTV, np.array(CELLS)[..., None], axis=-1)[..., 0].prod(1)


def drawn(target: Params, draft: Params, sampling: Sampling, lookahead: int) -> np.ndarray:
    """[216]: how many of DRAWS texts were each."""
    decoder = SpeculativeDecoder(Served.of(TINY, target), Served.of(TINY, draft), lookahead=lookahead)
    found = texts(decoder, [START] * DRAWS, max_new_tokens=DRAWN, sampling=sampling, seeds=range(DRAWS))
    assert 0.2 < decoder.statistics.accepted_share < 0.9  # or one branch of the algorithm is not seen
    return np.bincount(np.array(found) @ [36, 6, 1], minlength=len(CELLS))


def surprise(counts: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's statistic over its 99.9% point: above 1 the counts are not from this distribution.

    Cells of fewer than 5 expected are taken together. The point is Wilson and Hilferty's (1931)
    approximation.
    """
    assert not counts[expected == 0].any()
    small = expected * DRAWS < 5
    counts, expected = (np.append(cells[~small], cells[small].sum()) for cells in (counts, expected * DRAWS))
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    assert freedom >= 10
    point = freedom * (1 - 2 / (9 * freedom) + 3.0902 * np.sqrt(2 / (9 * freedom))) ** 3
    return float(((counts - expected) ** 2 / expected).sum() / point)


@pytest.mark.parametrize(
    ("sampling", "lookahead"),
    [
        pytest.param(Sampling(), 1, marks=pytest.mark.exhaustive),
        (Sampling(), 2),
        pytest.param(Sampling(), 4, marks=pytest.mark.exhaustive),
        (Sampling(temperature=0.7), 2),
        (Sampling(temperature=1.3, top_k=4), 1),
        pytest.param(Sampling(temperature=1.3, top_k=4), 3, marks=pytest.mark.exhaustive),
    ],
)
def test_texts_are_distributed_as_the_targets(tiny_pair: Pair, sampling: Sampling, lookahead: int) -> None:
    assert surprise(drawn(*tiny_pair, sampling, lookahead), exact(tiny_pair[0], sampling)) < 1


@pytest.mark.slow
def test_the_drafts_own_texts_are_not(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: it does for the draft alone, and where the token after a refusal is drawn from
    p.
    """
    target, draft = tiny_pair
    own = np.random.default_rng(0).multinomial(DRAWS, exact(draft, Sampling()))
    assert surprise(own, exact(draft, Sampling())) < 1 < surprise(own, exact(target, Sampling()))

    def careless(p_BTV, q_BTV, proposed_BT, accept_key_B, draw_key_B, platform):
        accepted_B, _ = judge(p_BTV, q_BTV, proposed_BT, accept_key_B, draw_key_B, platform)
        p_BV = jnp.take_along_axis(p_BTV, accepted_B[:, None, None], axis=1)[:, 0]
        return accepted_B, draw(draw_key_B, jnp.log(p_BV), platform)

    monkeypatch.setattr(rounds, "judge", careless)
    rounds.one_round.clear_cache()
    try:
        assert surprise(drawn(*tiny_pair, Sampling(), 2), exact(target, Sampling())) > 1
    finally:
        rounds.one_round.clear_cache()


def test_judging_by_hand() -> None:
    """q always proposes 0. Where p is sure of 0 it stays; where p is sure of another, that is drawn."""
    zero, one, two = jnp.eye(3)
    q_BTV = jnp.stack([jnp.stack([zero, zero])] * 4)
    p_BTV = jnp.stack(
        [
            jnp.stack([zero, zero, two]),
            jnp.stack([zero, one, two]),
            jnp.stack([two, zero, one]),
            jnp.stack([zero, 0.5 * (one + two), zero]),
        ]
    )
    key_B = jax.random.split(jax.random.key(0), 4)
    accepted_B, drawn_B = judge(p_BTV, q_BTV, jnp.zeros((4, 2), int), key_B, key_B, "cpu")
    assert accepted_B.tolist() == [2, 1, 0, 1]
    assert drawn_B[:3].tolist() == [2, 1, 2] and drawn_B[3] in (1, 2)


# --- requests


@pytest.mark.slow
def test_the_same_seed_gives_the_same_text_whatever_stands_beside_it(target: Served, draft: Served) -> None:
    decoder = SpeculativeDecoder(target, draft, lookahead=2)
    together = texts(decoder, [PROMPTS[4]] * 3, sampling=WILD, seeds=[7, 8, 7])
    assert together[0] == together[2] != together[1]
    alone = list(decoder.stream(PROMPTS[4], max_new_tokens=NEW, sampling=WILD, seed=7))
    assert alone == together[0]
    assert texts(decoder, [PROMPTS[15], PROMPTS[0], PROMPTS[4]], sampling=WILD, seeds=[1, 2, 7])[2] == alone


@pytest.mark.slow
def test_the_end_token_ends_the_text_and_is_not_part_of_it(
    target: Served, draft: Served, greedy: list[list[int]]
) -> None:
    end = greedy[7][5]
    expected = [text[: text.index(end)] if end in text else text for text in greedy]
    for helper in (draft, target):
        decoder = SpeculativeDecoder(target, helper, lookahead=3, ends={end})
        assert texts(decoder, PROMPTS, sampling=GREEDY) == expected
        assert decoder.statistics.tokens == sum(map(len, expected)) + sum(end in text for text in greedy)
    assert decoder.statistics.accepted_share == 1
    both = SpeculativeDecoder(target, draft, lookahead=3, ends={end, greedy[7][2]})
    assert texts(both, [PROMPTS[7]], sampling=GREEDY) == [greedy[7][: min(map(greedy[7].index, both._ends))]]


@pytest.mark.slow
def test_texts_may_fill_the_smaller_context_to_its_end(target: Served, draft: Served) -> None:
    """The last round reads past it, and nothing of that may reach the texts: on both sides of the pair."""
    prompts = np.random.default_rng(0).integers(0, 61, (8, 12)).tolist()
    for first, second in ((target, draft), (draft, target)):
        decoder = SpeculativeDecoder(first, second, lookahead=5)
        assert decoder.context == 32
        requests = [Request(prompt=tuple(prompt), max_new_tokens=20, sampling=GREEDY) for prompt in prompts]
        expected: list[list[Any]] = [[] for _ in prompts]
        for place, new in Engine(first, slots=8).run(requests):
            expected[place].append(new.token)
        assert texts(decoder, prompts, max_new_tokens=20, sampling=GREEDY) == expected


@pytest.mark.slow
def test_a_mesh_gives_the_tokens_of_one_device(
    config: GPTConfig, target_params: Params, draft_params: Params, greedy: list[list[int]]
) -> None:
    mesh = mesh_of(MeshConfig(data=1, fsdp=2, tensor=4))
    placed = jax.device_put(target_params, shardings(target_params, mesh))
    pair = Served.of(config, placed), Served.of(SMALL, draft_params, mesh=mesh)
    decoder = SpeculativeDecoder(*pair, lookahead=3)
    assert texts(decoder, PROMPTS[:3], sampling=GREEDY) == greedy[:3]


def test_nothing_asked_for_is_nothing_made(target: Served, draft: Served) -> None:
    decoder = SpeculativeDecoder(target, draft)
    assert list(decoder.stream([1], max_new_tokens=0)) == []
    assert list(decoder.stream([1], max_new_tokens=1, sampling=GREEDY)) != []
    counts = decoder.statistics
    assert (counts.tokens, counts.target_passes, counts.proposed, counts.accepted_share) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": [[1], []]}, "empty prompt"),
        ({"prompts": [], "seeds": []}, "empty prompt"),
        ({"seeds": [1]}, "1 seeds: there are 2 prompts"),
        ({"seeds": [0, 2**32]}, "seeds = "),
        ({"max_new_tokens": -1}, "max_new_tokens = -1"),
        ({"max_new_tokens": 31}, "max_new_tokens = 31 after a prompt of 2 tokens: the smaller context is 32"),
        ({"sampling": Sampling(presence_penalty=1)}, "penalties"),
    ],
)
def test_impossible_requests_are_refused_by_name(
    target: Served, draft: Served, change: dict[str, Any], said: str
) -> None:
    decoder = SpeculativeDecoder(target, draft)
    with pytest.raises(ConfigError, match=said):
        next(decoder.rounds(**({"prompts": [[1], [2, 3]], "max_new_tokens": 3, "seeds": [0, 1]} | change)))


def test_pairs_that_cannot_work_are_refused(
    target: Served, draft: Served, draft_params: Params, tiny_pair: Pair
) -> None:
    with pytest.raises(ConfigError, match="a draft of 6 token ids: the target has 61"):
        SpeculativeDecoder(target, Served.of(TINY, tiny_pair[0]))
    with pytest.raises(
        ConfigError, match=r"a draft on other devices .* Served\.of\(\.\.\., mesh=target\.mesh\)"
    ):
        SpeculativeDecoder(target, Served.of(SMALL, draft_params, mesh=mesh_of(MeshConfig())))
    with pytest.raises(ConfigError, match="lookahead = 0"):
        SpeculativeDecoder(target, draft, lookahead=0)
    with pytest.raises(DataError, match="token id 61"):
        next(SpeculativeDecoder(target, draft).stream([61], max_new_tokens=1))
