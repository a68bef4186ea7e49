"""`jaxgpt convert`: GPT-2 weights from any format to another, proved on request."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from jaxgpt.weights.tensors import StoredModel


@dataclass(frozen=True, kw_only=True)
class ConvertArgs:
    """Write the weights of SRC to DST in another format.

    Read: Hugging Face (safetensors or torch files, single or sharded), OpenAI's TensorFlow checkpoint, nanoGPT's
    ckpt.pt, llm.c's .bin, a run directory, or a public name. No file is ever executed. Stored dtypes are kept.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A run directory, a folder or file of weights, or gpt2, gpt2-medium, gpt2-large, gpt2-xl."""
    destination: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """A folder to be made; for nanogpt and llmc also a file, NAME.pt or NAME.bin."""
    to: Literal["huggingface", "jaxgpt", "llmc", "nanogpt"] = "huggingface"
    """The format of DST."""
    check: bool = False
    """Read DST back and prove it: parity.json beside it says what was compared; exit 65 where something differs."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Cast every tensor."""
    vocab: int | None = None
    """Rows of the token embedding: zeros are added (their logits are 0), or the last rows left out."""
    layer_norm_epsilon: float | None = None
    """For OpenAI's checkpoints, which do not state it."""


def run(args: ConvertArgs) -> None:
    """Convert, say what was done, and check it if asked to."""
    from jaxgpt.display import note
    from jaxgpt.weights.convert import open_model, with_dtype, with_vocab, write_model

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


def _prove(args: ConvertArgs, source: "StoredModel", wanted: "StoredModel") -> None:
    """Write parity.json. Raises DataError when the destination is not what was meant."""
    from jaxgpt.display import note
    from jaxgpt.errors import DataError
    from jaxgpt.evaluation.parity import PARITY_FILE, certificate
    from jaxgpt.files import write_atomically
    from jaxgpt.weights.convert import open_model

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
            fix="read the file; the source is as it was",
        )
    greedy = "equal" if proof["greedy"]["equal"] else "equal but for ties within that"
    note(
        f"{file}: {len(proof['tensors'])} tensors byte for byte, logits within "
        f"{proof['logits']['max_abs_difference']:.2g} of float64, KL {proof['kl_divergence']['largest']:.2g} nats, "
        f"greedy tokens {greedy}"
    )
