"""The book's printed numbers: random numbers, initial weights, losses before training and while it goes on.

PyTorch made tests/golden/book. The numbers of the long tests are printed in chapter 5 of the book.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from jaxgpt.book.printed import assert_printed
from jaxgpt.book.torch_random import TorchGenerator, linear, shuffled_epoch
from jaxgpt.book.weights import book_params
from jaxgpt.config import GPTConfig, TrainConfig, load_recipe
from jaxgpt.model import block, blockwise, gpt
from jaxgpt.model.gpt import Params, define
from jaxgpt.text.batch import Batch, shifted
from jaxgpt.text.batches import window_starts
from jaxgpt.text.download import DOWNLOADS, cache_folder
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.loss import Loss, next_token_loss
from jaxgpt.training.optim import learning_rate, optimizer_of
from jaxgpt.training.state import TrainState, start_state, train_step

SEED = 123
EXPECTED = np.load(Path(__file__).parent / "golden" / "book" / "expected.npz")


def recipe_of(name: str) -> TrainConfig:
    recipe = load_recipe(name)
    assert isinstance(recipe, TrainConfig)
    return recipe


def without_dropout(config: GPTConfig, **sizes: int) -> GPTConfig:
    return dataclasses.replace(config, dropout=0.0, **sizes)


def stepping(recipe: TrainConfig, loss: Loss) -> Any:
    """The training step with the recipe's optimizer."""
    schedule = learning_rate(recipe.optim, recipe.steps)
    optimizer = optimizer_of(recipe.optim, schedule)
    return functools.partial(train_step, loss=loss, optimizer=optimizer, schedule=schedule)


def begun(recipe: TrainConfig, params: Params) -> TrainState:
    optimizer = optimizer_of(recipe.optim, learning_rate(recipe.optim, recipe.steps))
    return start_state(jax.tree.map(jnp.asarray, params), optimizer, jax.random.key(0))


def test_random_numbers_are_those_of_pytorch() -> None:
    """In the order of the golden file's maker; each leaves the generator where the next one begins."""
    generator = TorchGenerator(SEED)
    exact = {
        "rand": lambda: generator.rand(3, 5),
        "uniform": lambda: generator.uniform(-0.3, 0.7, 4, 5),
        "few_normal": lambda: generator.normal(3),
        "more_normal": lambda: generator.normal(5, 9),
        "last_normal": lambda: generator.normal(2),
        "bernoulli": lambda: generator.bernoulli(0.9, 6, 7),
        "randperm": lambda: generator.randperm(11),
        "seed": generator.seed,
    }
    for name, draw in exact.items():
        found, expected = draw(), EXPECTED[f"random_{name}"]
        # PyTorch's own vectorised logarithms and cosines are a last bit off now and then.
        within = {"rtol": 0, "atol": 5e-7} if name == "more_normal" else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(found, expected, **within, err_msg=name)
    for name, found in zip(("weight", "bias"), linear(generator, 7, 3, bias=True), strict=True):
        np.testing.assert_array_equal(found, EXPECTED[f"random_linear_{name}"])


def test_what_is_printed_is_compared_in_every_digit() -> None:
    assert_printed(np.float32([0.95444, -1.4755]), [0.9544, -1.4755])
    assert_printed(10.987583, 10.98758, digits=5)
    assert_printed([["a", "b"]], [["a", "b"]])
    numbers = [([2.0, 0.9545], [2.0, 0.9544]), ([1.0, 1.0], [1.0]), (124412161, 124412160), (np.nan, 1.0)]
    wrong: list[tuple[Any, Any]] = [*numbers, (["a"], ["b"])]
    for ours, printed in wrong:
        with pytest.raises(AssertionError, match=r"ours"):
            assert_printed(ours, printed)
    with pytest.raises(AssertionError, match=r"ours"):
        assert_printed(4.8e-06, 4.7559e-06, digits=9)


def test_draws_by_probability_are_those_that_the_book_prints() -> None:
    """Chapter 5 draws one of nine words a thousand times with `torch.multinomial`, at a temperature of 5."""
    logits_V = np.array([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79], np.float32)
    generator, probabilities_V = TorchGenerator(SEED), np.asarray(jax.nn.softmax(logits_V / 5))
    draws = [generator.multinomial(probabilities_V) for _ in range(1000)]
    assert np.bincount(draws, minlength=9).tolist() == [165, 75, 42, 239, 71, 46, 32, 227, 103]


@pytest.mark.parametrize(
    ("recipe", "name", "within"), [("book-ch05", "ch05", 1e-5), ("book-appendix-d", "appendix_d", 3e-3)]
)
def test_a_small_model_of_the_book_trains_as_in_pytorch(recipe: str, name: str, within: float) -> None:
    """The recipe's own settings, with other sizes and without dropout: weights, order, and every step's loss.

    The cosine of the book ends one step later than ours, so that rates and losses part a little in the end.
    """
    full = recipe_of(recipe)
    sizes = {"vocab": 61, "context": 16, "layers": 2, "heads": 4, "width": 24, "vocab_multiple": 8}
    config, windows = without_dropout(full.model, **sizes), EXPECTED["windows"]
    generator = TorchGenerator(SEED)
    params = book_params(generator, config)
    model = define(config, unrolled=True)
    logits_BTV = jax.jit(model.apply)(params, windows[:2, :-1])
    np.testing.assert_allclose(logits_BTV, EXPECTED[f"{name}_logits"], rtol=0, atol=2e-6)
    state, step = begun(full, params), jax.jit(stepping(full, next_token_loss(model)))
    measured = []
    for number in range(full.steps):
        if number % 9 == 0:
            order = shuffled_epoch(generator, len(windows)).reshape(9, 2)
        np.testing.assert_array_equal(order[number % 9], EXPECTED[f"{name}_order"][number])
        state, metrics = step(state, shifted(windows[order[number % 9]]))
        measured.append([float(metrics[each]) for each in ("loss", "grad_norm", "learning_rate")])
    expected = np.stack([EXPECTED[f"{name}_{each}"] for each in ("loss", "grad_norm", "learning_rate")], 1)
    found, same = np.array(measured), 30  # steps in which the schedules are the same but for 1e-6
    np.testing.assert_allclose(found[:same], expected[:same], rtol=2e-5)
    np.testing.assert_allclose(found[:, 0], expected[: len(found), 0], rtol=within)
    assert np.abs(found[:, 2] - expected[: len(found), 2]).max() < 0.009 * full.optim.learning_rate


