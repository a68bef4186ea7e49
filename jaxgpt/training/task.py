"""What a training run trains: a model, its loss, its data, and what is measured during training.

Pretraining is one task. Anything else that trains a model by gradient steps is another task. The run itself
(`training.run`) is the same for all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxgpt.model.gpt import Model
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.training.loop import Event
from jaxgpt.training.loss import Loss
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
    begin: Callable[[TrainState], None] = lambda _: None
    """`begin(state)` is called once, with the state that a new run begins with."""
    events: Sequence[Event] = ()
    """What is measured during training."""
    facts: Callable[[], dict[str, Any]] = dict
    """What a new run writes into its log at step 0, such as the losses of simpler models."""


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
    report: Callable[[Path], None]
    """`report(directory)` writes the report of a finished run, unless its report is up to date."""
