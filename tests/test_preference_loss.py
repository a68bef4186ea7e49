"""The loss of DPO: pairs by hand, padding that changes nothing, and ten steps that equal PyTorch's."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import GPTConfig, OptimConfig
from jaxgpt.errors import DataError
from jaxgpt.finetuning.dialogue_batches import OrderedRows, TrainingRows
from jaxgpt.finetuning.preference_batches import PairRows, encode_pairs, shown_pairs
from jaxgpt.finetuning.preference_loss import (
    Answer,
    answer_log_probabilities,
    answer_token_losses,
    pair_losses,
    preference_loss,
)
from jaxgpt.finetuning.reference import keep, kept, measured
from jaxgpt.inference.templates import Plain
from jaxgpt.model.gpt import Model, Params, define
from jaxgpt.text.dialogues import Message
from jaxgpt.text.examples import Example
from jaxgpt.text.preferences import Pair
from jaxgpt.text.tokenizer import byte_tokenizer
from jaxgpt.training.loss import Loss
from jaxgpt.training.optim import optimizer_of
from jaxgpt.training.state import start_state, train_step
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import read_params
from jaxgpt.weights.run import one_device

GOLDEN = Path(__file__).parent / "golden"
# The prompt 5; of the chosen answer 1 and 0, of the rejected one 0 alone. All pairs are alike.
PAIR = Example([2, 1, 0], 1), Example([2, 0], 1)


def logits_of(params: Any) -> Model:
    """A model that predicts the same everywhere: its parameters are the logits."""

    def hidden(params, tokens_BT, *, positions_BT=None, segments_BT=None, cache=None, key=None):  # type: ignore[no-untyped-def]
        return jnp.broadcast_to(params, (*tokens_BT.shape, 3)), None

    return Model(lambda key: params, hidden, lambda _, x: x, lambda _, x: x, lambda _, x: x)


def by_hand(answer: Answer, **settings: float) -> tuple[Any, Any, Any]:
    """Loss, metrics and gradient of a pair, beside a row that only fills the batch.

    The tokens have the probabilities 1/2, 1/4 and 1/4. Before, each had a third.
    """
    third, logits = -np.log(3), jnp.log(jnp.array([2.0, 1.0, 1.0]))
    reference = [2 * third if answer == "sum" else third, third]
    rows = PairRows([PAIR], context=16).with_reference(lambda _: np.array([reference], np.float32))
    model = logits_of(logits)
    loss = preference_loss(answer_log_probabilities(model, answer=answer), **settings)
    batch = rows.batch([0, -1], 0, 2)

    def total(logits: Any) -> Any:
        sums, weight, metrics = loss(logits, batch, None)
        assert weight == 1
        return sums, metrics

    (value, metrics), grad = jax.value_and_grad(total, has_aux=True)(logits)
    return value, metrics, grad


def test_a_pair_by_hand_summed_over_tokens_as_in_the_paper() -> None:
    """The chosen answer has the probability 1/8 and had 1/9, the rejected one 1/2 and had 1/3.

    With beta 2, the rewards are 2 log 9/8 and 2 log 3/2, and the margin is 2 log 3/4. The sigmoid of that is
    9/25. The gradient with respect to the log-probabilities is -2 (1 - 9/25) and its opposite.
    """
    value, metrics, grad = by_hand("sum", beta=2)
    assert float(value) == pytest.approx(-np.log(9 / 25), rel=1e-5)
    expected = {
        "chosen_reward": 2 * np.log(9 / 8),
        "rejected_reward": 2 * np.log(3 / 2),
        "margin": 2 * np.log(3 / 4),
        "accuracy": 0,
    }
    assert {name: float(mean) for name, mean in metrics.items()} == pytest.approx(expected, rel=1e-5)
    # d log p(1) + log p(0) - log p(0) = d log p(1) = (0, 1, 0) - (1/2, 1/4, 1/4)
    np.testing.assert_allclose(grad, -2 * 16 / 25 * np.array([-1 / 2, 3 / 4, -1 / 4]), rtol=1e-5)


def test_a_pair_by_hand_averaged_over_tokens_and_smoothed() -> None:
    """The mean of the chosen answer is half as large: its change is log 9/8 / 2."""
    value, metrics, _ = by_hand("mean", beta=1, label_smoothing=0.25)
    margin = np.log(9 / 8) / 2 - np.log(3 / 2)
    expected = 0.75 * np.log1p(np.exp(-margin)) + 0.25 * np.log1p(np.exp(margin))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["margin"]) == pytest.approx(margin, rel=1e-5)


@pytest.mark.parametrize(("answer", "chosen"), [("sum", 3 * np.log(2)), ("mean", 1.5 * np.log(2))])
def test_the_answers_of_a_batch_are_shown_with_the_loss_of_each_token(answer: Answer, chosen: float) -> None:
    """The same pair; with the mean, the chosen answer of two tokens has changed half as much."""
    third = -np.log(3)
    reference = [2 * third if answer == "sum" else third, third]
    rows = PairRows([PAIR], context=16).with_reference(lambda _: np.array([reference], np.float32))
    logits, batch = jnp.log(jnp.array([2.0, 1.0, 1.0])), rows.batch([0, -1], 0, 2)
    losses_B2T = np.asarray(answer_token_losses(logits_of(logits))(logits, batch, None))
    assert losses_B2T.shape == (2, 2, 16)
    changes = [-chosen - reference[0], -np.log(2) - third]
    found = shown_pairs(
        batch,
        losses_B2T,
        tokenizer=byte_tokenizer(),
        mean=answer == "mean",
        loss=lambda change_B2: pair_losses(2 * (change_B2[:, 0] - change_B2[:, 1])),
    )
    logprobs, names = (-chosen, -np.log(2)), ("chosen", "rejected")
    assert [shown.title for shown in found] == [
        f"pair 1, {name} answer, log-probability {logprob:.4f} ({change:+.4f} since step 0), loss of the pair"
        for name, logprob, change in zip(names, logprobs, changes, strict=True)
    ]
    loss = np.log1p(np.exp(-2 * (changes[0] - changes[1])))
    assert [shown.loss for shown in found] == pytest.approx([loss, loss], rel=1e-5)
    (prompt, *scored), (_, alone) = (shown.tokens for shown in found)
    assert prompt == ("\x02", None) and [text for text, _ in scored] == ["\x01", "\x00"]
    assert [value for _, value in (*scored, alone)] == pytest.approx(
        [np.log(4), np.log(2), np.log(2)], rel=1e-5
    )


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Example, Example]]:
    """Pairs of questions and answers of different lengths, in bytes."""
    rng = np.random.default_rng(0)
    texts = [["x" * size for size in sizes] for sizes in rng.integers(2, 14, (5, 3)).tolist()]
    given = [Pair((Message("user", asked),), "a" + better, "b" + worse) for asked, better, worse in texts]
    tokenizer = byte_tokenizer()
    found, left_out = encode_pairs(given, Plain(tokenizer), tokenizer, context=40)
    assert (len(found), left_out) == (5, 0)
    return found


def test_only_answers_and_their_end_are_scored_and_what_is_too_long_is_counted() -> None:
    tokenizer = byte_tokenizer()
    given = [Pair((Message("user", "Hi"),), "Yo", "Oh no"), Pair((Message("user", "Hi"),), "Yo", "x" * 30)]
    found, left_out = encode_pairs(given, Plain(tokenizer), tokenizer, context=8)
    assert left_out == 1 and len(found) == 1
    batch = PairRows(found, context=8).batch([0], 0, 1)
    assert batch.sequences.inputs_BT.shape == (1, 2, 8)
    np.testing.assert_array_equal(
        batch.sequences.weights_BT[0], [[0, 1, 1, 1, 0, 0, 0, 0], [0] + [1] * 6 + [0]]
    )
    np.testing.assert_array_equal(batch.sequences.targets_BT[0, 0, 1:4], [*b"Yo", 256])


def test_training_begins_at_log_two_and_padding_changes_nothing(pairs: list[tuple[Example, Example]]) -> None:
    config = GPTConfig(vocab=257, context=40, layers=1, heads=2, width=16)
    params = jax.tree.map(lambda leaf: 5 * leaf, jax.jit(define(config).init)(jax.random.key(0)))
    rows = PairRows(pairs, context=40)
    measure = answer_log_probabilities(define(config), answer="sum", chunk=6)
    sizes = {"mesh": one_device(), "sequences": 2, "between": lambda *_: None}
    found = measured(measure, params, {"train": rows}, **sizes)["train"]
    assert found.shape == (5, 2) and (found < 0).all()
    unchunked = jax.jit(answer_log_probabilities(define(config), answer="sum"))
    alone = [unchunked(params, rows.batch([number], 0, 1), None)[0] for number in range(5)]
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    rows = rows.with_reference(lambda _: found)
    loss = jax.jit(preference_loss(measure, beta=0.1))
    for batch in (rows.batch(range(5), 0, 5), OrderedRows(rows, sequences=3).rows(1, 0, 3)):
        total, weight, metrics = loss(params, batch, None)
        np.testing.assert_allclose(total / weight, np.log(2), rtol=1e-5)
        assert max(abs(float(metrics[name] / weight)) for name in ("chosen_reward", "margin")) < 1e-4


def test_a_reference_of_another_number_of_pairs_is_refused(tmp_path: Path) -> None:
    keep(tmp_path, {"train": np.ones((3, 2), np.float32)})
    np.testing.assert_array_equal(kept(tmp_path, "train", 3), np.ones((3, 2)))
    with pytest.raises(DataError, match="each of 4 pairs"):
        kept(tmp_path, "train", 4)


def test_an_epoch_has_each_pair_once_and_hosts_share_a_batch(pairs: list[tuple[Example, Example]]) -> None:
    reference = np.arange(10, dtype=np.float32).reshape(5, 2)
    training = TrainingRows(
        PairRows(pairs, context=40).with_reference(lambda _: reference), sequences=5, seed=1
    )
    whole = training.rows(0, 0, 5)
    assert sorted(whole.reference_B2.ravel()) == [*range(10)] and whole.weight_B.tolist() == [1] * 5
    origins = training.origins(0)
    for origin, reference_2, inputs_2T in zip(
        origins, whole.reference_B2, whole.sequences.inputs_BT, strict=True
    ):
        assert reference_2.tolist() == reference[origin.place["pair"] - 1].tolist()
        assert [
            inputs_T[: len(ids) - 1].tolist() for inputs_T, ids in zip(inputs_2T, origin.texts, strict=True)
        ] == [ids[:-1] for ids in origin.texts]
    parts = training.rows(0, 0, 2), training.rows(0, 2, 5)
    for one, *others in zip(*(jax.tree.leaves(each) for each in (whole, *parts)), strict=True):
        np.testing.assert_array_equal(one, np.concatenate(others))


def ten_steps(params: Params, loss: Loss, batch: Any) -> dict[str, list[float]]:
    optim = OptimConfig(learning_rate=3e-3, beta2=0.95, clip_norm=0, schedule="constant", warmup_steps=0)
    optimizer = optimizer_of(optim, lambda _: jnp.float32(3e-3))
    step = jax.jit(
        functools.partial(train_step, loss=loss, optimizer=optimizer, schedule=lambda _: jnp.float32(3e-3))
    )
    state, found = start_state(params, optimizer, jax.random.key(0)), dict[str, list[float]]()
    for _ in range(10):
        state, metrics = step(state, batch)
        for name, value in metrics.items():
            found.setdefault(name, []).append(float(value))
    return found


@pytest.mark.parametrize(
    ("answer", "smoothing"), [("sum", 0.1), pytest.param("mean", 0.0, marks=pytest.mark.exhaustive)]
)
def test_ten_steps_equal_pytorchs(answer: Answer, smoothing: float) -> None:
    """From the same parameters: see golden/make_dpo.py. The norms of the gradients are equal too."""
    expected = np.load(GOLDEN / "dpo" / "expected.npz")
    examples = [
        Example(tokens_T[:end].tolist(), int(begin))
        for tokens_T, (begin, end) in zip(expected["tokens"], expected["spans"], strict=True)
    ]
    stored = open_model(GOLDEN / "training")
    params = read_params(stored, one_device())
    rows = PairRows([*zip(examples[::2], examples[1::2], strict=True)], context=16)
    measure = jax.jit(answer_log_probabilities(define(stored.config), answer=answer))
    reference = np.asarray(measure(params, rows.batch(range(6), 0, 6), None))
    batch = rows.with_reference(lambda _: reference).batch(range(6), 0, 6)
    found = ten_steps(params, preference_loss(measure, beta=0.5, label_smoothing=smoothing), batch)
    for name in ("loss", "chosen_reward", "rejected_reward", "margin", "grad_norm"):
        values = expected[f"{answer}_{name}"]
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["accuracy"][1:], expected[f"{answer}_accuracy"][1:], rtol=1e-6)
