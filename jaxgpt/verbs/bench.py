"""`jaxgpt bench`: how fast this machine trains, generates, compiles and reads, beside what it could reach."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxgpt.config import BackwardKeeps, GPTConfig, MeshConfig, load_recipe
from jaxgpt.config.checks import require_positive
from jaxgpt.files import write_atomically

SIZES = ("layers", "heads", "width", "context", "vocab", "compute_dtype")


@dataclass(frozen=True, kw_only=True)
class BenchArgs:
    """Time training steps, or generation, with random weights and tokens; or compiling, or reading data.

    train: the median step, tokens per second, utilisation and the time to the first step. generate: greedy
    decoding through the engine, with tokens per second, the time to the first token, the time that compiling
    takes, and the share of the memory bandwidth that decoding uses. compile: the first step and the first
    text, without programs that an earlier start has kept, and with them. data: a text into tokens, beside
    tiktoken alone, and tokens into batches.
    """

    what: Annotated[Literal["train", "generate", "compile", "data"], tyro.conf.Positional]
    """train: whole optimizer steps; generate: whole texts; compile: first starts; data: tokens, batches."""
    preset: str | None = None
    """Take the model of this preset. Without one it is GPT-2 124M. The sizes given here change it."""
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
    """How many steps, or batches of texts or tokens, are timed. compile takes one."""
    prompt: int = 64
    """generate: tokens of each prompt."""
    new: int = 64
    """generate: new tokens after each prompt."""
    int8: bool = False
    """generate: round the weights to int8."""
    text: str = "builtin"
    """data: the text that is read, as `jaxgpt prepare` takes it."""
    blocks: Literal["scan", "unrolled", "auto"] = "auto"
    """train: run the blocks as one scan, or unrolled. auto picks the faster one for the platform."""
    backward_keeps: BackwardKeeps = "auto"
    """train: what is kept inside the blocks for the backward pass, which computes the rest again."""
    loss_chunk: int = 0
    """train: positions of each sequence whose logits exist at one time. 0 means all of them."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    """The mesh of devices."""
    json: Path | None = None
    """Write the figures to this file too."""


def run(args: BenchArgs) -> None:
    """Measure, print the figures to stdout, and write them to the file that --json names."""
    from rich.console import Console
    from rich.table import Table

    from jaxgpt.verbs.flags import check_output

    require_positive(args, "batch", "steps")
    check_output("--json", args.json)
    figures = _figures(args)
    table = Table(show_header=False, box=None)
    for name, value in figures.items():
        if name != "model":
            table.add_row(name, _shown(value))
    Console().print(table)
    if args.json:
        write_atomically(args.json, (json.dumps(figures, indent=2) + "\n").encode())


def _figures(args: BenchArgs) -> dict[str, Any]:
    config = _model(args)
    if args.what == "compile":
        from jaxgpt.verbs.bench_compile import compile_figures

        return compile_figures(_flags(args))
    if args.what == "data":
        from jaxgpt.verbs.bench_data import data_figures

        return data_figures(config, args.text, batch=args.batch, steps=args.steps)
    from jaxgpt.parallel import mesh_of

    mesh = mesh_of(args.mesh)
    if args.what == "train":
        from jaxgpt.verbs.bench_train import train_figures

        return train_figures(
            config,
            mesh,
            batch=args.batch,
            steps=args.steps,
            blocks=args.blocks,
            keeps=args.backward_keeps,
            loss_chunk=args.loss_chunk,
        )
    from jaxgpt.verbs.bench_generate import generate_figures

    return generate_figures(
        config, mesh, batch=args.batch, prompt=args.prompt, new=args.new, repeats=args.steps, int8=args.int8
    )


def _flags(args: BenchArgs) -> list[str]:
    """The command line of the same model, batch and mesh."""
    given = {name: value for name in SIZES if (value := getattr(args, name)) is not None}
    given |= {"blocks": args.blocks, "backward_keeps": args.backward_keeps, "loss_chunk": args.loss_chunk}
    given |= {"batch": args.batch, "prompt": args.prompt, "new": args.new}
    given |= {f"mesh.{name}": size for name, size in dataclasses.asdict(args.mesh).items()}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    flags += ["--int8"] if args.int8 else []
    return flags + ([f"--preset={args.preset}"] if args.preset else [])


def _model(args: BenchArgs) -> GPTConfig:
    given = {name: size for name in SIZES if (size := getattr(args, name)) is not None}
    return dataclasses.replace(load_recipe(args.preset).model if args.preset else GPTConfig(), **given)


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
