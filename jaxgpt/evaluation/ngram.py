"""Losses to compare a language model's loss with: those of a unigram and a bigram model of the same text.

A language model that does not beat the bigram model has not learned to use more than one token before.
"""

from typing import NamedTuple

import numpy as np


class NgramLosses(NamedTuple):
    """Mean losses in nats per token."""

    unigram: float
    bigram: float


def ngram_losses(train: np.ndarray, val: np.ndarray, vocab: int) -> NgramLosses:
    """Losses on `val` of the models counted on `train`. Both are arrays of token ids below `vocab`.

    Every token of `val` but the first is predicted, as when a language model is scored. The memory needed
    grows with the length of `train`.
    """
    assert train.size >= 2 and val.size >= 2, "an n-gram model needs two tokens to count and two to score"
    assert max(train.max(), val.max()) < vocab, "token ids lie below the size of the vocabulary"
    bigram = Bigram(train, vocab)
    previous, following = val[:-1], val[1:]
    return NgramLosses(
        unigram=-float(np.log(bigram.unigram_V[following]).mean()),
        bigram=-float(np.log(bigram.probability(previous, following)).mean()),
    )


class Bigram:
    """A bigram model with interpolated absolute discounting.

    The method is that of Ney, Essen and Kneser 1994, "On structuring probabilistic dependences":
    P(w | v) = max(c(v, w) - d, 0) / c(v) + d n(v) / c(v) P(w). Here c counts tokens and pairs of tokens, and
    n(v) counts the distinct successors of v. The discount d = n1 / (n1 + 2 n2) is their estimate of the best
    one, with n1 and n2 the numbers of pairs seen once and twice. The unigram P(w) = (c(w) + 1) / (N + V), for
    N tokens and a vocabulary of V, adds one to every count, so that no token is impossible. After a token
    that nothing ever followed, P(w | v) is P(w).
    """

    def __init__(self, train: np.ndarray, vocab: int) -> None:
        self._vocab = vocab
        self.unigram_V = (np.bincount(train, minlength=vocab) + 1) / (train.size + vocab)
        previous = train[:-1]
        self._pairs, self._counts = np.unique(self._code(previous, train[1:]), return_counts=True)
        self._totals_V = np.bincount(previous, minlength=vocab)
        self._successors_V = np.bincount(self._pairs // vocab, minlength=vocab)
        self.discount = _discount(self._counts)

    def probability(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        """P(following | previous) for each pair from two arrays of token ids, which have the same shape."""
        codes = self._code(previous, following)
        index = np.minimum(np.searchsorted(self._pairs, codes), self._pairs.size - 1)
        counts = np.where(self._pairs[index] == codes, self._counts[index], 0)
        totals = self._totals_V[previous]
        held_back = np.where(totals > 0, self.discount * self._successors_V[previous], 1.0)
        weights = np.maximum(counts - self.discount, 0) + held_back * self.unigram_V[following]
        probabilities: np.ndarray = weights / np.maximum(totals, 1)
        return probabilities

    def _code(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        """A number for each pair of tokens, which no other pair has."""
        codes: np.ndarray = previous.astype(np.int64) * self._vocab + following
        return codes


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2), or a half where no pair was seen exactly once.

    The discount must not be 0, because unseen pairs would then have no probability.
    """
    once, twice = (int(np.count_nonzero(counts == k)) for k in (1, 2))
    return once / (once + 2 * twice) if once else 0.5
