"""What a new run begins with: the weights of a given model, in the state as if they had been drawn."""

import dataclasses
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import pytest

import jaxgpt
from jaxgpt.config import GPTConfig, MeshConfig, OptimConfig, TrainConfig
from jaxgpt.errors import ConfigError
from jaxgpt.files import write_files
from jaxgpt.language_model import LanguageModel
from jaxgpt.model.gpt import define
from jaxgpt.pretraining import pretraining
from jaxgpt.text.tokenizer import RankTokenizer, Tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.initial import initial_state
from jaxgpt.training.optim import averaged, learning_rate, optimizer_of
from jaxgpt.training.state import TrainState
from jaxgpt.weights.convert import with_dtype, write_model
from jaxgpt.weights.params import stored_params
from jaxgpt.weights.tensors import StoredModel

IDS = 257  # of the bytes, and of the end of a text
SMALL = GPTConfig(vocab=IDS, context=8, layers=1, heads=1, width=8)
BYTES = load_tokenizer("bytes")


def written(
    folder: Path, config: GPTConfig, tokenizer: Tokenizer | None = BYTES, *, dtype: str = "float32"
) -> LanguageModel:
    """A model in a folder, of which every stored row of the embedding is random; and the model itself."""
    params = jax.jit(define(dataclasses.replace(config, vocab=config.padded_vocab)).init)(jax.random.key(5))
    stored = StoredModel(config, stored_params(config, params).tensors, tokenizer)
    write_model(with_dtype(stored, dtype), folder, "jaxgpt")
    return LanguageModel(config, params, tokenizer)


def begin(
    source: Path | None,
    told: list[str] | None = None,
    model: GPTConfig = SMALL,
    stated: Collection[str] = (),
    **optim: Any,
) -> TrainState:
    """The state that a run on bytes begins with, its parameters split over two devices."""
    settings = OptimConfig(**optim)
    recipe = TrainConfig(
        model=model, optim=settings, init_from=source and str(source), data=DATA, mesh=MeshConfig(fsdp=2)
    )
    tell = ([] if told is None else told).append
    recipe, task = pretraining(recipe, tell=tell, stated=stated)
    if source:  # then nothing is drawn

        def init(key: jax.Array) -> NoReturn:
            raise AssertionError("random parameters were made")

        task = dataclasses.replace(task, model=task.model._replace(init=init))
    optimizer = optimizer_of(settings, learning_rate(settings, 10))
    return initial_state(recipe, task, optimizer, tell)


DATA = dataclasses.replace(TrainConfig().data, tokenizer="bytes")


def assert_equal(ours: Any, theirs: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_parameters_and_their_average_begin_as_the_given_ones(tmp_path: Path) -> None:
    given = written(tmp_path / "model", SMALL)
    state = begin(tmp_path / "model", ema_decay=0.5)
    params = {**given.params, "wte": {"embedding": given.params["wte"]["embedding"].at[IDS:].set(0)}}
    assert_equal(state.params, params)
    assert_equal(averaged(state.opt_state), params)
    kernel = state.params["h"]["mlp"]["c_fc"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 4, 32)  # it lies on the mesh


def test_the_rest_of_the_state_is_that_of_a_random_beginning(tmp_path: Path) -> None:
    written(tmp_path / "model", SMALL)
    ours, random = begin(tmp_path / "model"), begin(None)
    assert (
        int(ours.step) == 0
        and jax.random.key_data(ours.key).tolist() == jax.random.key_data(random.key).tolist()
    )
    assert_equal(ours.opt_state, random.opt_state)
    assert not np.allclose(ours.params["wte"]["embedding"], random.params["wte"]["embedding"])


def test_a_run_keeps_where_texts_end_and_how_to_chat(tmp_path: Path) -> None:
    beside = {
        "generation_config.json": b'{\n  "eos_token_id": 10\n}\n',
        "chat_template.jinja": b"hi",
        "additional_chat_templates/rag.jinja": b"read",
    }
    written(tmp_path / "model", SMALL)
    write_files(tmp_path / "model", beside)
    (tmp_path / "text").write_text("a text of a few words " * 20)
    recipe = TrainConfig(
        model=SMALL,
        init_from=str(tmp_path / "model"),
        data=dataclasses.replace(DATA, path=str(tmp_path / "text"), val_fraction=0),
        out_dir=str(tmp_path / "run"),
        steps=1,
        batch=8,  # of one row for each device
        eval_every=0,
    )
    model = jaxgpt.train(recipe, progress=False).model
    assert model.ends == {10} and model.templates == {"default": "hi", "rag": "read"}
    assert all((tmp_path / "run" / name).read_bytes() == content for name, content in beside.items())
    shutil.rmtree(tmp_path / "model")  # a run that is resumed does not need it
    assert pretraining(recipe, tell=print)[1].files == {}


def test_a_model_of_another_tokenizer_is_refused_though_it_has_as_many_ids(tmp_path: Path) -> None:
    turned = RankTokenizer({bytes([255 - byte]): byte for byte in range(256)})
    written(tmp_path / "model", SMALL, turned)
    with pytest.raises(ConfigError) as refused:
        begin(tmp_path / "model", stated={"data.tokenizer"})
    assert f"its tokenizer is {turned.name} ({turned.vocab} ids)" in str(refused.value)
    assert "the data's is bytes (257 ids)" in str(refused.value)


def test_rows_beyond_the_tokenizers_ids_are_kept_and_never_predicted(tmp_path: Path) -> None:
    """As nanoGPT has it: 50,304 rows for 50,257 ids."""
    given = written(tmp_path / "model", dataclasses.replace(SMALL, vocab=300))
    state = begin(tmp_path / "model")
    rows = state.params["wte"]["embedding"]
    assert rows.shape == (384, 8) and np.all(np.abs(rows[IDS:300]).sum(1) > 0) and not np.any(rows[300:])
    np.testing.assert_array_equal(rows[:300], given.params["wte"]["embedding"][:300])
    logits = define(SMALL).apply(state.params, np.zeros((1, 3), np.int32))
    expected = define(given.text_config).apply(given.params, np.zeros((1, 3), np.int32))
    assert logits.shape == (1, 3, IDS)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)


