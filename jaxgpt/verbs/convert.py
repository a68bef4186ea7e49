"""`jaxgpt convert`: writes GPT-2 weights in another format, and checks the result if asked to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxgpt.errors import ConfigError

if TYPE_CHECKING:
    from jaxgpt.weights.tensors import StoredModel


@dataclass(frozen=True, kw_only=True)
class ConvertArgs:
    """Read the weights of SRC and write them to DST in another format.

    SRC may be a Hugging Face folder (safetensors or torch files, single or sharded), OpenAI's TensorFlow
    checkpoint, nanoGPT's ckpt.pt, llm.c's .bin, a run directory, or a public name. No code in a file is ever
    executed. Tensors keep their number type unless --dtype says otherwise.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A run directory, a folder or file of weights, or a name on the Hugging Face hub (gpt2, OWNER/NAME).
    RUN@best is a run's best checkpoint, RUN@500 that of step 500."""
    destination: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The folder to make. For nanogpt and llmc it may also be a file, NAME.pt or NAME.bin."""
    to: Literal["huggingface", "jaxgpt", "llmc", "nanogpt", "peft"] = "huggingface"
    """Format of DST. peft writes the adapter of SRC alone; the others write it merged into its base."""
    check: bool = False
    """Read DST back and compare it with SRC. The file parity.json says what was compared.
    If anything differs, the exit code is 65."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Number type to which every tensor is cast. None keeps the type of each."""
    vocab: int | None = None
    """Number of rows that the token embedding gets. Rows of zeros are added, or the last rows are left out.
    The logits of added rows are 0. None keeps all rows."""
    layer_norm_epsilon: float | None = None
    """Number that every LayerNorm adds to the variance. Only OpenAI's checkpoints do not state it."""


def run(args: ConvertArgs) -> None:
    """Convert, say on stderr what was done, and check the result if asked to."""
    if args.to == "peft":
        _write_adapter(args)
        return
    from jaxgpt.display import note
    from jaxgpt.weights.convert import with_dtype, with_vocab, write_model
    from jaxgpt.weights.open import open_model

    source = open_model(args.source, layer_norm_epsilon=args.layer_norm_epsilon)
    wanted = with_dtype(source, args.dtype) if args.dtype else source
    if args.vocab is not None:
        wanted = with_vocab(wanted, args.vocab)
    destination = Path(args.destination)
    wanted = write_model(wanted, destination, args.to)
    for text in wanted.notes:
        note(text)
    note(f"{destination}: {len(wanted.tensors)} tensors, {wanted.dtype}, {args.to}")
    if args.check:
        _prove(args, source, wanted)


def _write_adapter(args: ConvertArgs) -> None:
    """Write a folder of PEFT's. Raises ConfigError for flags that are about whole models."""
    from jaxgpt.display import note
    from jaxgpt.weights.adapted import open_adapter
    from jaxgpt.weights.formats.peft import write_peft

    for flag in ("check", "dtype", "vocab", "layer_norm_epsilon"):
        if getattr(args, flag):
            flag = f"--{flag.replace('_', '-')}"
            why = "it is about whole models, and peft holds an adapter alone"
            raise ConfigError(f"--to peft with {flag}", why=why, fix=f"leave out {flag}")
    adapter, destination = open_adapter(args.source), Path(args.destination)
    write_peft(adapter, destination)
    for text in adapter.notes:
        note(text)
    note(f"{destination}: an adapter of rank {adapter.lora.rank} for {adapter.base.name}, peft")


def _prove(args: ConvertArgs, source: "StoredModel", wanted: "StoredModel") -> None:
    """Write parity.json. Raises DataError when the destination does not hold what it should."""
    from jaxgpt.display import note
    from jaxgpt.errors import DataError
    from jaxgpt.evaluation.parity import PARITY_FILE, certificate
    from jaxgpt.files import write_atomically
    from jaxgpt.weights.open import open_model

    destination = Path(args.destination)
    proof = certificate(source, wanted, open_model(destination))
    told = {"source": args.source, "destination": args.destination, "format": args.to}
    file = destination / PARITY_FILE if destination.is_dir() else destination.with_suffix(f".{PARITY_FILE}")
    write_atomically(file, (json.dumps(told | proof, indent=2) + "\n").encode())
    if not proof["passed"]:
        raise DataError(
            "what was written is not what was meant",
            path=file,
            why="; ".join(proof["problems"][:5]),
            fix="do not use the destination; that file names every difference, and the source is unchanged",
        )
    greedy = "equal" if proof["greedy"]["equal"] else "equal except where logits are as close as that"
    note(
        f"{file}: {len(proof['tensors'])} tensors are equal byte for byte; the logits differ from a float64 "
        f"computation by at most {proof['logits']['max_abs_difference']:.2g} (KL divergence at most "
        f"{proof['kl_divergence']['largest']:.2g} nats); greedy tokens are {greedy}"
    )
