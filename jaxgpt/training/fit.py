"""Train a small model without a run directory: the same step, optimizer and loop as a run, in one call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxgpt.config import OptimConfig
from jaxgpt.log import Best
from jaxgpt.training.loop import Event, Loop, train
from jaxgpt.training.loss import Loss
from jaxgpt.training.setup import training_step
from jaxgpt.training.state import StepPrograms, start_state
from jaxgpt.training.stop import Stop

Params = dict[str, Any]


class Fitted(NamedTuple):
    """What training gave."""

    params: Params
    rows: list[dict[str, Any]]
    """The log, as a run writes it: `step`, `loss`, `learning_rate`, ... and what the events measured."""


class _Kept(list[dict[str, Any]]):
    """A log that is kept in memory."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.append({"step": step, **metrics})

    def close(self) -> None:
        """There is nothing to finish."""


def fit(
    params: Params,
    loss: Loss,
    rows: Callable[[int, int, int], Any],
    *,
    steps: int,
    sequences: int,
    optim: OptimConfig | None = None,
    seed: int = 0,
    log_every: int = 10,
    events: Sequence[Event] = (),
) -> Fitted:
    """Train parameters for so many steps, on the default device. The given arrays are not changed.

    `rows(step, start, stop)` gives rows of a step's batch, as in `training.task`; a batch has `sequences` of
    them. `seed` decides dropout. Nothing is saved, and an interrupted call keeps nothing; for a model that
    matters, use `jaxgpt.train`. Raises DivergedError when a loss is not finite.
    """
    optimizer, step = training_step(optim or OptimConfig(), loss, steps=steps)
    programs, log = StepPrograms(jax.jit(step)), _Kept()
    loop = Loop(
        step=programs,
        compiling=programs.compiling,
        batch_at=lambda number: rows(number, 0, sequences),
        steps=steps,
        tokens_per_step=sequences,
        log_every=log_every,
        sinks=[log],
        events=events,
        best=Best("none"),
        save=lambda *_: None,
        save_every=steps,
        stop=Stop(),
    )
    state = start_state(params, optimizer, jax.random.key(seed))
    state = train(state, loop, start=0, measured=lambda *_: False)
    return Fitted(state.params, list(log))
