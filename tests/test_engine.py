"""Generation with a cache, against repeated full forward passes."""

from collections.abc import Callable
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import GPTConfig
from jaxgpt.inference.engine import generate_ids, next_token, read_prompt
from jaxgpt.inference.sampling import Sampling, sample
from jaxgpt.model.gpt import Params, define

GREEDY = Sampling(temperature=0)
Logits = Callable[[list[int]], jax.Array]


@pytest.fixture(scope="module")
def params(params: Params) -> Params:  # type: ignore[no-redef]
    """The shared ones with large position embeddings, or greedy text is one token for ever."""
    return params | {"wpe": {"embedding": 10 * params["wpe"]["embedding"]}}


@pytest.fixture(scope="module")
def logits_after(config: GPTConfig, params: Params) -> Logits:
    """window -> logits [1, V] of the token after it, by a forward pass over the window alone, without a cache."""
    apply = jax.jit(define(config).apply)

    def after(window: list[int]) -> jax.Array:
        tokens_BT = np.zeros((1, config.context), np.int32)  # one shape; later tokens cannot change earlier logits
        tokens_BT[0, : len(window)] = window
        return apply(params, tokens_BT)[:, len(window) - 1]

    return after


def expected_ids(logits_after: Logits, context: int, prompt: list[int], new: int, sampling: Sampling) -> list[int]:
    """The policy of inference.engine by full forward passes, and its random numbers: fold_in(seed 0, n)."""
    window, ids = prompt[-context:], []
    for number in range(new):
        if len(window) > context:  # full: the older half of what was read goes, the newest token is kept too
            window = window[context - context // 2 :]
        token = sample(logits_after(window), sampling, jax.random.fold_in(jax.random.key(0), number))
        ids.append(int(token[0]))
        window = [*window, ids[-1]]
    return ids


def prompt_of(length: int, vocab: int = 61) -> list[int]:
    return np.random.default_rng(length).integers(0, vocab, length).tolist()


def generated(
    params: Params, config: GPTConfig, prompt: list[int], new: int, sampling: Sampling = GREEDY, seed: int = 0
):
    return list(islice(generate_ids(params, config, prompt, sampling=sampling, seed=seed), new))


# The context is 32. 5 is padded to a bucket of 16, 16 fills one, 31 and 32 fill the window, 50 is longer than it; 40
# new tokens pass its end twice.
@pytest.mark.parametrize("length", [1, 5, 16, 17, 31, 32, 50])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_k=30)])
def test_cached_decoding_equals_full_forward_passes(
    config: GPTConfig, params: Params, logits_after: Logits, length: int, sampling: Sampling
) -> None:
    prompt = prompt_of(length)
    expected = expected_ids(logits_after, config.context, prompt, 40, sampling)
    assert generated(params, config, prompt, 40, sampling) == expected
    assert len(set(expected)) > 6


def test_greedy_is_the_argmax(config: GPTConfig, params: Params, logits_after: Logits) -> None:
    prompt = prompt_of(9)
    for token in generated(params, config, prompt, 10):
        assert token == int(np.argmax(logits_after(prompt)))
        prompt = [*prompt, token]


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others(config: GPTConfig, params: Params) -> None:
    wild = Sampling(temperature=2.0)
    first = generated(params, config, [1, 2, 3], 12, wild, seed=5)
    assert first == generated(params, config, [1, 2, 3], 12, wild, seed=5)
    assert first != generated(params, config, [1, 2, 3], 12, wild, seed=6)


def test_the_end_token_ends_the_text_and_is_not_part_of_it(config: GPTConfig, params: Params) -> None:
    prompt = prompt_of(5)
    whole = generated(params, config, prompt, 12)
    end = whole[6]
    stopped = list(islice(generate_ids(params, config, prompt, sampling=GREEDY, seed=0, end=end), 12))
    assert stopped == whole[: whole.index(end)]


def test_a_context_of_one_or_two_tokens_still_generates() -> None:
    for context in (1, 2):
        config = GPTConfig(vocab=11, context=context, layers=1, heads=1, width=4, vocab_multiple=8)
        params = jax.tree.map(lambda leaf: 5 * leaf, jax.jit(define(config).init)(jax.random.key(0)))
        apply = jax.jit(define(config).apply)
        tokens = [3, 7]
        for token in generated(params, config, tokens, 4):
            assert token == int(jnp.argmax(apply(params, np.array([tokens[-context:]], np.int32))[0, -1]))
            tokens = [*tokens, token]


def test_many_prompt_lengths_compile_few_programs(config: GPTConfig, params: Params) -> None:
    before = read_prompt._cache_size(), next_token._cache_size()
    only_here = Sampling(temperature=0.123)
    for length in range(1, 2 * config.context):
        generated(params, config, prompt_of(length), 2, only_here)
    assert read_prompt._cache_size() - before[0] == 2  # buckets of 16 and 32
    assert next_token._cache_size() - before[1] <= 2
