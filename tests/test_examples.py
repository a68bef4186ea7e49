"""Padded and packed batches: which tokens are scored, and that packing changes no loss."""

import jax
import numpy as np
import pytest

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.model.gpt import Params, define
from jaxgpt.text.batch import Batch
from jaxgpt.text.examples import Example, packed, padded
from jaxgpt.training.loss import next_token_loss

EXAMPLES = [Example([7, 8, 9, 10], 2), Example([5, 6], 1), Example([1, 2, 3], 0), Example([4, 4, 4, 4, 4], 5)]


def drawn(count: int, vocab: int, longest: int) -> list[Example]:
    """Examples of 2 to `longest` tokens, each scored from anywhere on."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, longest + 1, count)
    return [Example(rng.integers(0, vocab, size).tolist(), int(rng.integers(1, size + 1))) for size in sizes]


def test_padded_by_hand() -> None:
    batch = padded(EXAMPLES, 4)
    assert batch.inputs_BT.tolist() == [[7, 8, 9, 0], [5, 0, 0, 0], [1, 2, 0, 0], [4, 4, 4, 4]]
    assert batch.targets_BT.tolist() == [[8, 9, 10, 0], [6, 0, 0, 0], [2, 3, 0, 0], [4, 4, 4, 4]]
    assert batch.weights_BT.tolist() == [[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert batch.positions_BT is None and batch.segments_BT is None
    assert (batch.inputs_BT.dtype, batch.weights_BT.dtype) == (np.int32, np.float32)


def test_rows_asked_for_beyond_the_examples_are_padding() -> None:
    batch = padded(EXAMPLES[:1], 3, rows=3)
    assert batch.inputs_BT.tolist() == [[7, 8, 9], [0, 0, 0], [0, 0, 0]] and batch.weights_BT.sum() == 2
    with pytest.raises(ConfigError, match="rows = 1: there are 4 examples"):
        padded(EXAMPLES, 4, rows=1)


def test_packed_by_hand() -> None:
    """3, 1, 2 and 4 predictions in rows of 5: the third does not fit behind the first two."""
    batch = packed(EXAMPLES, 5)
    assert batch.inputs_BT.tolist() == [[7, 8, 9, 5, 0], [1, 2, 0, 0, 0], [4, 4, 4, 4, 0]]
    assert batch.targets_BT.tolist() == [[8, 9, 10, 6, 0], [2, 3, 0, 0, 0], [4, 4, 4, 4, 0]]
    assert batch.weights_BT.tolist() == [[0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 0, 0], [0, 1, 0, 0, 0], [0, 1, 2, 3, 0]]
    assert batch.segments_BT.tolist() == [[1, 1, 1, 2, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]


def test_tokens_between_two_answers_are_read_and_not_scored() -> None:
    example = Example([1, 2, 3, 4, 5, 6], 1, gaps=[(2, 4)])  # 3 and 4 are a question between two answers
    assert padded([example], 6).weights_BT.tolist() == [[1, 0, 0, 1, 1, 0]]
    batch = packed([EXAMPLES[1], example], 6)
    assert batch.weights_BT.tolist() == [[1, 1, 0, 0, 1, 1]]
    assert batch.targets_BT.tolist() == [[6, 2, 3, 4, 5, 6]]


def test_packing_loses_nothing_and_takes_few_rows() -> None:
    examples = drawn(200, 61, 33)
    batch = packed(examples, 64)
    needed = sum(example.length for example in examples)
    assert (batch.segments_BT > 0).sum() == needed and len(batch.inputs_BT) <= 1.2 * needed / 64
    found = []
    for inputs_T, targets_T, weights_T, positions_T, segments_T in zip(*batch, strict=True):
        for segment in range(1, segments_T.max() + 1):
            (columns,) = np.nonzero(segments_T == segment)
            assert positions_T[columns].tolist() == list(range(len(columns)))
            ids = [*inputs_T[columns].tolist(), int(targets_T[columns[-1]])]
            start = len(ids) - int(weights_T[columns].sum())
            assert weights_T[columns].tolist() == [0] * (start - 1) + [1] * (len(ids) - start)
            found.append((ids, start))
    assert sorted(found) == sorted((list(example.ids), example.start) for example in examples)


@pytest.mark.parametrize("position", ["learned", "rotary", "alibi"])
def test_the_loss_of_a_packed_batch_is_the_sum_of_the_losses_alone(position: str) -> None:
    config = GPTConfig(vocab=61, context=64, layers=2, heads=2, width=16, position=position, vocab_multiple=8)
    params = jax.tree.map(lambda leaf: 5 * leaf, jax.jit(define(config).init)(jax.random.key(0)))
    loss, examples = jax.jit(next_token_loss(define(config))), drawn(20, 61, 33)

    def summed(params: Params, batch: Batch) -> tuple[float, float]:
        total, weight, _ = loss(params, batch, None)
        return float(total), float(weight)

    alone = np.sum([summed(params, padded([example], 32)) for example in examples], axis=0)
    batch = packed(examples, 64)
    assert len(batch.inputs_BT) < len(examples) / 2 and alone[0] / alone[1] > 3
    np.testing.assert_allclose(summed(params, batch), alone, rtol=1e-5)
    np.testing.assert_allclose(summed(params, padded(examples, 32)), alone, rtol=1e-5)
    mixed = summed(params, batch._replace(segments_BT=np.ones_like(batch.segments_BT)))
    assert abs(mixed[0] - alone[0]) > 0.01 * alone[0]  # examples that see one another have another loss
    if position == "learned":
        running = summed(params, batch._replace(positions_BT=None))
        assert abs(running[0] - alone[0]) > 0.01 * alone[0]


def test_what_cannot_be_a_row_is_refused_with_all_its_problems() -> None:
    wrong = [Example([], 0), Example([1, 2], 3), Example([1, 2], 1), Example([1] * 6, 1), Example([1], -1)]
    for make in (padded, packed):
        with pytest.raises(DataError) as caught:
            make(wrong, 4)
        assert "example 0 has no tokens; example 1 has 2 tokens and starts at 3" in str(caught.value)
        assert "example 3 has 6 tokens; example 4" in str(caught.value)
        assert "1 to 5 tokens" in str(caught.value) and "example 2" not in str(caught.value)


def test_no_examples_are_no_rows() -> None:
    assert padded([], 3).inputs_BT.shape == packed([], 3).inputs_BT.shape == (0, 3)
