"""The settings of runs that make a trained model solve a problem. Imports no JAX."""

import math
import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxgpt.config.checks import check_types, require, require_fraction, require_positive
from jaxgpt.config.measured import LanguageConfig
from jaxgpt.config.recipe import NO_METRIC, OptimConfig, RunConfig, SourceConfig


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
        _check_test_fraction(self.test_fraction, self.val_fraction)


@dataclass(frozen=True, kw_only=True)
class DialogueConfig(SourceConfig):
    """Examples of how questions are to be answered, and how they are divided."""

    path: str = "dialogues.json"
    """A JSON or JSONL file of dialogues.
    A row has instruction, input and output as in the book, OpenAI's messages or ShareGPT's conversations."""
    val_fraction: float = 0.05
    """Share of the dialogues that is kept for validation."""
    test_fraction: float = 0.1
    """Share of the dialogues that the run keeps for `jaxgpt answer`, in test.jsonl."""
    shuffle: bool = True
    """Whether the dialogues are shuffled before they are divided.
    Otherwise the file's first dialogues train, the next are for the test, and the last for validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_test_fraction(self.test_fraction, self.val_fraction)


@dataclass(frozen=True, kw_only=True)
class PairConfig(DialogueConfig):
    """Pairs of a better and a worse answer to the same question, and how they are divided."""

    path: str = "preferences.json"
    """A JSON or JSONL file of pairs. Each row has a chosen and a rejected answer to the same question.
    The question is an instruction with an input as in the book, or a prompt, or the messages so far."""
    val_fraction: float = 0.05
    """Share of the pairs that is kept for validation."""
    test_fraction: float = 0.1
    """Share of the pairs whose questions the run keeps for `jaxgpt answer`, in test.jsonl."""
    shuffle: bool = True
    """Whether the pairs are shuffled before they are divided.
    Otherwise the file's first pairs train, the next are for the test, and the last for validation."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of low rank (LoRA), which train in place of the matrices of linear layers: `trains = "lora"`.

    A layer with the matrix W then computes with W + scale x A B, and only A and B train.
    """

    rank: int = 8
    """Number of columns of A, and of rows of B."""
    alpha: float = 16.0
    """How strongly the adapters count: scale is alpha / rank."""
    dropout: float = 0.0
    """Probability of setting a value of an adapter's input to 0 in training."""
    targets: str = "c_attn"
    """Linear layers that get an adapter: a regular expression for their names, or for the ends of these.
    The names are h/attn/c_attn, h/attn/c_proj, h/mlp/c_fc and h/mlp/c_proj. For all of them, write .*"""
    rslora: bool = False
    """Whether scale is alpha / the square root of rank, which suits large ranks (rank-stabilised LoRA)."""

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(self, "rank", "alpha")
        require_fraction(self, "dropout")
        try:
            re.compile(self.targets)
        except re.error as error:
            require(
                False, "targets", self.targets, f"a regular expression ({error})", fix="write c_attn or .*"
            )

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied with (Hu et al. 2021; rsLoRA: Kalajdzievski 2023)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def adapts(self, layer: str) -> bool:
        """Whether the linear layer of this name, such as `h/attn/c_attn`, gets an adapter."""
        return re.fullmatch(rf"(.*/)?({self.targets})", layer) is not None


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """What the settings of all runs that begin with a trained model have in common."""

    steps: int = 0
    """Number of optimizer steps in the whole run. 0 means as many as the epochs take."""
    epochs: float = 5
    """How often each training example is read, where steps is 0."""
    eval_every: int = 50
    """Number of steps from one evaluation on the validation examples to the next. 0 means none."""
    trains: str = "all"
    """What trains: head (of the model itself, nothing), last-block (and the last LayerNorm), all, or lora.
    Anything else is a regular expression for the paths of parameters, such as h/mlp/.*"""
    layers: str | None = None
    """Layers of the blocks that train, as first:end, such as 10:12. None means what `trains` says."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(learning_rate=5e-5, schedule="constant", warmup_steps=0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps >= 0, "steps", self.steps, "0 or more")
        require(self.epochs > 0, "epochs", self.epochs, "greater than 0")
        span = self.layers is None or re.fullmatch(r"\d+:\d+", self.layers) is not None
        require(span, "layers", self.layers, "two numbers such as 10:12", fix="write first:end")

    @property
    def adapts(self) -> bool:
        """Whether the run trains adapters (LoRA), and keeps the model that it began with as it is."""
        return self.trains == "lora"

    @property
    def span(self) -> tuple[int, int] | None:
        """The first of the layers that `layers` names, and the first one behind them."""
        if self.layers is None:
            return None
        first, _, end = self.layers.partition(":")
        return int(first), int(end)


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(FinetuneConfig):
    """The settings of a run that trains a classifier: a head on a given model, and parts of the model."""

    unit: ClassVar[str] = "text"
    seen: ClassVar[str] = "texts"
    out_dir: str = "runs/classifier"
    """Directory of the run. If it holds an unfinished run, that run is resumed."""
    best_metric: Literal["val_loss", "val_accuracy", "val_macro_f1", "none"] = "val_loss"
    """What decides which checkpoint is the best one, RUN@best: the lowest loss, or the highest of the others.
    none keeps no best one."""
    reads: Literal["last", "first", "mean", "end"] = "last"
    """What the head reads of a text: its last token, its first one, or the mean over its tokens.
    end is the end of the padded row instead, so that padding changes what the model finds."""
    trains: str = "last-block"
    """What trains besides the head: head (nothing), last-block (and the last LayerNorm), all, or lora.
    Anything else is a regular expression for the paths of parameters, such as h/mlp/.*"""
    labels: tuple[str, ...] = ()
    """The labels in the order of their classes. Empty means those of the data, in alphabetical order."""
    data: LabelledConfig = field(default_factory=LabelledConfig)


@dataclass(frozen=True, kw_only=True)
class AnswerConfig(FinetuneConfig, LanguageConfig):
    """What the settings of runs that train how a model answers have in common."""

    template: str = "instruction"
    """How a dialogue is written: instruction (Alpaca's template), phi3, or a file with a Jinja template.
    `chat` and `serve` then write in the same way to the model that was trained."""
    sample_tokens: int = 100
    """Length of the sample answer that each evaluation writes, in tokens. 0 means no sample."""
    data: DialogueConfig = field(default_factory=DialogueConfig)


@dataclass(frozen=True, kw_only=True)
class InstructConfig(AnswerConfig):
    """The settings of a run that teaches a model to follow instructions, from dialogues."""

    seen: ClassVar[str] = "rows"
    epochs: float = 2
    """How often each training dialogue is read, where steps is 0."""
    out_dir: str = "runs/instruct"
    """Directory of the run. If it holds an unfinished run, that run is resumed."""
    best_metric: str = "val_loss"
    """What decides which checkpoint is the best one, RUN@best: val_loss, or a figure of `evaluation`.
    Such a figure is lambada:paper/accuracy. none keeps no best one."""
    answers_only: bool = True
    """Whether the loss counts only the tokens of the answers. Otherwise it counts the questions as well."""
    pack: bool = False
    """Whether several dialogues share a row of the model's context. They do not see one another.
    Otherwise each has a row of its own, which is padded."""


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(AnswerConfig):
    """The settings of a run that teaches a model which answers are preferred (DPO), from pairs of answers."""

    metrics: ClassVar[tuple[str, ...]] = ("val_loss", "val_accuracy", "val_margin", NO_METRIC)
    unit: ClassVar[str] = "pair"
    seen: ClassVar[str] = "pairs"
    epochs: float = 1
    """How often each training pair is read, where steps is 0."""
    out_dir: str = "runs/dpo"
    """Directory of the run. If it holds an unfinished run, that run is resumed."""
    best_metric: str = "val_loss"
    """What decides which checkpoint is the best one, RUN@best: the lowest val_loss.
    Or the highest val_accuracy or val_margin, or a figure of `evaluation`. none keeps no best one."""
    template: str = "auto"
    """How a question is written: auto, instruction (Alpaca's), phi3, plain, or a file with a Jinja template.
    auto means as the model was tuned that the run begins with."""
    beta: float = 0.1
    """How strongly the model is held to the one that it began with. It must be greater than 0.
    A reward is beta times the change of an answer's log-probability."""
    label_smoothing: float = 0.0
    """Share of the pairs whose answers may have been mixed up, below 0.5 (conservative DPO)."""
    answer: Literal["sum", "mean"] = "sum"
    """The log-probability of an answer: the sum over its tokens as in the paper, or the mean as in the book.
    With the mean, long answers count as much as short ones."""
    data: PairConfig = field(default_factory=PairConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta > 0, "beta", self.beta, "greater than 0")
        smoothing = "at least 0 and less than 0.5"
        require(0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, smoothing)


def _check_test_fraction(test: float, val: float) -> None:
    rule = f"at least 0 and less than {1 - val:g}, so that something is left to train on"
    require(0 <= test < 1 - val, "data.test_fraction", test, rule)
