"""The settings of a run that trains a language model on text. Imports no JAX."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxgpt.config.checks import require, require_positive
from jaxgpt.config.measured import LanguageConfig
from jaxgpt.config.recipe import NO_METRIC, SourceConfig
from jaxgpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
    """Where the tokens come from, and how training windows are cut from them."""

    path: str = "builtin"
    """What to train on: a folder made by `jaxgpt prepare`, a text, a folder of texts, or a corpus.
    The corpora are builtin, tiny-shakespeare, the-verdict and fineweb."""
    stride: int | None = None
    """Number of tokens from the start of one training window to the start of the next.
    Windows overlap if it is smaller than the context. None means the context."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.stride is None or self.stride > 0, "data.stride", self.stride, "greater than 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LanguageConfig):
    """The settings of a run that trains a language model on text."""

    metrics: ClassVar[tuple[str, ...]] = ("val_loss", "average_val_loss", NO_METRIC)
    eval_batches: int = 20
    """Number of batches on which the validation loss is computed. 0 means all of the validation text."""
    sample_prompt: str = "The"
    """Beginning of the sample text, which the model continues."""
    best_metric: str = "val_loss"
    """What decides which checkpoint is the best one, RUN@best: val_loss, or average_val_loss.
    That is the loss of the averaged weights.
    A figure of `evaluation` will do as well, such as lambada:paper/accuracy. none keeps no best one."""
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "steps")
        if self.best_metric == "average_val_loss" and not self.optim.ema_decay:
            why = "the run keeps no average of the weights"
            raise ConfigError("best_metric = average_val_loss", why=why, fix="give --optim.ema-decay 0.999")
        require(self.eval_batches >= 0, "eval_batches", self.eval_batches, "0 or more")

    @property
    def tokens_per_step(self) -> int:
        """The number of tokens that an optimizer step sees."""
        return self.sequences * self.model.context

    @property
    def seen_per_step(self) -> int:
        """The number of tokens that an optimizer step sees."""
        return self.tokens_per_step
