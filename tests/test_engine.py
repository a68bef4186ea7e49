"""Generation in slots with a cache, against repeated full forward passes of each text alone."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shaken
from rounding import rounded_to_int8

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference import programs
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import NewToken, Request
from jaxgpt.inference.sampling import Plan, Sampling, choose, settings_of
from jaxgpt.inference.served import Served
from jaxgpt.model.gpt import Params, define
from jaxgpt.parallel import mesh_of, shardings

GREEDY = Sampling(temperature=0)
WILD = Sampling(temperature=1.5, top_k=30)
Logits = Callable[[list[int]], jax.Array]


@pytest.fixture(scope="module")
def params(params: Params) -> Params:  # type: ignore[no-redef]
    """The shared ones with large position embeddings, or greedy text is one token for ever."""
    return params | {"wpe": {"embedding": 10 * params["wpe"]["embedding"]}}


@pytest.fixture(scope="module")
def served(config: GPTConfig, params: Params) -> Served:
    return Served.of(config, params)


@pytest.fixture(scope="module")
def logits_after(config: GPTConfig, params: Params) -> Logits:
    """window -> logits [1, V] of the token after it, by a pass over the window alone, without a cache."""
    apply = jax.jit(define(config).apply)

    def after(window: list[int]) -> jax.Array:
        tokens_BT = np.zeros(
            (1, config.context), np.int32
        )  # one shape; later tokens cannot change earlier logits
        tokens_BT[0, : len(window)] = window
        return apply(params, tokens_BT)[:, len(window) - 1]

    return after


@pytest.fixture(scope="module")
def expected(logits_after: Logits, config: GPTConfig) -> Callable[..., list[int]]:
    """The policy of inference.engine by full forward passes, and its random numbers: fold_in(seed, n)."""

    draw = jax.jit(choose, static_argnames="plan")

    def ids(prompt: list[int], new: int, sampling: Sampling = GREEDY, seed: int = 0) -> list[int]:
        context, window, found = config.context, prompt[-config.context :], []
        for number in range(new):
            if (
                len(window) > context
            ):  # full: the older half of what was read goes, the newest token is kept too
                window = window[context - context // 2 :]
            drawing = settings_of([sampling]), np.array([seed], np.uint32), np.array([number], np.int32)
            found.append(int(draw(logits_after(window), *drawing, plan=Plan.of([sampling], "cpu"))[0]))
            window = [*window, found[-1]]
        return found

    return ids


def prompt_of(length: int, vocab: int = 61) -> list[int]:
    return np.random.default_rng(length).integers(0, vocab, length).tolist()


def request(prompt: list[int], new: int, sampling: Sampling = GREEDY, **more: Any) -> Request:
    return Request(prompt=tuple(prompt), max_new_tokens=new, sampling=sampling, **more)


def texts(engine: Engine, requests: list[Request]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in requests]
    for place, new in engine.run(requests):
        if new.token is not None:
            found[place].append(new.token)
    return found


# The context is 32. 5 is padded to a bucket of 16, 16 fills one, 31 and 32 fill the window, 50 is longer.
# 40 new tokens pass the end of the window twice.
@pytest.mark.parametrize("length", [1, 5, 16, 17, 31, 32, 50])
@pytest.mark.parametrize("sampling", [GREEDY, WILD], ids=["greedy", "wild"])
def test_cached_decoding_equals_full_forward_passes(
    served: Served, expected: Callable, length: int, sampling: Sampling
) -> None:
    engine = Engine(served, slots=1)
    ids = expected(prompt_of(length), 40, sampling)
    assert texts(engine, [request(prompt_of(length), 40, sampling)]) == [ids]
    assert len(set(ids)) > 6


def test_requests_in_a_batch_get_what_each_gets_alone(served: Served, expected: Callable) -> None:
    """Seven lengths through three slots: they wait, join, leave and slide at different times."""
    requests = [
        request(prompt_of(length), 5 + 6 * n, WILD if n % 2 else GREEDY, seed=n)
        for n, length in enumerate([1, 30, 5, 16, 50, 9, 31])
    ]
    for steps in (1, 4, 16):
        found = texts(Engine(served, slots=3, steps=steps), requests)
        alone = [expected(list(r.prompt), r.max_new_tokens, r.sampling, r.seed) for r in requests]
        assert found == alone


def test_a_rows_logprobs_are_the_models_whatever_stands_beside_it(
    served: Served, logits_after: Logits
) -> None:
    engine = Engine(served, slots=4)
    first = request(prompt_of(9), 8, WILD, seed=3, logprobs=5)
    beside = [request(prompt_of(n), 20, GREEDY) for n in (3, 17, 30)]
    window = prompt_of(9)
    for place, new in engine.run([first, *beside]):
        if place == 0:
            assert new.token is not None and new.logprob is not None
            logprobs_V = np.asarray(jax.nn.log_softmax(logits_after(window)[0]))
            np.testing.assert_allclose(new.logprob, logprobs_V[new.token], atol=1e-5)
            best = np.argsort(-logprobs_V)[:5]
            assert [token for token, _ in new.alternatives] == best.tolist()
            np.testing.assert_allclose([value for _, value in new.alternatives], logprobs_V[best], atol=1e-5)
            window.append(new.token)
        else:
            assert new.logprob is None and new.alternatives == ()


@pytest.fixture(scope="module")
def long() -> Served:
    """A model with three spans: 128, 256 and 300 positions."""
    config = GPTConfig(vocab=61, context=300, layers=2, heads=2, width=16, vocab_multiple=8)
    params = shaken(jax.jit(define(config).init)(jax.random.key(0)))
    return Served.of(config, params | {"wpe": {"embedding": 10 * params["wpe"]["embedding"]}})


def news_beside(served: Served, others: list[Request], later: list[Request]) -> list[NewToken]:
    """What a request gets beside others that come with it, and beside those that come when it has begun."""
    engine = Engine(served, slots=4, steps=3)
    mine = engine.submit(request(prompt_of(9), 20, GREEDY, logprobs=2))
    for other in others:
        engine.submit(other)
    found = [new for _ in range(3) for new in engine.step() if new.request == mine]
    for other in later:
        engine.submit(other)
    while engine.busy:
        found += [new._replace(request=mine) for new in engine.step() if new.request == mine]
    return found


def test_the_same_shapes_give_the_same_bits_whatever_stands_beside(long: Served) -> None:
    """Three neighbours of the same bucket, and no longer cache: the same programs run."""
    alone = news_beside(long, [request([5], 1)] * 3, [])
    assert len(alone) == 20 and len({new.token for new in alone}) > 5
    assert alone == news_beside(long, [request(prompt_of(9 + n), 20, WILD, seed=n) for n in range(1, 4)], [])


@pytest.mark.parametrize(
    ("others", "later"),
    [
        ([], []),  # read alone, not in a group of four
        ([12], []),
        ([40, 100, 12], []),  # beside prompts of other buckets
        ([200], []),  # in a cache of 256 positions
        ([280, 280], []),  # of 300
        ([], [20, 200]),  # which becomes longer while the text is written
        ([280], [3, 200]),
    ],
    ids=str,
)
def test_other_groups_and_spans_change_no_more_than_the_rounding(
    long: Served, others: list[int], later: list[int]
) -> None:
    """Products of other shapes may add in another order: 1e-5 nats is rounding."""
    expected = news_beside(long, [request([5], 1)] * 3, [])
    neighbours, late = (
        [request(prompt_of(n), 30, WILD if n % 2 else GREEDY, seed=n) for n in lengths]
        for lengths in (others, later)
    )
    found = news_beside(long, neighbours, late)
    assert [new.token for new in found] == [new.token for new in expected]
    for new, wanted in zip(found, expected, strict=True):
        assert new.logprob == pytest.approx(wanted.logprob, abs=1e-5)
        assert [token for token, _ in new.alternatives] == [token for token, _ in wanted.alternatives]


def test_scores_are_the_models_log_probabilities(config: GPTConfig, params: Params, served: Served) -> None:
    ids = prompt_of(20)
    scored = Engine(served, slots=1).score(ids, alternatives=3)
    logprobs_TV = np.asarray(jax.nn.log_softmax(define(config).apply(params, np.array([ids], np.int32))[0]))
    assert [new.token for new in scored] == ids and scored[0].logprob is None
    for place, new in enumerate(scored[1:]):
        np.testing.assert_allclose(new.logprob, logprobs_TV[place, new.token], atol=1e-5)
        assert [token for token, _ in new.alternatives] == np.argsort(-logprobs_TV[place])[:3].tolist()


def test_without_sliding_a_text_ends_where_its_window_does(served: Served, expected: Callable) -> None:
    news = [new for _, new in Engine(served).run([request(prompt_of(20), 40, slide=False)])]
    assert [new.token for new in news] == [*expected(prompt_of(20), 13), None] and news[-1].finish == "length"
    assert all(new.finish is None for new in news[:-1])


def test_the_end_token_ends_the_text_is_told_of_and_is_not_part_of_it(
    served: Served, expected: Callable
) -> None:
    whole = expected(prompt_of(5), 12)
    length = whole.index(whole[6])
    engine = Engine(served, ends={whole[6]})
    news = [new for _, new in engine.run([request(prompt_of(5), 12, logprobs=0)])]
    assert [new.token for new in news] == whole[: length + 1]
    assert [new.written for new in news] == [*whole[:length], None]
    assert [new.finish for new in news] == [None] * length + ["end"] and engine.running == 0
    assert all(new.logprob is not None for new in news)
    last = [new for _, new in engine.run([request(prompt_of(5), length + 1)])][-1]
    assert last.finish == "end"  # also where it is the last token asked for


def test_the_first_of_several_end_tokens_ends_the_text(served: Served, expected: Callable) -> None:
    whole = expected(prompt_of(5), 12)
    first, *_, last = dict.fromkeys(whole[3:])
    engine = Engine(served, slots=2, ends={first, last}, steps=16)
    late = request(prompt_of(5), 12, least_new_tokens=12)
    assert texts(engine, [request(prompt_of(5), 12)])[0] == whole[: whole.index(first) + 1]
    assert not {first, last} & set(texts(engine, [late])[0][:12])
    assert texts(engine, [request(prompt_of(5), 12, ignore_end=True)])[0] == whole


def test_a_cancelled_request_frees_its_slot_and_disturbs_nobody(served: Served, expected: Callable) -> None:
    engine = Engine(served, slots=2, steps=1)
    gone, stays, waits = (engine.submit(request(prompt_of(n), 10)) for n in (4, 6, 8))
    found: dict[int, list[int]] = {gone: [], stays: [], waits: []}

    def step() -> None:
        for new in engine.step():
            if new.token is not None:
                found[new.request].append(new.token)

    step()
    step()
    assert (engine.running, engine.waiting) == (2, 1)
    engine.cancel(gone)
    assert (engine.running, engine.waiting) == (1, 1)
    while engine.busy:
        step()
    assert len(found[gone]) == 2
    assert found[stays] == expected(prompt_of(6), 10) and found[waits] == expected(prompt_of(8), 10)


def test_penalties_act_on_each_row_alone(served: Served) -> None:
    never_again = Sampling(temperature=0, presence_penalty=1e6)
    found = texts(Engine(served, slots=2), [request([7], 25, never_again), request([7], 25)])
    assert len(set(found[0])) == 25 > len(set(found[1]))
    assert len(set(found[0][:20])) == 20  # also past the end of a device call


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others(served: Served) -> None:
    engine = Engine(served, slots=4)
    one, same, other = texts(engine, [request([1, 2, 3], 12, WILD, seed=seed) for seed in (5, 5, 6)])
    assert one == same != other
    assert texts(engine, [request([1, 2, 3], 12, WILD, seed=5)]) == [one]


@pytest.mark.slow
def test_a_context_of_one_or_two_tokens_still_generates() -> None:
    for context in (1, 2):
        config = GPTConfig(vocab=11, context=context, layers=1, heads=1, width=4, vocab_multiple=8)
        params = jax.tree.map(lambda leaf: 5 * leaf, jax.jit(define(config).init)(jax.random.key(0)))
        apply = jax.jit(define(config).apply)
        tokens = [3, 7]
        for token in texts(Engine(Served.of(config, params)), [request(tokens, 4)])[0]:
            assert token == int(jnp.argmax(apply(params, np.array([tokens[-context:]], np.int32))[0, -1]))
            tokens = [*tokens, token]


@pytest.mark.slow
def test_any_mix_of_lengths_compiles_few_programs() -> None:
    config = GPTConfig(vocab=61, context=300, layers=1, heads=2, width=8, vocab_multiple=8)
    served = Served.of(config, jax.jit(define(config).init)(jax.random.key(0)))
    compiled = programs.prefill, programs.decode, programs.pick
    before = [program._cache_size() for program in compiled]
    rng, engine = np.random.default_rng(0), Engine(served, slots=4)
    samplings = (GREEDY, WILD)
    requests = [
        request(prompt_of(int(rng.integers(1, 301))), int(rng.integers(1, 40)), samplings[n // 30], seed=n)
        for n in range(60)
    ]
    assert [len(text) for text in texts(engine, requests)] == [r.max_new_tokens for r in requests]
    # Buckets of 16, 32, 64, 128, 256 and 300 tokens, for 1, 2 and 4 prompts.
    # Spans of 128, 256 and 300; two plans.
    most = 6 * 3, 3 * 2, 3 * 2
    assert all(p._cache_size() - b <= m for p, b, m in zip(compiled, before, most, strict=True))


@pytest.mark.slow
def test_after_a_warm_up_common_requests_compile_nothing(served: Served) -> None:
    first = texts(Engine(served, slots=2, steps=3), [request([0], 1)])[0][0]
    for program in (compiled := (programs.prefill, programs.pick, programs.put, programs.decode)):
        program.clear_cache()
    engine = Engine(
        served, slots=2, steps=3, ends={first}
    )  # warming up, greedy text would end with its first token
    engine.warm_up()
    before = [program._cache_size() for program in compiled]
    longest = 0
    for sampling in (GREEDY, Sampling(temperature=0.7), WILD, Sampling(min_p=0.1)):
        for logprobs in (None, 5):
            asked = [request(prompt_of(n), 9, sampling, logprobs=logprobs) for n in (3, 5, 9)]
            made = [len(texts(engine, [each])[0]) for each in asked]
            assert max(made) > 1  # or nothing is decoded
            longest = max(longest, *made)
    assert longest == 9 and [program._cache_size() for program in compiled] == before
    assert texts(engine, [request([0], 5)]) == [[first]]  # which still ends a text


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(MeshConfig(data=1, fsdp=2, tensor=4), marks=pytest.mark.exhaustive),
        pytest.param(MeshConfig(data=2, tensor=4), marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_a_mesh_gives_the_tokens_of_one_device(config: GPTConfig, params: Params, mesh: MeshConfig) -> None:
    requests = [request(prompt_of(n), 40, WILD if n % 2 else GREEDY, seed=n) for n in (3, 8, 31)]
    placed = jax.device_put(params, shardings(params, mesh_of(mesh)))
    on_mesh = Engine(Served.of(config, placed), slots=2)
    kernel = on_mesh.served.params["h"][0]["mlp"]["c_fc"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and kernel.addressable_shards[0].data.shape[1] == 10
    assert texts(on_mesh, requests) == texts(Engine(Served.of(config, params), slots=2), requests)


def logprobs_of(config: GPTConfig, params: Params, ids: list[int]) -> np.ndarray:
    """[T, V]: log-probabilities after each of these ids, by the trained layers, without an engine."""
    return np.asarray(jax.nn.log_softmax(define(config).apply(params, np.array([ids], np.int32))[0]))


def scores_of(served: Served, ids: list[int]) -> np.ndarray:
    return np.array([new.logprob for new in Engine(served).score(ids)][1:], np.float32)


@pytest.mark.slow
def test_bfloat16_computes_what_the_model_does_in_bfloat16(config: GPTConfig, params: Params) -> None:
    """Numbers of 8 bits, summed in two orders, differ about as much as each does from float32: 0.005 nats.

    A CPU keeps the cache in float32, because it would convert all of it at each step.
    """
    ids, in_bfloat16 = prompt_of(30), dataclasses.replace(config, compute_dtype="bfloat16")
    engine = Engine(Served.of(in_bfloat16, params))
    texts(engine, [request(prompt_of(4), 3)])
    assert engine._cache is not None and engine._cache.keys[0].dtype == jnp.float32
    assert engine.served.params["h"][0]["mlp"]["c_fc"]["kernel"].dtype == jnp.bfloat16
    found = scores_of(engine.served, ids)
    expected, exact = (
        logprobs_of(each, params, ids)[np.arange(29), ids[1:]] for each in (in_bfloat16, config)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)
    assert np.abs(found - exact).max() > 0.001


@pytest.mark.slow
def test_int8_weights_compute_what_their_rounded_values_do(config: GPTConfig, params: Params) -> None:
    """In float32: 1e-5 nats is rounding, and what the steps of int8 change is a hundred times that."""
    ids, rounded = prompt_of(12), rounded_to_int8(params)
    served = Served.of(config, params, int8=True)
    matrices = [leaf for leaf in jax.tree.leaves(served.params) if leaf.ndim > 1 and leaf.dtype == jnp.int8]
    assert len(matrices) == 4 * config.layers + 1
    expected, exact = (logprobs_of(config, each, ids)[np.arange(11), ids[1:]] for each in (rounded, params))
    np.testing.assert_allclose(scores_of(served, ids), expected, rtol=0, atol=1e-5)
    assert np.abs(expected - exact).max() > 1e-3
    (text,) = texts(Engine(served), [request(ids, 20)])
    logprobs_TV = logprobs_of(config, rounded, ids + text)[len(ids) - 1 : -1]
    best_TV = np.sort(logprobs_TV, axis=-1)[:, ::-1]
    clear_T = best_TV[:, 0] - best_TV[:, 1] > 1e-4
    assert clear_T.sum() > 15  # of 20 tokens; where two are as probable as each other, either may be taken
    np.testing.assert_array_equal(np.array(text)[clear_T], logprobs_TV.argmax(-1)[clear_T])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ()}, "empty prompt"),
        ({"max_new_tokens": -1}, "max_new_tokens = -1"),
        ({"seed": 2**63}, "seed = 9223372036854775808"),
        ({"logprobs": 21}, "logprobs = 21"),
    ],
)
def test_impossible_requests_are_refused_by_name(served: Served, change: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Engine(served).submit(dataclasses.replace(request([1], 1), **change))


def test_ids_outside_the_vocabulary_are_refused(served: Served) -> None:
    engine = Engine(served)
    for ids in ([61], [-1], [3, 99]):
        with pytest.raises(DataError):
            engine.submit(request(ids, 1))
        with pytest.raises(DataError):
            engine.score(ids)
    with pytest.raises(ConfigError, match=r"33 tokens: 1 to 32 can be scored"):
        engine.score(prompt_of(33))


def test_nothing_asked_for_is_nothing_made(served: Served) -> None:
    news = [new for _, new in Engine(served).run([request([1], 0)])]
    assert news == [NewToken(1, None, None, (), "length")]


# --- what a request may ask for besides


def test_a_flood_of_prompts_leaves_a_running_row_its_steps(served: Served) -> None:
    engine = Engine(served, slots=3, steps=4)
    long = engine.submit(request(prompt_of(5), 20))
    steps, left = 0, True
    while left:
        while engine.waiting < 6:
            engine.submit(request(prompt_of(3), 1))
        left = not any(new.request == long and new.finish for new in engine.step())
        steps += 1
        assert steps <= 12  # one that reads and one that decodes, by turns


def test_beside_running_rows_a_step_reads_one_context_at_most(served: Served) -> None:
    engine = Engine(served, slots=4)
    engine.submit(request(prompt_of(5), 40))
    engine.step()
    for _ in range(3):
        engine.submit(request(prompt_of(30), 40))
    engine.step()
    waiting = []
    for _ in range(4):
        engine.step()
        waiting.append(engine.waiting)
    assert waiting == [2, 2, 1, 1]


def test_bias_stop_ids_and_the_least_number_of_tokens(served: Served, expected: Callable) -> None:
    ids = expected(prompt_of(5), 12)
    end = next(token for token in ids if ids.index(token) >= 2)
    at = ids.index(end)

    def asked(**more: Any) -> list[int]:
        engine = Engine(served, slots=2, ends={end}, steps=16)
        return texts(engine, [request(prompt_of(5), 12, **more), request(prompt_of(9), 3)])[0]

    assert asked() == ids[: at + 1]
    assert asked(ignore_end=True) == ids
    assert asked(ignore_end=True, stop_ids=frozenset([ids[1]])) == ids[: ids.index(ids[1]) + 1]
    late = asked(least_new_tokens=at + 3)
    assert late[:at] == ids[:at] and end not in late[: at + 3] and len(late) > at + 2
    assert asked(bias=((7, 1e3),)) == [7] * 12
    without = asked(ignore_end=True, bias=((ids[0], -1e3),))
    assert ids[0] not in without and without


def test_a_request_without_bias_gets_the_same_beside_one_that_has_it(
    served: Served, expected: Callable
) -> None:
    biased = request(prompt_of(9), 8, bias=((7, 1e3),), least_new_tokens=4)
    assert texts(Engine(served, slots=2), [request(prompt_of(5), 8), biased]) == [
        expected(prompt_of(5), 8),
        [7] * 8,
    ]


def test_seeds_have_64_bits_and_the_small_ones_stay_what_they_are() -> None:
    seeds = [0, 5, 2**32 - 1, 2**32, 2**32 + 5, -1, 2**63 - 1, -(2**63)]
    found = [Request(prompt=(0,), max_new_tokens=1, seed=seed).seed32 for seed in seeds]
    assert found[:3] == seeds[:3] and len(set(found)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in found)
