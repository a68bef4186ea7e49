"""What a language model is measured on while it trains, besides its validation data. Imports no JAX."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxgpt.config.checks import check_types, require, require_positive
from jaxgpt.config.recipe import NO_METRIC, RunConfig
from jaxgpt.errors import ConfigError

TEXT = "text"  # before the protocol, in the names of the figures of a text


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What else the model is measured on during training: tasks that models are compared by, and a text."""

    tasks: tuple[str, ...] = ()
    """Tasks as `jaxgpt evaluate --tasks` names them, such as hellaswag, lambada:paper or lm-eval:arc_easy.
    Without a protocol behind a colon, all of the task are measured."""
    data: str | None = None
    """A text, or a folder that `jaxgpt prepare` made, of which the validation split is scored."""
    every: int = 0
    """Number of steps from one of these measurements to the next. 0 means `eval_every`."""
    data_dir: str | None = None
    """Folder with the files of the tasks, under their published names. Without it, they are downloaded."""
    limit: int | None = None
    """Score only so many items of a task, or windows of a long text. None means all."""
    stride: int | None = None
    """Tokens from one window of a long text to the next, at most the model's context.
    None means the context, or what the task's protocol has."""
    protocol: Literal["tokens", "book"] = "tokens"
    """How the losses of the text are averaged: over its tokens, or over the means of batches of 2 windows."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.every >= 0, "evaluation.every", self.every, "0 or more")
        for name in ("limit", "stride"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        side_by_side = self.protocol == "tokens" or self.stride is None
        fix = "leave evaluation.stride out, or take the protocol tokens"
        require(side_by_side, "evaluation.stride", self.stride, "None with the protocol book", fix=fix)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks without their protocols, and `text` where there is one."""
        return (*(task.partition(":")[0] for task in self.tasks), *([TEXT] if self.data else []))


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(RunConfig):
    """What the settings of runs that train a model to write text have in common."""

    metrics: ClassVar[tuple[str, ...]] = ("val_loss", NO_METRIC)
    """What `best_metric` may be, besides a figure of `evaluation`."""

    sample_tokens: int = 100
    """Length of the sample text that each evaluation writes, in tokens. 0 means no sample."""
    loss_chunk: int = 0
    """Number of positions whose logits are computed at a time, to save memory. 0 means all at once."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sample_tokens", "loss_chunk"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        of_evaluation = self.best_metric.partition(":")[0] in self.evaluation.names
        rule = f"one of {', '.join(self.metrics)}, or a figure of evaluation.tasks or evaluation.data"
        fix = "name one of these, such as val_loss or lambada:paper/accuracy"
        known = self.best_metric in self.metrics or of_evaluation
        require(known, "best_metric", self.best_metric, rule, fix=fix)
        if self.evaluation.names and not self.measured_every:
            why = "neither evaluation.every nor eval_every says how often"
            raise ConfigError("evaluation", why=why, fix="give --evaluation.every, or leave its data out")

    @property
    def measured_every(self) -> int:
        """Number of steps from one measurement of `evaluation` to the next."""
        return self.evaluation.every or self.eval_every

    @property
    def best_every(self) -> int:
        """Number of steps from one measurement of `best_metric` to the next. 0 means none."""
        return self.measured_every if ":" in self.best_metric else self.eval_every
