"""What a loss is worth: the losses of a unigram and a bigram model of the same text.

A language model that does not beat the bigram model has not learned to look further back than one token.
"""

from typing import NamedTuple

import numpy as np


class NgramLosses(NamedTuple):
    """Mean losses in nats per token."""

    unigram: float
    bigram: float


def ngram_losses(train: np.ndarray, val: np.ndarray, vocab: int) -> NgramLosses:
    """Losses on `val` of models counted on `train`, both arrays of token ids below `vocab`.

    As a language model is scored, every token but the first of `val` is predicted from what precedes it. Takes at most
    about 35 bytes of memory per token of `train`.
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
    """Absolute discounting, interpolated (Ney, Essen and Kneser 1994, "On structuring probabilistic dependences").

    P(w | v) = max(c(v, w) - d, 0) / c(v) + d n(v) / c(v) P(w), where n(v) counts the distinct successors of v, and
    d = n1 / (n1 + 2 n2) with n1 and n2 the numbers of pairs seen once and twice (their estimate of the best discount).
    The unigram P(w) = (c(w) + 1) / (N + V) adds one to every count, so no token of the vocabulary is impossible.
    After a token that was never followed by anything, P(w | v) is P(w).
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
        """P(following | previous), elementwise over two arrays of token ids of one shape."""
        codes = self._code(previous, following)
        index = np.minimum(np.searchsorted(self._pairs, codes), self._pairs.size - 1)
        counts = np.where(self._pairs[index] == codes, self._counts[index], 0)
        totals = self._totals_V[previous]
        held_back = np.where(totals > 0, self.discount * self._successors_V[previous], 1.0)
        return (np.maximum(counts - self.discount, 0) + held_back * self.unigram_V[following]) / np.maximum(
            totals, 1
        )

    def _code(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        """One number for each pair."""
        return previous.astype(np.int64) * self._vocab + following


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2); a half when no pair was seen just once, so that an unseen pair still keeps some probability."""
    once, twice = (int(np.count_nonzero(counts == k)) for k in (1, 2))
    return once / (once + 2 * twice) if once else 0.5
