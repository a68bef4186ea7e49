"""Settings: frozen dataclasses, checked when made. Recipes come in as TOML, runs write theirs as JSON. Imports no JAX.

The four GPT-2 sizes and the small presets are the files of configs/: `load_recipe("gpt2").model` is GPT-2 124M.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxgpt.errors import ConfigError, DataError, MissingError

CONFIG_FILE = "config.json"


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"{name} = {value!r}", why=f"it must be {rule}", fix="correct the setting")


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) > 0, name, getattr(config, name), "greater than 0")


def _require_fraction(config: object, *names: str) -> None:
    for name in names:
        _require(0 <= getattr(config, name) < 1, name, getattr(config, name), "at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The architecture. The defaults are GPT-2 124M exactly."""

    vocab: int = 50257
    """Number of token ids. When training, the data's tokenizer decides it."""
    context: int = 1024
    """Longest sequence, in tokens."""
    layers: int = 12
    """Number of transformer blocks."""
    heads: int = 12
    """Attention heads a block."""
    width: int = 768
    """Size of the residual stream."""
    mlp_width: int | None = None
    """Inner size of the MLP; None is 4 x width."""
    bias: bool = True
    """Biases in the linear layers and LayerNorms."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in every LayerNorm."""
    activation: Literal["gelu_tanh", "gelu", "relu", "silu"] = "gelu_tanh"
    """The MLP's non-linearity; GPT-2 uses the tanh approximation of GELU."""
    tied_head: bool = True
    """The output head is the token embedding, transposed."""
    scale_attention: bool = True
    """Divide attention scores by the square root of the head size."""
    scale_by_inverse_layer: bool = False
    """Divide attention scores also by (layer + 1)."""
    position: Literal["learned", "sinusoidal", "rotary", "alibi"] = "learned"
    """How positions are told apart; GPT-2 learns absolute ones."""
    dropout: float = 0.0
    """Probability of dropping embeddings, attention weights and residual branches in training."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products. Parameters, LayerNorm statistics, softmax and loss stay float32."""
    vocab_multiple: int = 128
    """The embedding is stored with its rows rounded up to a multiple of this, so that it shards evenly."""

    def __post_init__(self) -> None:
        _require_positive(self, "vocab", "context", "layers", "heads", "width", "layer_norm_epsilon", "vocab_multiple")
        _require_fraction(self, "dropout")
        _require(self.mlp_width is None or self.mlp_width > 0, "mlp_width", self.mlp_width, "greater than 0")
        _require(self.width % self.heads == 0, "width", self.width, f"a multiple of heads ({self.heads})")
        if self.position == "rotary":
            _require(self.head_size % 2 == 0, "width / heads", self.head_size, "even for rotary positions")
        if self.position == "sinusoidal":
            _require(self.width % 2 == 0, "width", self.width, "even for sinusoidal positions")

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def mlp_size(self) -> int:
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def padded_vocab(self) -> int:
        """Rows the embedding is stored with."""
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple

    def with_only(self, ids: int) -> "GPTConfig":
        """The same stored model, in which only the first `ids` tokens exist: no other is ever probable."""
        return dataclasses.replace(self, vocab=min(ids, self.vocab), vocab_multiple=self.padded_vocab)

    def differences(self, other: "GPTConfig") -> dict[str, tuple[Any, Any]]:
        """The fields in which two models differ, beside how they are trained, computed and stored."""
        mine, others = (dataclasses.asdict(config) | {"mlp_width": config.mlp_size} for config in (self, other))
        passed_over = {"dropout", "compute_dtype", "vocab_multiple"}
        return {n: (mine[n], others[n]) for n in mine if n not in passed_over and mine[n] != others[n]}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the tokens come from and how windows are cut from them."""

    path: str = "builtin"
    """A folder made by `jaxgpt prepare`, a text file or folder, or a corpus name."""
    tokenizer: str = "gpt2"
    """gpt2, bytes or a tokenizer file. For text only: a prepared folder brings its own."""
    val_fraction: float = 0.1
    """Share of the text kept for validation. For text only: a prepared folder is split already."""
    stride: int | None = None
    """Tokens from the start of one training window to the next; None is the context (no overlap)."""

    def __post_init__(self) -> None:
        _require(bool(self.path), "data.path", self.path, "a folder, file or corpus name")
        _require_fraction(self, "val_fraction")
        _require(self.stride is None or self.stride > 0, "data.stride", self.stride, "greater than 0")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its learning rate schedule."""

    learning_rate: float = 6e-4
    """Peak learning rate, reached at the end of the warm-up."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """What follows the warm-up; wsd holds the peak and decays linearly at the end (warm-up, stable, decay)."""
    warmup_steps: int = 100
    """Steps of linear warm-up; step k (from 0) has (k + 1) / warmup_steps of the peak."""
    decay_fraction: float = 0.2
    """wsd: the share of all steps, at the end, in which the rate decays."""
    final_fraction: float = 0.1
    """The rate at the last step as a share of the peak."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.95
    """Decay of Adam's second moment."""
    epsilon: float = 1e-8
    """Added to the root of Adam's second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices and embeddings only, by name."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 turns clipping off."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights; 0 keeps none."""

    def __post_init__(self) -> None:
        _require_positive(self, "learning_rate", "epsilon")
        _require_fraction(self, "beta1", "beta2", "ema_decay")
        _require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "from 0 to 1")
        _require(0 < self.decay_fraction <= 1, "decay_fraction", self.decay_fraction, "greater than 0 and at most 1")
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices lie along each axis of the mesh; at most one is -1 and takes what the others leave."""

    data: int = -1
    """Copies of the model, each on its share of the batch."""
    fsdp: int = 1
    """Shards of parameters and optimizer state, gathered when used; the batch is split along it too."""
    tensor: int = 1
    """Shards of the matrix products themselves."""

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            _require(size == -1 or size > 0, f"mesh.{name}", size, "greater than 0, or -1 to fill")
        _require([self.data, self.fsdp, self.tensor].count(-1) < 2, "mesh", self, "-1 on one axis at most")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    steps: int = 1000
    """Optimizer steps."""
    seed: int = 0
    """Decides initial weights, dropout and the order of the data."""
    batch: int = 8
    """Sequences in a micro-batch, over all devices."""
    accumulate: int = 1
    """Micro-batches summed before each optimizer step; a step sees batch x accumulate sequences."""
    log_every: int = 10
    """Steps from one line of metrics.jsonl to the next."""
    eval_every: int = 100
    """Steps from one validation loss and sample to the next; 0 for none."""
    eval_batches: int = 20
    """Batches a validation loss is computed on; 0 is the whole split."""
    sample_tokens: int = 100
    """Tokens of sample text written at each evaluation; 0 for none."""
    sample_prompt: str = "The"
    """What the samples continue."""
    checkpoint_every: int = 500
    """Steps from one checkpoint to the next; the last step is always saved."""
    keep_checkpoints: int = 2
    """How many of the latest checkpoints stay."""
    out_dir: str = "runs/gpt"
    """Run directory; a run found there is resumed."""
    init_from: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """MODEL whose weights a new run starts from: a run directory, weights in any format, or a public name."""
    blocks: Literal["scan", "unrolled", "auto"] = "auto"
    """How the blocks run: one compiled block scanned over the layers, or each written out; auto knows the backend."""
    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory, about a third more arithmetic."""
    loss_chunk: int = 0
    """Positions whose logits exist at one time; 0 computes all logits at once."""
    distributed: bool = False
    """Join the other processes of this job first (jax.distributed.initialize): Slurm, GKE, TPU pods."""
    tensorboard: bool = False
    """Write TensorBoard events too (extra `tensorboard`)."""
    model: GPTConfig = field(default_factory=GPTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        _require_positive(self, "steps", "batch", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints")
        for name in ("eval_every", "eval_batches", "sample_tokens", "loss_chunk"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "a 32-bit unsigned integer")
        _require(bool(self.out_dir), "out_dir", self.out_dir, "a directory")

    @property
    def sequences(self) -> int:
        """Sequences an optimizer step sees."""
        return self.batch * self.accumulate

    @property
    def tokens_per_step(self) -> int:
        return self.sequences * self.model.context


def recipes_folder() -> Path:
    """configs/ of a checkout, or its copy inside an installed package."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def preset_names() -> list[str]:
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def load_recipe(name_or_path: str) -> TrainConfig:
    """The recipe of a preset name (`nano`, `gpt2`, ...) or of a TOML file.

    Raises MissingError when there is neither, ConfigError for a file that is not TOML, has an unknown key (the
    nearest known one is named) or a value of another type; all problems of the file are listed at once.
    """
    path = Path(name_or_path)
    if name_or_path in preset_names():
        path = recipes_folder() / f"{name_or_path}.toml"
    if not path.is_file():
        hint = _nearest(name_or_path, preset_names())
        known = ", ".join(preset_names())
        raise MissingError(f"no recipe {name_or_path!r}", why=f"it is neither a file nor one of {known}", fix=hint)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("recipe is not TOML", path=path, why=str(error), fix="correct the file") from None
    problems: list[str] = []
    fields = _checked(TrainConfig, table, "", problems)
    if problems:
        raise ConfigError("recipe has errors", path=path, why=", ".join(problems), fix="correct the file")
    return _build(TrainConfig, fields)


def save_config(config: TrainConfig, folder: Path) -> None:
    """Write the resolved settings of a run to `config.json` in its folder."""
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> TrainConfig:
    """The settings a run was made with.

    Raises MissingError without config.json, DataError when it does not hold exactly these settings.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise MissingError("not a run directory", path=folder, why=f"it has no {CONFIG_FILE}", fix="name a run")
    problems: list[str] = []
    try:
        fields = _checked(TrainConfig, json.loads(path.read_text(encoding="utf-8")), "", problems)
    except ValueError as error:
        raise DataError("settings are not JSON", path=path, why=str(error), fix="restore the file") from None
    if problems:
        raise DataError("settings have errors", path=path, why=", ".join(problems), fix="restore the file")
    return _build(TrainConfig, fields)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "see `jaxgpt pretrain --help`"


def _checked(kind: Any, table: Any, place: str, problems: list[str]) -> dict[str, Any]:
    """The entries of `table` that are fields of dataclass `kind`; what is wrong with the others goes to `problems`."""
    known = typing.get_type_hints(kind)
    entries: dict[str, Any] = {}
    if not isinstance(table, dict):
        problems.append(f"[{place.rstrip('.')}] is not a table")
        return entries
    for key, value in table.items():
        if key not in known:
            problems.append(f"unknown key {place}{key} ({_nearest(key, list(known))})")
        elif dataclasses.is_dataclass(known[key]):
            entries[key] = _checked(known[key], value, f"{place}{key}.", problems)
        elif not _fits(value, known[key]):
            problems.append(f"{place}{key} = {value!r} is not {_spelled(known[key])}")
        else:
            entries[key] = float(value) if known[key] is float else value
    return entries


def _build(kind: Any, entries: dict[str, Any]) -> Any:
    known = typing.get_type_hints(kind)
    return kind(**{k: _build(known[k], v) if dataclasses.is_dataclass(known[k]) else v for k, v in entries.items()})


def _fits(value: object, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if typing.get_origin(kind) is types.UnionType:
        return any(_fits(value, option) for option in typing.get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is types.NoneType:
        return value is None
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _spelled(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return getattr(kind, "__name__", str(kind))
