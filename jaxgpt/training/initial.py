"""The state that a new run begins with: random parameters, or the parameters of an existing model."""

import dataclasses
from collections.abc import Callable

import optax

from jaxgpt.config import GPTConfig, TrainConfig
from jaxgpt.errors import ConfigError
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.training.state import TrainState, create_state
from jaxgpt.training.task import Task
from jaxgpt.weights.convert import with_dtype
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import read_params
from jaxgpt.weights.tensors import StoredModel


def initial_state(
    recipe: TrainConfig, task: Task, optimizer: optax.GradientTransformation, tell: Callable[[str], None]
) -> TrainState:
    """The state before the first step, sharded over the task's mesh.

    Raises ConfigError where the model of `--from` differs from the recipe's model, or its tokenizer from the
    tokenizer of the data.
    """
    if recipe.init_from is None:
        return create_state(task.model, optimizer, recipe.seed, task.mesh)
    given = _opened(recipe.init_from, recipe.model, task.tokenizer, tell)
    return create_state(task.model, optimizer, recipe.seed, task.mesh, params=read_params(given, task.mesh))


def _opened(source: str, model: GPTConfig, tokenizer: Tokenizer, tell: Callable[[str], None]) -> StoredModel:
    """The model of `--from`, in float32, with as many rows in its embedding as the recipe's model has.

    It may have more rows than the tokenizer has ids. These rows are kept, but their ids are given no
    probability.
    """
    given = open_model(source)
    for text in given.notes:
        tell(f"{source}: {text}")
    _refuse_other_tokenizer(source, given, tokenizer, tell)
    if different := given.config.with_only(tokenizer.vocab).differences(model):
        told = ", ".join(
            f"{name} is {there!r} there, {here!r} here" for name, (there, here) in different.items()
        )
        raise ConfigError(
            f"--from {source}", why=told, fix="set each of these to the value there, as --model.NAME VALUE"
        )
    if given.config.vocab > model.padded_vocab:
        raise ConfigError(
            f"--from {source}",
            why=f"its embedding has {given.config.vocab:,} rows, the run's has {model.padded_vocab:,}",
            fix=f"give the run as many rows: --model.vocab-multiple {given.config.vocab}",
        )
    if given.dtype != "float32":
        tell(f"{source}: widened from {given.dtype} to float32")
    config = dataclasses.replace(given.config, vocab_multiple=model.padded_vocab)
    return with_dtype(dataclasses.replace(given, config=config), "float32")


def _refuse_other_tokenizer(
    source: str, given: StoredModel, tokenizer: Tokenizer, tell: Callable[[str], None]
) -> None:
    if given.tokenizer is None:
        tell(f"{source} came without a tokenizer: its ids are taken to be those of {tokenizer.name}")
    elif given.tokenizer.sha256 != tokenizer.sha256:
        mine, its = (f"{each.name} ({each.vocab:,} ids)" for each in (tokenizer, given.tokenizer))
        raise ConfigError(
            f"--from {source}",
            why=f"its tokenizer is {its}, the data's is {mine}: the same ids stand for different texts",
            fix=f"prepare the text with the model's tokenizer: jaxgpt prepare TEXT --tokenizer {source}",
        )
