"""The settings of a training run: its data, its optimizer, its mesh and its intervals. Imports no JAX."""

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import tyro

from jaxgpt.config.checks import check_types, require, require_fraction, require_positive
from jaxgpt.config.model import GPTConfig
from jaxgpt.errors import ConfigError

Keeps = Literal["nothing", "products", "all"]
BackwardKeeps = Literal["auto", "nothing", "products", "all"]
"""What the backward pass finds kept of the forward pass inside the blocks."""

NO_METRIC = "none"  # as `best_metric`: no checkpoint is the best one


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the data of any run comes from."""

    path: str
    """What to train on."""
    tokenizer: str = "gpt2"
    """How text becomes tokens: gpt2, bytes, or a tokenizer file.
    Data that is tokenized already, and a model that training starts from, bring their own."""
    val_fraction: float = 0.1
    """Share of the data that is kept for validation, below 1. A prepared folder is split already."""

    def __post_init__(self) -> None:
        check_types(self)
        fix = "name a folder, a file or a corpus"
        require(bool(self.path), "data.path", self.path, "a folder, file or corpus name", fix=fix)
        require_fraction(self, "val_fraction")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning rate."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """The rule that turns gradients into updates.
    muon changes the matrices of the blocks by the same amount in every direction, and all else as adamw does.
    It needs fewer steps, and a little more time for each."""

    learning_rate: float = 6e-4
    """Highest learning rate, which is reached at the end of the warm-up."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate goes on after the warm-up.
    cosine and linear fall until the last step. constant stays at the highest value.
    wsd (warm-up, stable, decay) stays there, too, and falls linearly at the end."""
    warmup_steps: int = 100
    """Number of steps in which the learning rate rises linearly to its highest value. 0 means no warm-up."""
    initial_fraction: float | None = None
    """Learning rate of the first step, as a share of the highest one, which then follows the warm-up.
    None means 1 / warmup_steps: the highest one is that of the last step of the warm-up."""
    decay_fraction: float = 0.2
    """For wsd only: share of all steps, at the end, in which the learning rate falls."""
    final_fraction: float = 0.1
    """Learning rate of the last step, as a share of the highest one. constant does not use it."""
    beta1: float = 0.9
    """Share of Adam's running mean of the gradients that is kept at each step."""
    beta2: float = 0.95
    """Share of Adam's running mean of the squared gradients that is kept at each step."""
    momentum: float = 0.95
    """Share of Muon's running mean of the gradients that is kept at each step."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type in which the running mean of the gradients is kept. bfloat16 takes half of its memory."""
    epsilon: float = 1e-8
    """Small number that Adam adds to the divisor of each update, so that it never divides by 0."""
    weight_decay: float = 0.1
    """How strongly matrices and embeddings are pulled towards 0. Biases and LayerNorms are left alone.
    Each step multiplies them by 1 - weight_decay x learning rate."""
    decay_all: bool = False
    """Whether biases and LayerNorms are pulled towards 0 as well, as PyTorch's AdamW does by default."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient. A longer gradient is scaled down to it. 0 turns this off."""
    clip_after: int = 0
    """Number of steps at the beginning whose gradients are left as they are, whatever their norm."""
    ema_decay: float = 0.0
    """Share of a running average of the weights that is kept at each step, such as 0.999.
    The verbs that use the trained model then take the average. 0 means that there is no average."""

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(self, "learning_rate", "epsilon")
        require_fraction(self, "beta1", "beta2", "momentum", "ema_decay")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "from 0 to 1")
        start = self.initial_fraction
        require(start is None or 0 <= start <= 1, "initial_fraction", start, "from 0 to 1")
        require(
            0 < self.decay_fraction <= 1,
            "decay_fraction",
            self.decay_fraction,
            "greater than 0 and at most 1",
        )
        for name in ("warmup_steps", "weight_decay", "clip_norm", "clip_after"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices share the work: data x fsdp x tensor is the number of devices.

    One of the three numbers may be -1, which stands for all devices that the others leave.
    """

    data: int = -1
    """Number of copies of the model. Each copy computes its own share of the batch."""
    fsdp: int = 1
    """Number of devices over which parameters, optimizer state and the batch are split, to save memory.
    Each device gathers the parameters of a layer when it needs them."""
    tensor: int = 1
    """Number of devices that share each matrix product. Each of them computes a part."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            rule, fix = "greater than 0, or -1", "give a number of devices, or -1 for all that are left"
            require(size == -1 or size > 0, f"mesh.{name}", size, rule, fix=fix)
        sizes, fix = [self.data, self.fsdp, self.tensor], "give a number of devices for all axes but one"
        require(sizes.count(-1) < 2, "mesh", self, "-1 on one axis at most", fix=fix)

    def over(self, devices: int) -> "MeshConfig":
        """The mesh over so many devices, without a -1.

        Raises ConfigError when the sizes do not multiply to the number of devices.
        """
        sizes = [self.data, self.fsdp, self.tensor]
        stated = math.prod(size for size in sizes if size != -1)
        if -1 in sizes and devices % stated == 0:
            sizes[sizes.index(-1)] = devices // stated
        if math.prod(sizes) != devices:
            raise ConfigError(
                f"mesh data={self.data} fsdp={self.fsdp} tensor={self.tensor}",
                why=f"it does not multiply to the {devices} devices here",
                fix="choose sizes whose product is that number, or -1 on one axis, which then takes what is "
                "left",
            )
        return MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])

    def check_batch(self, sequences: int) -> None:
        """Raise ConfigError unless the sequences of a micro-batch divide over this mesh, which has no -1."""
        rows = self.data * self.fsdp
        if sequences % rows:
            raise ConfigError(
                f"batch = {sequences}",
                why=f"it does not divide over data x fsdp = {rows} devices",
                fix="choose a multiple, or another mesh",
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What the settings of all training runs have in common, whatever their task."""

    unit: ClassVar[str] = "token"
    """What the loss is the mean of: of each token, or of each text."""
    seen: ClassVar[str] = "tokens"
    """What `seen_per_step` counts."""

    steps: int = 1000
    """Number of optimizer steps in the whole run."""
    seed: int = 0
    """Starting point of all random numbers: the initial weights, dropout and the order of the data."""
    batch: int = 8
    """Number of sequences that are computed at a time, on all devices together (a micro-batch)."""
    accumulate: int = 1
    """Number of micro-batches whose gradients are summed for one optimizer step.
    A step sees batch x accumulate sequences."""
    skip_steps: str = ""
    """Steps that make no update, counted from 1, such as 12,40-45. Their data is passed by."""
    on_divergence: Literal["stop", "skip", "rewind"] = "stop"
    """What happens when a step diverges: its loss, its gradient or its new weights are not finite.
    stop ends the run, with exit code 76. skip leaves out the update of that step and goes on.
    rewind goes back to the newest checkpoint, and adds that step and the one before it to skip_steps."""
    divergence_limit: int = 10
    """How often in a run skip or rewind may act. The next step that diverges ends the run."""
    spike_deviations: float = 0.0
    """How far the loss may lie above its mean over the last 128 steps, in standard deviations, such as 6.
    A step whose loss is higher makes no update and counts as one that diverges. 0 means that none does."""
    log_every: int = 10
    """Number of steps from one line in metrics.jsonl to the next."""
    eval_every: int = 100
    """Number of steps from one evaluation on the validation data to the next. 0 means none."""
    patience: int = 0
    """Number of evaluations in a row without a better `best_metric` after which the run ends early.
    0 means never."""
    best_metric: str = "val_loss"
    """The measurement that decides which checkpoint is the best one. none keeps no best one."""
    checkpoint_every: int = 500
    """Number of steps from one checkpoint to the next. The last step is always saved."""
    keep_checkpoints: int = 2
    """Number of checkpoints that are kept, the latest ones. The best one is kept besides."""
    out_dir: str = "runs/gpt"
    """Directory of the run. If it holds an unfinished run, that run is resumed."""
    init_from: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Model whose weights a new run starts from. None means random weights.
    It is a run directory (RUN@best for its best checkpoint), weights in any format, or a public name: gpt2.
    The weights decide the architecture (model.*), and for a text that is not prepared, the tokenizer."""
    blocks: Literal["scan", "unrolled", "auto"] = "auto"
    """How the transformer blocks are compiled.
    scan compiles one block and runs it for every layer. unrolled compiles every layer.
    auto takes the one that suits the backend."""
    backward_keeps: BackwardKeeps = "auto"
    """What is kept inside the blocks for the backward pass; it computes the rest again, to save memory.
    all keeps everything. auto is products on TPU, the fastest there by its compiler, and all elsewhere.
    products keeps the results of the linear layers and of attention, so that little is computed again.
    nothing keeps only what goes into each block, and computes about a third more."""
    distributed: bool = False
    """Whether this process is one of several that train together (Slurm, GKE, TPU pods).
    It then joins the others through jax.distributed.initialize."""
    tensorboard: bool = False
    """Whether events for TensorBoard are written too. This needs the extra `tensorboard`."""
    model: GPTConfig = field(default_factory=GPTConfig)
    data: SourceConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        check_types(self)
        require_positive(self, "batch", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints")
        for name in ("eval_every", "patience", "divergence_limit", "spike_deviations"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        if self.patience and (self.best_every == 0 or self.best_metric == NO_METRIC):
            nothing = "eval_every = 0" if self.best_every == 0 else f"best_metric = {NO_METRIC}"
            why, fix = f"with {nothing} there is nothing to wait for", "leave out --patience, or evaluate"
            raise ConfigError(f"patience = {self.patience}", why=why, fix=fix)
        spelled = re.fullmatch(r"([1-9]\d*(-\d+)?(,[1-9]\d*(-\d+)?)*)?", self.skip_steps)
        numbers = "numbers and spans of steps, counted from 1, with commas between them"
        sound = spelled is not None and all(self._skipped())
        require(sound, "skip_steps", self.skip_steps, numbers, fix="write them like 12,40-45")
        seeds = f"a whole number from 0 to {2**32 - 1}"
        require(0 <= self.seed < 2**32, "seed", self.seed, seeds, fix=f"give {seeds}")
        require(bool(self.out_dir), "out_dir", self.out_dir, "a directory", fix="name a directory")

    @property
    def best_every(self) -> int:
        """Number of steps from one measurement of `best_metric` to the next. 0 means none."""
        return self.eval_every

    @property
    def guarded(self) -> bool:
        """Whether a step decides itself that it makes no update, because it diverges."""
        return self.on_divergence == "skip" or self.spike_deviations > 0

    def skips(self, step: int) -> bool:
        """Whether a step, counted from 1, makes no update."""
        return any(step in span for span in self._skipped())

    def _skipped(self) -> list[range]:
        ends = [span.split("-") for span in self.skip_steps.split(",") if span]
        return [range(int(each[0]), int(each[-1]) + 1) for each in ends]

    @property
    def sequences(self) -> int:
        """The number of sequences that an optimizer step sees."""
        return self.batch * self.accumulate

    @property
    def seen_per_step(self) -> int:
        """How much an optimizer step sees, counted in what `seen` says."""
        return self.sequences
