"""The n-gram baselines."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.evaluation.ngram import Bigram, ngram_losses

VOCAB = 6
token_lists = st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=60)


@settings(deadline=None)  # a busy machine is not a failure
@given(token_lists)
def test_every_distribution_sums_to_one(tokens):
    bigram = Bigram(np.array(tokens), VOCAB)
    assert bigram.unigram_V.sum() == pytest.approx(1)
    for previous in range(VOCAB):
        p_V = bigram.probability(np.full(VOCAB, previous), np.arange(VOCAB))
        assert p_V.sum() == pytest.approx(1)
        assert (p_V > 0).all()


@settings(deadline=None)
@given(token_lists, token_lists)
def test_losses_equal_those_of_a_plain_dictionary_model(train, val):
    pairs, singles = Counter(pairwise(train)), Counter(train)
    once, twice = (sum(count == k for count in pairs.values()) for k in (1, 2))
    discount = once / (once + 2 * twice) if once else 0.5
    unigram = bigram = 0.0
    for v, w in pairwise(val):
        p = (singles[w] + 1) / (len(train) + VOCAB)
        total = sum(count for (first, _), count in pairs.items() if first == v)
        successors = sum(first == v for first, _ in pairs)
        unigram -= math.log(p)
        bigram -= math.log(
            (max(pairs[v, w] - discount, 0) + discount * successors * p) / total if total else p
        )
    losses = ngram_losses(np.array(train), np.array(val), VOCAB)
    assert losses.unigram == pytest.approx(unigram / (len(val) - 1))
    assert losses.bigram == pytest.approx(bigram / (len(val) - 1))


def test_losses_are_those_worked_out_by_hand():
    # The text is a b a b a c, over a vocabulary of 3. Its unigram counts are a 3, b 2 and c 1, of 6. Its
    # pairs are ab twice, ba twice and ac once, so d = 1 / (1 + 2 x 2) = 0.2.
    losses = ngram_losses(np.array([0, 1, 0, 1, 0, 2]), np.array([0, 2]), 3)
    assert losses.unigram == pytest.approx(-math.log(2 / 9))
    assert losses.bigram == pytest.approx(-math.log(0.8 / 3 + 0.2 * 2 / 3 * 2 / 9))


def test_unigram_loss_on_text_of_the_same_kind_is_the_entropy():
    rng = np.random.default_rng(0)
    p_V = np.array([0.5, 0.25, 0.125, 0.125])
    train, val = rng.choice(4, 200_000, p=p_V), rng.choice(4, 200_000, p=p_V)
    entropy = -(p_V * np.log(p_V)).sum()
    assert ngram_losses(train, val, 4) == pytest.approx((entropy, entropy), abs=0.005)


def test_bigram_loss_on_a_markov_chain_is_its_entropy_rate():
    rng = np.random.default_rng(0)
    stay_T = rng.random(200_000) < 0.9  # two states, the chain stays with probability 0.9
    tokens = np.cumsum(~stay_T) % 2
    losses = ngram_losses(tokens[:100_000], tokens[100_000:], 2)
    assert losses.unigram == pytest.approx(math.log(2), abs=0.005)
    assert losses.bigram == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=0.01)


def test_sixteen_bit_ids_give_the_same_losses_as_wide_ones():
    tokens = np.random.default_rng(0).integers(0, 50257, 5_000)
    narrow = tokens.astype(np.uint16)
    assert ngram_losses(narrow[:4000], narrow[4000:], 50257) == ngram_losses(
        tokens[:4000], tokens[4000:], 50257
    )


def test_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(AssertionError, match="below the size of the vocabulary"):
        ngram_losses(np.array([0, 1, 2]), np.array([0, 3]), 3)
