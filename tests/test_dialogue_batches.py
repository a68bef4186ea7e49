"""Dialogues as batches: what is scored, padding and packing that change nothing, the order of training."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import GPTConfig, OptimConfig
from jaxgpt.finetuning.dialogue_batches import DialogueRows, Encoded, OrderedRows, TrainingRows, encode
from jaxgpt.model.gpt import define
from jaxgpt.text.batch import Batch
from jaxgpt.text.dialogues import Dialogue, Message
from jaxgpt.text.examples import Example
from jaxgpt.text.tokenizer import RankTokenizer
from jaxgpt.training.loss import next_token_loss
from jaxgpt.training.optim import optimizer_of
from jaxgpt.training.state import start_state, train_step
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import read_params
from jaxgpt.weights.run import one_device

END = 256
GOLDEN = Path(__file__).parent / "golden"
BYTES = RankTokenizer({bytes([byte]): byte for byte in range(256)})


class Brackets:
    """`[question](answer)[question](`, with a closing bracket as the end of an answer."""

    name, stop, joint = "brackets", (), "+"

    def ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        said = "".join(f"[{text}]" if role == "user" else f"({text})" for role, text in messages)
        return BYTES.encode(said + "(")

    def answer_ids(self, messages: Sequence[tuple[str, str]], answer: str) -> list[int]:
        return BYTES.encode(answer + ")")

    def remembered(self, answer: str) -> str:
        return answer

    def files(self) -> dict[str, bytes]:
        return {}


def dialogue(*texts: str) -> Dialogue:
    return [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]


def encoded(*dialogues: Dialogue, context: int = 64, answers_only: bool = True) -> Encoded:
    return encode(dialogues, Brackets(), BYTES, context=context, answers_only=answers_only)


def scored(found: Encoded, number: int = 0) -> str:
    """The text of an example with every token that is not scored as a dot, and the end of text as $."""
    batch = DialogueRows(found.examples, context=128, pack=False).batch([number], 0, 1)
    targets_T, weights_T = batch.targets_BT[0], batch.weights_BT[0]
    text = "".join("$" if id == END else chr(id) for id in targets_T)
    return "".join(char if weight else "." for char, weight in zip(text, weights_T, strict=True)).rstrip(".")


def test_only_answers_are_scored_and_the_last_one_ends_in_the_end_of_text() -> None:
    found = encoded(dialogue("Hi", "Yo"), dialogue("Hi", "Yo", "Why", "So"))
    assert bytes(found.examples[0].ids[:-1]) == b"[Hi](Yo)" and found.examples[0].ids[-1] == END
    assert scored(found) == "....Yo)$"
    assert scored(found, 1) == "....Yo)......So)$"
    assert (found.cut, found.left_out) == (0, 0)


def test_all_tokens_are_scored_if_asked_for() -> None:
    assert scored(encoded(dialogue("Hi", "Yo"), answers_only=False)) == "Hi](Yo)$"


def test_what_is_longer_than_the_context_is_cut_and_counted() -> None:
    """A context of 8 holds 9 tokens: 8 inputs, and the target of the last."""
    found = encoded(dialogue("Hi", "Yo"), dialogue("Hi", "Yoh"), dialogue("Hello you", "Yo"), context=8)
    assert [scored(found, n) for n in range(2)] == ["....Yo)$", "....Yoh)"]
    assert (len(found.examples), found.cut, found.left_out) == (2, 1, 1)
    two = encoded(dialogue("Hi", "Yo", "Why", "So"), context=10)
    assert scored(two) == "....Yo)" and two.left_out == 0  # the second answer is cut off


def test_answers_to_rewritten_messages_are_examples_of_their_own() -> None:
    class Short(Brackets):
        def ids(self, messages: Sequence[tuple[str, str]]) -> list[int]:
            return super().ids(messages[-1:])

    found = encode([dialogue("Hi", "Yo", "Why", "So")], Short(), BYTES, context=64, answers_only=True)
    assert [scored(found, n) for n in range(2)] == ["....Yo)", ".....So)$"]


def test_an_end_that_the_template_writes_is_enough() -> None:
    class Ending(Brackets):
        def answer_ids(self, messages: Sequence[tuple[str, str]], answer: str) -> list[int]:
            return [*BYTES.encode(answer), END, *BYTES.encode("\n")]

    found = encode([dialogue("Hi", "Yo")], Ending(), BYTES, context=64, answers_only=True)
    assert scored(found) == "....Yo$\n"


def test_an_input_stands_behind_its_instruction() -> None:
    found = encoded([Message("user", "Add", "1"), Message("assistant", "2")])
    assert bytes(found.examples[0].ids[:-1]) == b"[Add+1](2)"


def drawn(count: int) -> Encoded:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, (count, 4)).tolist()
    return encoded(*(dialogue(*("x" * size for size in each)) for each in sizes))


def test_packed_dialogues_have_the_loss_and_the_gradient_of_separate_ones() -> None:
    config = GPTConfig(vocab=257, context=64, layers=2, heads=2, width=16)
    params = jax.tree.map(lambda leaf: 5 * leaf, jax.jit(define(config).init)(jax.random.key(0)))
    found = drawn(12)
    loss = next_token_loss(define(config))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def summed(params, batch: Batch):
        total, weight, _ = loss(params, batch, None)
        return total / weight, weight

    results = []
    for pack in (False, True):
        rows = DialogueRows(found.examples, context=64, pack=pack)
        results.append((len(rows), summed(params, rows.batch(range(len(rows)), 0, len(rows)))))
    (separate, ((loss_a, weight_a), grads_a)), (packed, ((loss_b, weight_b), grads_b)) = results
    assert (separate, weight_a) == (12, weight_b) and packed <= 7
    np.testing.assert_allclose(loss_b, loss_a, rtol=1e-6)
    scale = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(grads_a))
    for a, b in zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-6 * scale)


@pytest.mark.parametrize("pack", [False, True])
def test_an_epoch_has_each_row_once_and_hosts_share_a_batch(pack: bool) -> None:
    rows = DialogueRows(drawn(12).examples, context=64, pack=pack, seed=1)
    training = TrainingRows(rows, sequences=4, seed=2)
    steps = 3 * len(rows) // 4
    batches = [training.rows(step, 0, 4) for step in range(steps)]
    read = sum(int(batch.weights_BT.sum()) for batch in batches)
    once = sum(int(rows.batch([n], 0, 1).weights_BT.sum()) for n in range(len(rows)))
    if 3 * len(rows) % 4 == 0:
        assert read == 3 * once
    for batch, origins in zip(batches, map(training.origins, range(steps)), strict=True):
        for inputs_T, (place, texts) in zip(batch.inputs_BT, origins, strict=True):
            assert [list(rows._examples[number - 1].ids) for number in place["examples"]] == texts
            read_ids = [token for ids in texts for token in ids[:-1]]
            assert inputs_T[: len(read_ids)].tolist() == read_ids
    halves = [training.rows(1, begin, begin + 2) for begin in (0, 2)]
    for whole, first, second in zip(batches[1], *halves, strict=True):
        if whole is not None:
            np.testing.assert_array_equal(whole, np.concatenate([first, second]))
    other = TrainingRows(rows, sequences=4, seed=3)
    assert any(
        a.inputs_BT.shape != b.inputs_BT.shape or (a.inputs_BT != b.inputs_BT).any()
        for a, b in zip(batches, [other.rows(step, 0, 4) for step in range(steps)], strict=True)
    )


def test_rows_are_padded_to_few_lengths() -> None:
    rows = DialogueRows(encoded(dialogue("a", "b"), dialogue("a" * 20, "b")).examples, context=24, pack=False)
    assert rows.batch([0], 0, 1).inputs_BT.shape == (1, 16)
    assert rows.batch([0, 1], 0, 1).inputs_BT.shape == (1, 24)  # all hosts agree on the length of the batch


def test_ordered_rows_hold_all_once_and_fill_the_last_batch_with_nothing() -> None:
    rows = DialogueRows(drawn(10).examples, context=64, pack=False)
    ordered = OrderedRows(rows, sequences=4)
    batches = [ordered.rows(number, 0, 4) for number in range(len(ordered))]
    assert len(ordered) == 3 and [len(batch.inputs_BT) for batch in batches] == [4, 4, 4]
    assert batches[2].weights_BT[2:].sum() == 0 < batches[2].weights_BT[:2].sum(axis=1).min()
    expected = [int(rows.batch([n], 0, 1).weights_BT.sum()) for n in range(10)]
    assert [int(w) for batch in batches for w in batch.weights_BT.sum(axis=1)][:10] == expected


def test_the_fingerprint_tells_dialogues_and_their_rows_apart() -> None:
    one, other = drawn(4).examples, drawn(5).examples
    prints = [
        DialogueRows(examples, context=64, pack=pack).fingerprint
        for examples in (one, other)
        for pack in (False, True)
    ]
    assert len(set(prints)) == 4 and prints[0] == DialogueRows(one, context=64, pack=False).fingerprint


@pytest.mark.parametrize("pack", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_ten_steps_equal_pytorchs(pack: bool) -> None:
    """Conversations of two answers each, from the same parameters: see golden/make_instruct.py."""
    expected = np.load(GOLDEN / "instruct" / "expected.npz")
    examples = [
        Example(tokens_T[:end].tolist(), int(first), [(int(second), int(third))])
        for tokens_T, (_, first, second, third, end) in zip(
            expected["tokens"], expected["spans"], strict=True
        )
    ]
    stored = open_model(GOLDEN / "training")
    optim = OptimConfig(learning_rate=3e-3, beta2=0.95, clip_norm=0, schedule="constant", warmup_steps=0)
    optimizer = optimizer_of(optim, lambda _: jnp.float32(3e-3))
    loss = next_token_loss(define(stored.config))
    step = jax.jit(
        functools.partial(train_step, loss=loss, optimizer=optimizer, schedule=lambda _: jnp.float32(3e-3))
    )
    rows = DialogueRows(examples, context=16, pack=pack)
    batch = rows.batch(range(len(rows)), 0, len(rows))
    state = start_state(read_params(stored, one_device()), optimizer, jax.random.key(0))
    for value in expected["losses"]:
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