def test_the_run_stores_as_many_rows_as_the_given_model_unless_told_otherwise(tmp_path: Path) -> None:
    written(tmp_path / "model", dataclasses.replace(SMALL, vocab=400))
    assert begin(tmp_path / "model").params["wte"]["embedding"].shape == (512, 8)
    stated = {"model.vocab_multiple"}
    with pytest.raises(ConfigError, match=r"400 rows, the run's has 384; .*: --model.vocab-multiple 400"):
        begin(tmp_path / "model", stated=stated)
    state = begin(tmp_path / "model", model=dataclasses.replace(SMALL, vocab_multiple=400), stated=stated)
    assert state.params["wte"]["embedding"].shape == (400, 8)


def test_fewer_ids_than_the_tokenizer_has_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "model", dataclasses.replace(SMALL, vocab=200), None)
    with pytest.raises(ConfigError, match="vocab is 200 there, 257 here"):
        begin(tmp_path / "model")


def test_the_weights_decide_the_architecture_and_that_is_said(tmp_path: Path) -> None:
    """All of it, also what follows from the width; how it is trained stays the recipe's."""
    model = dataclasses.replace(SMALL, width=16, heads=2, mlp_width=24, bias=False, position="rotary")
    written(tmp_path / "model", model)
    told: list[str] = []
    preset = GPTConfig(dropout=0.1, compute_dtype="bfloat16")
    recipe = TrainConfig(model=preset, init_from=str(tmp_path / "model"), data=DATA)
    given, _ = pretraining(recipe, tell=told.append)
    trained = dataclasses.replace(model, dropout=0.1, compute_dtype="bfloat16")
    assert given.model == trained and given.tokens_per_step == 8 * 8
    assert f"the architecture is that of {tmp_path / 'model'}: context 8 instead of 1024" in told[0]
    assert "width 16 instead of 768" in told[0] and "bias False instead of True" in told[0]


def test_a_setting_that_was_given_by_name_must_be_that_of_the_weights(tmp_path: Path) -> None:
    written(tmp_path / "model", SMALL)
    other = dataclasses.replace(SMALL, activation="relu", layers=2)
    with pytest.raises(ConfigError) as refused:
        begin(tmp_path / "model", model=other, stated={"model.activation", "model.width", "steps"})
    assert "activation is 'gelu_tanh' there, 'relu' was asked for; leave out model.activation" in str(
        refused.value
    )
    assert "layers" not in str(refused.value)
    with pytest.raises(ConfigError, match="layers is 1 there, 2 was asked for"):
        begin(tmp_path / "model", model=other, stated={"model"})
    assert begin(tmp_path / "model", model=SMALL, stated={"model"}).params["wpe"]["embedding"].shape == (8, 8)


def test_a_text_is_tokenized_with_the_tokenizer_of_the_weights(tmp_path: Path) -> None:
    """Unless another one was given by name, which is then refused."""
    turned = RankTokenizer({bytes([255 - byte]): byte for byte in range(256)})
    for folder, tokenizer in (("bytes", BYTES), ("turned", turned)):
        written(tmp_path / folder, SMALL, tokenizer)
        recipe = TrainConfig(init_from=f"{tmp_path / folder}@0")
        _, task = pretraining(recipe, tell=lambda _: None)
        assert task.tokenizer.sha256 == tokenizer.sha256
    assert pretraining(recipe, tell=lambda _: None, stated={"data.tokenizer"})[1].tokenizer.name == "gpt2"


def test_a_model_without_a_tokenizer_is_taken_and_that_is_said(tmp_path: Path) -> None:
    written(tmp_path / "model", SMALL, None)
    told: list[str] = []
    begin(tmp_path / "model", told)
    assert told == [f"{tmp_path / 'model'} came without a tokenizer: its ids are taken to be those of bytes"]


@pytest.mark.slow
def test_16_bit_weights_are_widened_and_that_is_said(tmp_path: Path) -> None:
    given = written(tmp_path / "model", SMALL, dtype="bfloat16")
    told: list[str] = []
    state = begin(tmp_path / "model", told)
    assert told == [f"{tmp_path / 'model'}: widened from bfloat16 to float32"]
    kernel = state.params["h"]["mlp"]["c_fc"]["kernel"]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.params)} == {"float32"}
    rounded = given.params["h"]["mlp"]["c_fc"]["kernel"].astype("bfloat16").astype("float32")
    np.testing.assert_array_equal(kernel, rounded)
