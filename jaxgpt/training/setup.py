"""What a recipe and its task make together: the optimizer, the training step, batches, the first state."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optax

from jaxgpt.config import OptimConfig, RunConfig
from jaxgpt.parallel import place_rows
from jaxgpt.training.guard import guarded, no_losses
from jaxgpt.training.initial import initial_state
from jaxgpt.training.loss import Loss
from jaxgpt.training.optim import learning_rate, optimizer_of
from jaxgpt.training.run_directory import restore_adapter, restore_recent, restore_state
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
        return self.fitted(initial_state(recipe, self.task, self.optimizer, tell))

    def restored(self, folder: Path, step: int) -> TrainState:
        """The state that the run in a directory has saved after a step."""
        recent = restore_recent(folder, step, self.task.mesh)
        if not self.task.chosen.alone:
            target = abstract_state(self.task.model, self.optimizer, self.task.mesh, self.task.chosen)
            state = restore_state(folder, step, target)
        else:
            begun = self.initial(self.recipe, lambda _: None)
            base = self.base_of(begun)
            assert base is not None, "adapters alone are kept, so that they have a base"
            state = restore_adapter(folder, step, begun, base)
        return self.fitted(dataclasses.replace(state, recent=recent))

    def fitted(self, state: TrainState) -> TrainState:
        """The state with the losses of the last steps where this run looks for spikes, else without them."""
        looks = self.recipe.spike_deviations > 0
        if looks == (state.recent is not None):
            return state
        return dataclasses.replace(state, recent=no_losses(self.task.mesh) if looks else None)

    def base_of(self, state: TrainState) -> Base | None:
        """The base that the adapters of a state belong to; None of a run that trains none."""
        if not self.task.chosen.alone:
            return None
        vocab = self.recipe.model.vocab
        return Base(str(self.recipe.init_from), vocab, model_digest(state.frozen, vocab))


def set_up(recipe: RunConfig, task: Task, data: TrainingData) -> Setup:
    """Make ready what a run trains with. Nothing is compiled yet."""
    optimizer, step = step_of(recipe, task.loss)

    def batch_at(number: int) -> Any:
        return place_rows(functools.partial(data.rows, number), recipe.sequences, task.mesh)

    return Setup(recipe, task, optimizer, step, batch_at)


def step_of(recipe: RunConfig, loss: Loss) -> tuple[optax.GradientTransformation, Step]:
    """The optimizer of a recipe, and its training step, to be compiled."""
    optimizer, step = training_step(recipe.optim, loss, steps=recipe.steps, accumulate=recipe.accumulate)
    if recipe.guarded:
        step = functools.partial(guarded, step=step, deviations=recipe.spike_deviations)
    return optimizer, step


def training_step(
    optim: OptimConfig, loss: Loss, *, steps: int, accumulate: int = 1
) -> tuple[optax.GradientTransformation, Step]:
    """The optimizer of a run of so many steps, and its training step, to be compiled."""
    schedule = learning_rate(optim, steps)
    optimizer = optimizer_of(optim, schedule)
    step = functools.partial(
        train_step, loss=loss, optimizer=optimizer, schedule=schedule, accumulate=accumulate
    )
    return optimizer, step
