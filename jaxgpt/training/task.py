"""What a training run trains: a model, its loss, its data, and what is measured during training.

Pretraining is one task. Anything else that trains a model by gradient steps is another task. The run itself
(`training.run`) is the same for all of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxgpt.model.gpt import Model
from jaxgpt.text.batch import Origin
from jaxgpt.text.shown import Shown, shown_texts
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.training.loop import Event
from jaxgpt.training.loss import Loss, Losses, token_losses
from jaxgpt.training.state import TrainState
from jaxgpt.training.stop import Stop
from jaxgpt.training.trainable import EVERYTHING, Chosen


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data of a task, ready to be read."""

    fingerprint: str
    """A hash of everything that decides the examples. A run continues only with the data it began with."""
    rows: Callable[[int, int, int], Any]
    """`rows(step, start, stop)` gives these rows of a step's batch, as a pytree of NumPy arrays.

    Steps are counted from 0.
    """
    origins: Callable[[int], list[Origin]]
    """`origins(step)` says where each row of a step's batch was read. Steps are counted from 0 here too."""
    begin: Callable[[TrainState], None] = lambda _: None
    """`begin(state)` is called once, with the state that a new run begins with."""
    events: Sequence[Event] = ()
    """What is measured during training."""
    facts: Callable[[], dict[str, Any]] = dict
    """What a new run writes into its log at step 0, such as the losses of simpler models."""


class Details(NamedTuple):
    """What can be said of each text of a training batch."""

    losses: Losses
    """The loss of each prediction of a batch, as the training loss adds them up."""
    texts: Callable[[Any, np.ndarray], list[Shown]]
    """`texts(batch, losses)` are the batch's texts with these losses, for a person to read."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that a training run needs besides its recipe."""

    mesh: Mesh
    """The devices that it trains on."""
    model: Model
    """The model as these devices compute it."""
    loss: Loss
    tokenizer: Tokenizer
    """The tokenizer of the data. It is written into the run directory."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Other files that a new run writes into its directory, by their names."""
    chosen: Chosen = EVERYTHING
    """Which parameters train."""
    tokens_per_step: int
    open_data: Callable[[Path, Stop], TrainingData]
    """`open_data(own, stop)` opens the data, or makes it in the folder `own` of the run directory.

    Where that takes long, it calls `stop.check` from time to time.
    """
    details: Details | None = None
    """What `jaxgpt replay` shows of a batch. None where the task has no such thing to show."""
    report: Callable[[Path], None]
    """`report(directory)` writes the report of a finished run, unless its report is up to date."""


def details_of(model: Model, tokenizer: Tokenizer) -> Details:
    """The details of batches of sequences, for tasks with the loss of a language model."""
    return Details(token_losses(model), functools.partial(shown_texts, tokenizer=tokenizer))
