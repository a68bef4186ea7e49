"""A classifier equals transformers' and torch's, and what it finds does not depend on padding."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import MeshConfig, OptimConfig
from jaxgpt.finetuning.class_batches import Encoded, Rows, TrainingTexts
from jaxgpt.finetuning.class_head import class_logits, class_loss, mean_loss, pooled, predictor
from jaxgpt.model.gpt import define
from jaxgpt.parallel import mesh_of
from jaxgpt.training.optim import optimizer_of
from jaxgpt.training.state import start_state, train_step
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import read_params
from jaxgpt.weights.run import one_device

GOLDEN = Path(__file__).parent / "golden" / "classifier"
EXPECTED = np.load(GOLDEN / "expected.npz")
STORED = open_model(GOLDEN)
PADDING = 60
TEXTS = [list(map(int, row[:n])) for row, n in zip(EXPECTED["tokens"], EXPECTED["lengths"], strict=True)]
DATA = Encoded(TEXTS, list(map(int, EXPECTED["labels"])), 0)
FORM = Rows(context=16, padding=PADDING)


@pytest.fixture(scope="module")
def params():
    return read_params(STORED, one_device())


def test_logits_equal_those_of_transformers(params) -> None:
    assert STORED.head is not None and STORED.head.labels == ("ham", "spam", "other")
    logits = predictor(define(STORED.config), one_device(), "last", FORM)(params, DATA)
    np.testing.assert_allclose(logits, EXPECTED["logits"], rtol=0, atol=1e-5)


def test_ten_steps_equal_pytorchs(params) -> None:
    optim = OptimConfig(learning_rate=3e-3, beta2=0.95, clip_norm=0, schedule="constant", warmup_steps=0)
    optimizer = optimizer_of(optim, lambda _: jnp.float32(3e-3))
    loss = class_loss(define(STORED.config), "last")
    step = jax.jit(
        functools.partial(train_step, loss=loss, optimizer=optimizer, schedule=lambda _: jnp.float32(3e-3))
    )
    state, batch = start_state(params, optimizer, jax.random.key(0)), FORM.batch(DATA, range(6), 16)
    for expected in EXPECTED["losses"]:
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert metrics["accuracy"] > 0.5


@pytest.mark.parametrize("reads", ["last", "first", "mean"])
def test_what_is_found_of_a_text_does_not_depend_on_padding_or_on_other_texts(params, reads) -> None:
    model = define(STORED.config)
    run = jax.jit(lambda batch: class_logits(model, params, batch, reads))
    narrow = run(FORM.batch(DATA, [2, 5], 4))
    wide = run(FORM.batch(DATA, [5, 1, 2], 16))
    np.testing.assert_allclose(narrow, wide[jnp.array([2, 0])], rtol=0, atol=1e-5)
    other = run(Rows(context=16, padding=7).batch(DATA, [5, 1, 2], 16))
    np.testing.assert_allclose(other, wide, rtol=0, atol=1e-6)


def test_the_state_that_is_read_is_the_one_named() -> None:
    x_BTD, length_B = np.arange(24, dtype=np.float32).reshape(2, 4, 3), jnp.array([2, 4])
    np.testing.assert_array_equal(pooled(x_BTD, length_B, "last"), x_BTD[[0, 1], [1, 3]])
    np.testing.assert_array_equal(pooled(x_BTD, length_B, "first"), x_BTD[:, 0])
    np.testing.assert_array_equal(pooled(x_BTD, length_B, "end"), x_BTD[:, 3])
    np.testing.assert_array_equal(pooled(x_BTD, length_B, "mean"), [x_BTD[0, :2].mean(0), x_BTD[1].mean(0)])


def test_many_texts_on_a_mesh_are_found_in_their_order() -> None:
    numbers = [5, 0, 1, 3, 2, 4] * 6
    many = Encoded([DATA.ids[n] for n in numbers], [0] * 36, 0)
    mesh, told = mesh_of(MeshConfig(data=4, fsdp=2)), list[tuple[int, int]]()
    predict = predictor(define(STORED.config), mesh, "last", FORM)
    logits = predict(read_params(STORED, mesh), many, lambda *shown: told.append(shown))
    assert told == [(0, 36), (32, 36), (36, 36)]
    np.testing.assert_allclose(logits, EXPECTED["logits"][numbers], rtol=0, atol=1e-5)
    labels = EXPECTED["labels"][numbers]
    exact = EXPECTED["logits"][numbers]
    chosen = exact[np.arange(36), labels] - np.log(np.exp(exact).sum(axis=1))
    assert mean_loss(logits, labels) == pytest.approx(-chosen.mean(), abs=1e-5)


def test_every_epoch_has_each_text_once_and_rows_fit_their_texts() -> None:
    texts = TrainingTexts(DATA, FORM, sequences=4, seed=1)
    seen = []
    for step in range(3):
        batch = texts.rows(step, 0, 4)
        assert batch.inputs_BT.shape == (4, 16) and batch.weight_B.tolist() == [1] * 4
        for row in range(4):
            ids = batch.inputs_BT[row]
            assert set(ids[batch.length_B[row] :].tolist()) <= {PADDING}
            seen.append(ids[: batch.length_B[row]].tolist())
    assert sorted(seen[:6]) == sorted(seen[6:]) == sorted(DATA.ids) and seen[:6] != seen[6:]
    told = [origin for step in range(3) for origin in texts.origins(step)]
    assert [origin.texts for origin in told] == [[ids] for ids in seen]
    assert [DATA.ids[origin.place["text"] - 1] for origin in told] == seen
    part = texts.rows(1, 2, 4)
    np.testing.assert_array_equal(part.inputs_BT, texts.rows(1, 0, 4).inputs_BT[2:])


def test_lengths_are_few() -> None:
    form = Rows(context=100, padding=0)
    data = Encoded([[1] * n for n in range(1, 101)], [0] * 100, 0)
    assert {form.length_for(data, [n]) for n in range(100)} == {16, 32, 64, 100}
    assert Rows(context=100, padding=0, length=77).length_for(data, [3]) == 77
