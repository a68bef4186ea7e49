"""Hidden words are BERT's: which share, what becomes of them, and that seed, step and row decide it."""

import jax
import numpy as np
import pytest

from jaxgpt.config import EncoderConfig
from jaxgpt.errors import ConfigError
from jaxgpt.model.encoder import define
from jaxgpt.text.batch import Batch, shifted
from jaxgpt.text.masked_words import MaskedWords
from jaxgpt.training.loss import cross_entropy, next_token_loss

WORDS, MASK = 50, 50
LENGTH = 2000


def plain(step: int, start: int, stop: int) -> Batch:
    """Texts of one word each, another one in each row."""
    return shifted(np.repeat(np.arange(start, stop, dtype=np.int32)[:, None], LENGTH + 1, axis=1))


def hidden(seed: int = 0) -> MaskedWords:
    return MaskedWords(plain=plain, words=WORDS, mask=MASK, seed=seed)


def test_of_the_chosen_80_percent_are_masked_10_random_and_10_left() -> None:
    batch = hidden().rows(0, 0, 32)
    chosen_BT = batch.weights_BT > 0
    assert batch.inputs_BT.dtype == np.int32 and batch.weights_BT.dtype == np.float32
    np.testing.assert_array_equal(batch.targets_BT, plain(0, 0, 32).inputs_BT)
    np.testing.assert_array_equal(batch.inputs_BT[~chosen_BT], batch.targets_BT[~chosen_BT])
    inputs_L, targets_L = batch.inputs_BT[chosen_BT], batch.targets_BT[chosen_BT]
    masked = (inputs_L == MASK).mean()
    left = (inputs_L == targets_L).mean()  # a random word is the right one once in 50 times
    shares = [chosen_BT.mean(), masked, 1 - masked - left, left]
    np.testing.assert_allclose(shares, [0.15, 0.8, 0.098, 0.102], atol=0.012)  # 9,600 words are chosen
    drawn = inputs_L[(inputs_L != MASK) & (inputs_L != targets_L)]
    assert set(drawn) == set(range(WORDS))


def test_seed_step_and_row_decide_what_is_hidden() -> None:
    whole = hidden().rows(3, 0, 6)
    for again in (hidden().rows(3, 2, 4), hidden().rows(3, 2, 4)):
        np.testing.assert_array_equal(again.inputs_BT, whole.inputs_BT[2:4])
        np.testing.assert_array_equal(again.weights_BT, whole.weights_BT[2:4])
    others = [hidden().rows(4, 2, 4), hidden(seed=1).rows(3, 2, 4), hidden().rows(3, 3, 5)]
    assert all((other.weights_BT != whole.weights_BT[2:4]).any() for other in others)


def test_the_loss_is_that_of_the_chosen_tokens() -> None:
    config = EncoderConfig(vocab=52, context=16, layers=1, heads=2, width=8, padding=51)
    model = define(config)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = MaskedWords(
        plain=lambda *_: shifted(np.arange(34, dtype=np.int32).reshape(2, 17)), words=50, mask=50, seed=0
    ).rows(0, 0, 2)
    total, weight, _ = jax.jit(next_token_loss(model))(params, batch, None)
    chosen_BT = batch.weights_BT > 0
    each_BT = cross_entropy(jax.jit(model.apply)(params, batch.inputs_BT), batch.targets_BT)
    assert weight == chosen_BT.sum() > 0
    np.testing.assert_allclose(total, each_BT[chosen_BT].sum(), rtol=1e-6)


def test_the_mask_is_no_word() -> None:
    with pytest.raises(ConfigError, match="mask = 49: it must be an id behind the words, 50 or more"):
        MaskedWords(plain=plain, words=50, mask=49, seed=0)
