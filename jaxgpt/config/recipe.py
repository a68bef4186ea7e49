"""Everything a training run can be told: its data, its optimizer, its mesh, its intervals. Imports no JAX."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from jaxgpt.config.checks import check_types, require, require_fraction, require_positive
from jaxgpt.config.model import GPTConfig


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
        check_types(self)
        require(bool(self.path), "data.path", self.path, "a folder, file or corpus name")
        require_fraction(self, "val_fraction")
        require(self.stride is None or self.stride > 0, "data.stride", self.stride, "greater than 0")


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
        check_types(self)
        require_positive(self, "learning_rate", "epsilon")
        require_fraction(self, "beta1", "beta2", "ema_decay")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "from 0 to 1")
        require(
            0 < self.decay_fraction <= 1,
            "decay_fraction",
            self.decay_fraction,
            "greater than 0 and at most 1",
        )
        for name in ("warmup_steps", "weight_decay", "clip_norm"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")


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
        check_types(self)
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            require(size == -1 or size > 0, f"mesh.{name}", size, "greater than 0, or -1 to fill")
        require([self.data, self.fsdp, self.tensor].count(-1) < 2, "mesh", self, "-1 on one axis at most")


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
        check_types(self)
        require_positive(
            self, "steps", "batch", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints"
        )
        for name in ("eval_every", "eval_batches", "sample_tokens", "loss_chunk"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(0 <= self.seed < 2**32, "seed", self.seed, "a 32-bit unsigned integer")
        require(bool(self.out_dir), "out_dir", self.out_dir, "a directory")

    @property
    def sequences(self) -> int:
        """Sequences an optimizer step sees."""
        return self.batch * self.accumulate

    @property
    def tokens_per_step(self) -> int:
        return self.sequences * self.model.context
