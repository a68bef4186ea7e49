"""What a new run begins with: random parameters, or the parameters and the architecture of a given model."""

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import optax

from jaxgpt import hosts
from jaxgpt.config import GPTConfig, RunConfig, is_named
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.model.gpt import Params
from jaxgpt.parallel import by_path, shardings
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.resume import recipe_in
from jaxgpt.training.state import TrainState, create_state
from jaxgpt.training.task import Task
from jaxgpt.weights.convert import companions, with_dtype, without_head
from jaxgpt.weights.names import tree_of
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import read_params
from jaxgpt.weights.run import named_step
from jaxgpt.weights.tensors import StoredModel

# What a recipe says of these counts for any model: they are not properties of the given one.
OF_TRAINING = ("dropout", "init", "compute_dtype", "vocab_multiple", "classes")


R = TypeVar("R", bound=RunConfig)


class Origin(NamedTuple):
    """The model that a run begins with, or began with when it is resumed."""

    source: str
    """What --from names."""
    model: GPTConfig
    rows: int
    """The smallest `vocab_multiple` with which the run's embedding holds every row of the model's."""
    tokenizer: str
    """What names its tokenizer, as `data.tokenizer` does."""
    resumed: bool


def with_architecture(recipe: R, stated: Collection[str], tell: Callable[[str], None]) -> R:
    """The recipe with the architecture and the tokenizer of the model that --from names, if it names one.

    The weights decide, because no other architecture could take them. A run that is resumed keeps those that
    it began with, also where --from is left out. `stated` are the settings, or whole sections of them, that a
    person gave by name. Raises ConfigError that names each of these which differs from the weights.
    """
    origin = hosts.decide(lambda: _origin(recipe))
    if origin is None:
        return recipe
    different = {
        name: both
        for name, both in origin.model.differences(recipe.model).items()
        if name not in ("vocab", "classes")
    }
    refused = {name: both for name, both in different.items() if is_named(f"model.{name}", stated)}
    if refused and not origin.resumed:  # of a resumed run, more is compared later
        names = ", ".join(f"model.{name}" for name in refused)
        raise ConfigError(
            f"--from {origin.source}",
            why=", ".join(
                f"{n} is {there!r} there, {asked!r} was asked for" for n, (there, asked) in refused.items()
            ),
            fix=f"leave out {names}: the weights decide the architecture",
        )
    taken = {name: value for name, value in vars(origin.model).items() if name not in OF_TRAINING}
    taken = {name: value for name, value in taken.items() if not is_named(f"model.{name}", stated)}
    if not is_named("model.vocab_multiple", stated):
        taken["vocab_multiple"] = origin.rows
    model, data = dataclasses.replace(recipe.model, **taken), recipe.data
    if not is_named("data.tokenizer", stated):
        data = dataclasses.replace(data, tokenizer=origin.tokenizer)
    if changed := _changed(recipe.model, model):
        tell(f"the architecture is that of {origin.source}: {changed}")
    return dataclasses.replace(recipe, model=model, data=data)


def companions_of(recipe: RunConfig) -> dict[str, bytes]:
    """Return the files by which a new run says where texts end and how to chat, as the model of --from does.

    A run that is resumed has them already, and does not need that model any more.
    """
    if recipe.init_from is None or recipe_in(Path(recipe.out_dir)):
        return {}
    return companions(open_model(recipe.init_from))


def _changed(before: GPTConfig, now: GPTConfig) -> str:
    old, new = vars(before), vars(now)
    names = [name for name in new if new[name] != old[name] and name not in ("vocab", "vocab_multiple")]
    return ", ".join(f"{name} {new[name]} instead of {old[name]}" for name in names)


def _origin(recipe: RunConfig) -> Origin | None:
    """The model that the run begins with, or, where `out_dir` holds the run already, that it began with.

    None where there is none, and where the run that is there began with another one: it is refused later.
    """
    source, data = recipe.init_from, recipe.data
    if before := recipe_in(Path(recipe.out_dir)):
        if before.init_from is None or source not in (None, before.init_from):
            return None
        rows, spec = before.model.vocab_multiple, before.data.tokenizer
        return Origin(before.init_from, before.model, rows, spec, resumed=True)
    if source is None:
        return None
    given, rows = open_model(source), recipe.model.vocab_multiple
    ids = given.tokenizer.vocab if given.tokenizer else given.config.vocab
    if dataclasses.replace(given.config, vocab=ids, vocab_multiple=rows).padded_vocab < given.config.vocab:
        rows = given.config.padded_vocab
    spec = _name_of(given.tokenizer, data.tokenizer, source) if given.tokenizer else data.tokenizer
    return Origin(source, given.config, rows, spec, resumed=False)


def _name_of(tokenizer: Tokenizer, preferred: str, source: str) -> str:
    """What `data.tokenizer` may hold to mean this tokenizer of a model; `preferred` where nothing does."""
    path, _ = named_step(source)
    for spec in (preferred, str(path if path.is_dir() else path.parent), "gpt2"):
        with contextlib.suppress(JaxgptError):
            if load_tokenizer(spec).sha256 == tokenizer.sha256:
                return spec
    return preferred


def initial_state(
    recipe: RunConfig, task: Task, optimizer: optax.GradientTransformation, tell: Callable[[str], None]
) -> TrainState:
    """The state before the first step, sharded over the task's mesh.

    Raises ConfigError where the model of `--from` differs from the recipe's model, or its tokenizer from the
    tokenizer of the data.
    """
    if recipe.init_from is None:
        return create_state(task.model, optimizer, recipe.seed, task.mesh, chosen=task.chosen)
    given = _opened(recipe, task.tokenizer, tell)
    params = read_params(given, task.mesh)
    if head := recipe.model.classes > given.config.classes:
        tell("the head of the classifier begins with random numbers")
    if head or task.chosen.alone:
        params = _completed(params, recipe, task)
    return create_state(task.model, optimizer, recipe.seed, task.mesh, params=params, chosen=task.chosen)


def _completed(params: Params, recipe: RunConfig, task: Task) -> Params:
    """The parameters with those that the given model does not have, new, in their place on the mesh."""
    given = by_path(params)

    def missing() -> dict[str, jax.Array]:
        new = by_path(task.model.init(jax.random.key(recipe.seed)))
        return {path: leaf for path, leaf in new.items() if path not in given}

    new = jax.jit(missing, out_shardings=shardings(jax.eval_shape(missing), task.mesh))()
    return tree_of(given | new)


def _opened(recipe: RunConfig, tokenizer: Tokenizer, tell: Callable[[str], None]) -> StoredModel:
    """The model of `--from`, in float32, with as many rows in its embedding as the recipe's model has.

    It may have more rows than the tokenizer has ids. These rows are kept, but their ids are given no
    probability. The head of a classifier is kept if it tells the recipe's labels apart.
    """
    source, model = str(recipe.init_from), recipe.model
    given = open_model(source)
    for text in given.notes:
        tell(f"{source}: {text}")
    _refuse_other_tokenizer(source, given, tokenizer, tell)
    if given.head and given.head.labels != getattr(recipe, "labels", ()):
        given = without_head(given)
    model = dataclasses.replace(model, classes=given.config.classes)
    if different := given.config.with_only(tokenizer.vocab).differences(model):
        told = ", ".join(f"{n} is {there!r} there, {here!r} here" for n, (there, here) in different.items())
        fix = "give the model and the data that belong together"
        raise ConfigError(f"--from {source}", why=told, fix=fix)
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
            fix="prepare the text with the model's tokenizer: "
            f"jaxgpt prepare TEXT --tokenizer {shlex.quote(str(source))}",
        )
