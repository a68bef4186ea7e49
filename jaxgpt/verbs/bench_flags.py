"""The flags of `jaxgpt bench`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxgpt.config import MeshConfig


@dataclass(frozen=True, kw_only=True)
class BenchArgs:
    """Time training steps, or generation, with random weights and tokens.

    train: median step, tokens per second, utilisation, time to the first step. generate: greedy decoding through the
    engine: tokens per second, time to the first token, compilation, the share of the memory bandwidth that is used.
    """

    what: Annotated[Literal["train", "generate"], tyro.conf.Positional]
    """train: whole optimizer steps; generate: whole texts."""
    preset: str | None = None
    """Take the model of this preset; without one it is GPT-2 124M, changed by the sizes given."""
    layers: int | None = None
    """Number of blocks."""
    heads: int | None = None
    """Attention heads."""
    width: int | None = None
    """Size of the residual stream."""
    context: int | None = None
    """Tokens in a sequence."""
    vocab: int | None = None
    """Number of token ids."""
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Type of activations and matrix products."""
    batch: int = 8
    """Sequences in a step, or texts generated side by side."""
    steps: int = 10
    """Steps or batches of texts timed, after warm-up."""
    prompt: int = 64
    """generate: tokens of each prompt."""
    new: int = 64
    """generate: tokens made for each."""
    int8: bool = False
    """generate: weights in int8."""
    blocks: Literal["scan", "unrolled", "auto"] = "auto"
    """How the blocks run."""
    remat: bool = False
    """Recompute activations in the backward pass."""
    loss_chunk: int = 0
    """Positions whose logits exist at one time; 0 is all."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """The mesh of devices."""
    json: Path | None = None
    """Write the figures to this file too."""