@pytest.fixture(scope="module")
def windows() -> tuple[np.ndarray, np.ndarray]:
    """The Verdict as the book cuts it: 18 windows of 257 tokens to train on, and 2 for validation."""
    path = cache_folder() / DOWNLOADS["the-verdict"].file
    if not path.is_file():
        pytest.skip(f"The Verdict is not at {path}: `jaxgpt prepare the-verdict --out DIR` fetches it there")
    text, tokenizer = path.read_text(encoding="utf-8"), load_tokenizer("gpt2")
    cut = int(0.9 * len(text))
    parts = [np.array(tokenizer.encode(part), np.int32) for part in (text[:cut], text[cut:])]
    assert len(text) == 20479 and [len(part) for part in parts] == [4612, 534]
    train, val = (np.stack([ids[i : i + 257] for i in window_starts(len(ids), 256, 256)]) for ids in parts)
    return train, val


def mean_of_batches(loss: Any, params: Params, batches: list[np.ndarray]) -> float:
    """The mean of the batches' mean losses, as the book's calc_loss_loader takes it."""
    sums = [loss(params, shifted(batch), None)[:2] for batch in batches]
    return float(np.mean([float(total) / float(weight) for total, weight in sums]))


@pytest.mark.slow
def test_losses_before_training_are_those_that_the_book_prints(
    windows: tuple[np.ndarray, np.ndarray],
) -> None:
    """124M, float32: 10.98758 and 10.98111 on The Verdict, and 10.7940 on the batch of two examples."""
    config = without_dropout(recipe_of("book-ch05").model)
    params, (train, val) = book_params(TorchGenerator(SEED), config), windows
    model = define(config, unrolled=True)
    loss = jax.jit(next_token_loss(model))
    assert mean_of_batches(loss, params, [*train.reshape(9, 2, 257)]) == pytest.approx(10.98758, abs=6e-6)
    assert mean_of_batches(loss, params, [val]) == pytest.approx(10.98111, abs=6e-6)
    examples = np.array([[16833, 3626, 6100, 345], [40, 1107, 588, 11311]], np.int32)
    assert mean_of_batches(loss, params, [examples]) == pytest.approx(10.7940, abs=6e-5)
    log_probabilities = jax.nn.log_softmax(jax.jit(model.apply)(params, examples[:, :-1]))
    found = np.take_along_axis(np.asarray(log_probabilities), examples[:, 1:, None], -1).ravel()
    printed = [-9.5042, -10.3796, -11.3677, -11.4798, -9.7764, -12.2561]
    np.testing.assert_allclose(found, printed, rtol=0, atol=6e-5)


def masks_of_a_step(generator: TorchGenerator, config: GPTConfig, rows: int) -> list[np.ndarray]:
    """What dropout keeps in a training step, in the order in which the book's model and ours ask for it.

    Ours asks for the attention weights of 128 queries at a time, and for no keys behind them.
    """
    keep, T = 1 - config.dropout, config.context
    stream = (rows, T, config.width)
    masks = [generator.bernoulli(keep, *stream)]
    for _ in range(config.layers):
        weights = generator.bernoulli(keep, rows, config.heads, T, T)
        size = blockwise.QUERY_BLOCK
        masks += [weights[:, :, at : at + size, : at + size] for at in range(0, T, size)]
        masks += [generator.bernoulli(keep, *stream) for _ in range(2)]
    return masks


@pytest.mark.slow
def test_losses_after_the_first_step_are_those_that_the_book_prints(
    windows: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Ep 1 (Step 000000): Train loss 9.781, Val loss 9.933`, with the dropout that PyTorch drew."""
    recipe, (train, val) = recipe_of("book-ch05"), windows
    generator = TorchGenerator(SEED)
    params = book_params(generator, recipe.model)
    plain = next_token_loss(define(recipe.model, unrolled=True))
    asked: list[Array] = []

    def drop(x: Array, rate: float, key: Array | None) -> Array:
        return x if key is None else jnp.where(asked.pop(0), x / (1 - rate), 0)

    def loss(params: Params, given: tuple[Batch, list[Array]], key: Array | None) -> Any:
        asked.extend(given[1])
        return plain(params, given[0], key)

    for module in (block, blockwise, gpt):
        monkeypatch.setattr(module, "drop", drop)
    batch = shifted(train[shuffled_epoch(generator, len(train))[:2]])
    masks = masks_of_a_step(generator, recipe.model, rows=2)
    state, _ = jax.jit(stepping(recipe, loss), donate_argnums=0)(begun(recipe, params), (batch, masks))
    assert not asked
    first_five = train[shuffled_epoch(generator, len(train))[:10]].reshape(5, 2, 257)
    evaluated = jax.jit(plain)
    assert mean_of_batches(evaluated, state.params, [*first_five]) == pytest.approx(9.781, abs=1e-3)
    assert mean_of_batches(evaluated, state.params, [val]) == pytest.approx(9.933, abs=1e-3)
