"""The settings of runs that make a trained model solve a problem. Imports no JAX."""

import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxgpt.config.checks import require
from jaxgpt.config.recipe import OptimConfig, RunConfig, SourceConfig


@dataclass(frozen=True, kw_only=True)
class LabelledConfig(SourceConfig):
    """A table of texts with a label each: a CSV, TSV or JSONL file."""

    path: str = "labelled.csv"
    """A CSV, TSV, JSON or JSONL file with a text and a label in each row."""
    test_fraction: float = 0.2
    """Share of the rows on which the finished model is tested."""
    text_column: str | None = None
    """The column that holds the texts. None finds it by its heading."""
    label_column: str | None = None
    """The column that holds the labels. None finds it by its heading."""
    balance: bool = False
    """Whether only as many texts of each label are kept as the rarest label has, drawn at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 <= self.test_fraction < 1 - self.val_fraction,
            "data.test_fraction",
            self.test_fraction,
            f"at least 0 and less than {1 - self.val_fraction:g}, so that texts are left to train on",
        )


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(RunConfig):
    """The settings of a run that trains a classifier: a head on a given model, and parts of the model."""

    unit: ClassVar[str] = "text"
    steps: int = 0
    """Number of optimizer steps in the whole run. 0 means as many as the epochs take."""
    epochs: float = 5
    """How often each training text is read, where steps is 0."""
    eval_every: int = 50
    """Number of steps from one evaluation on the validation texts to the next. 0 means none."""
    out_dir: str = "runs/classifier"
    """Directory of the run. If it holds an unfinished run, that run is resumed."""
    reads: Literal["last", "first", "mean", "end"] = "last"
    """What the head reads of a text: its last token, its first one, or the mean over its tokens.
    end is the end of the padded row instead, so that padding changes what the model finds."""
    trains: str = "last-block"
    """What trains besides the head: head (nothing), last-block (and the last LayerNorm), or all.
    Anything else is a regular expression for the paths of parameters, such as h/mlp/.*"""
    layers: str | None = None
    """Layers of the blocks that train, as first:end, such as 10:12. None means what `trains` says."""
    labels: tuple[str, ...] = ()
    """The labels in the order of their classes. Empty means those of the data, in alphabetical order."""
    data: LabelledConfig = field(default_factory=LabelledConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(learning_rate=5e-5, schedule="constant", warmup_steps=0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 0, "steps", self.steps, "0 or more")
        require(self.epochs > 0, "epochs", self.epochs, "greater than 0")
        span = self.layers is None or re.fullmatch(r"\d+:\d+", self.layers) is not None
        require(span, "layers", self.layers, "two numbers such as 10:12", fix="write first:end")
