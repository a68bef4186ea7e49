"""What a training run trains: a model, its loss, the data, and what is measured on the way.

Pretraining is one task; whatever else trains a model by gradient steps is another. The run itself
(`training.run`) is the same for all of them: it locks, compares, restores, compiles, loops and saves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxgpt.model.gpt import Model
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.training.loop import Event
from jaxgpt.training.loss import Loss
from jaxgpt.training.stop import Stop


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data of a task, opened."""

    fingerprint: str
    """A hash of everything that decides the examples: a run goes on only with the data it began with."""
    rows: Callable[[int, int, int], Any]
    """`rows(step, start, stop)`: these rows of the batch of a step (from 0), a pytree of NumPy arrays."""
    events: Sequence[Event] = ()
    """What is measured on the way."""
    facts: Callable[[], dict[str, Any]] = dict
    """What a new run writes into its log at step 0, such as losses to compare with."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a training run needs beside its recipe."""

    mesh: Mesh
    """The devices that it trains on."""
    model: Model
    """The model as these devices compute it."""
    loss: Loss
    tokenizer: Tokenizer
    """It is written into the run directory."""
    tokens_per_step: int
    open_data: Callable[[Path, Stop], TrainingData]
    """`open_data(own, stop)` opens the data, or makes it in the folder `own` of the run directory.

    It calls `stop.check` now and then where that takes long.
    """
    report: Callable[[Path], None]
    """`report(directory)` describes a run that has reached its last step, where that is not described yet."""
