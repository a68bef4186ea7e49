"""What a recipe and its task make together: the optimizer, the training step, batches, the first state."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optax

from jaxgpt.config import OptimConfig, RunConfig
from jaxgpt.parallel import place_rows
from jaxgpt.training.initial import initial_state
from jaxgpt.training.loss import Loss
from jaxgpt.training.optim import adamw, learning_rate
from jaxgpt.training.run_directory import restore_adapter, restore_state
from jaxgpt.training.state import TrainState, abstract_state, train_step
from jaxgpt.training.task import Task, TrainingData
from jaxgpt.weights.adapter import Base
from jaxgpt.weights.digests import model_digest

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]


class Setup(NamedTuple):
    """A run that is ready to train."""

    recipe: RunConfig
    task: Task
    optimizer: optax.GradientTransformation
    step: Step
    """The training step, to be compiled."""
    batch_at: Callable[[int], Any]
    """The global batch of a step, in its place on the mesh. Steps are counted from 0."""

    def initial(self, recipe: RunConfig, tell: Callable[[str], None]) -> TrainState:
        """The state before the first step (`training.initial`)."""
        return initial_state(recipe, self.task, self.optimizer, tell)

    def restored(self, folder: Path, step: int) -> TrainState:
        """The state that the run in a directory has saved after a step."""
        if not self.task.chosen.alone:
            target = abstract_state(self.task.model, self.optimizer, self.task.mesh, self.task.chosen)
            return restore_state(folder, step, target)
        begun = self.initial(self.recipe, lambda _: None)
        base = self.base_of(begun)
        assert base is not None, "adapters alone are kept, so that they have a base"
        return restore_adapter(folder, step, begun, base)

    def base_of(self, state: TrainState) -> Base | None:
        """The base that the adapters of a state belong to; None of a run that trains none."""
        if not self.task.chosen.alone:
            return None
        vocab = self.recipe.model.vocab
        return Base(str(self.recipe.init_from), vocab, model_digest(state.frozen, vocab))


def set_up(recipe: RunConfig, task: Task, data: TrainingData) -> Setup:
    """Make ready what a run trains with. Nothing is compiled yet."""
    optimizer, step = training_step(recipe.optim, task.loss, steps=recipe.steps, accumulate=recipe.accumulate)

    def batch_at(number: int) -> Any:
        return place_rows(functools.partial(data.rows, number), recipe.sequences, task.mesh)

    return Setup(recipe, task, optimizer, step, batch_at)


def training_step(
    optim: OptimConfig, loss: Loss, *, steps: int, accumulate: int = 1
) -> tuple[optax.GradientTransformation, Step]:
    """The optimizer of a run of so many steps, and its training step, to be compiled."""
    schedule = learning_rate(optim, steps)
    optimizer = adamw(optim, schedule)
    step = functools.partial(
        train_step, loss=loss, optimizer=optimizer, schedule=schedule, accumulate=accumulate
    )
    return optimizer, step
