"""`jaxgpt prepare`: texts become a folder of token files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class PrepareArgs:
    """Tokenize texts into a folder that `jaxgpt pretrain` reads."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT...")]
    """Files, folders, `-` for standard input, or corpus names: builtin, tiny-shakespeare, the-verdict, fineweb."""
    out: Path
    """The folder to make."""
    tokenizer: str = "gpt2"
    """gpt2, bytes, or a file of one's own (tiktoken ranks or tokenizer.json)."""
    val_fraction: float = 0.1
    """How much of the text to keep for validation, 0 or more and less than 1."""
    shard_tokens: int = 100_000_000
    """Tokens in one file."""
    workers: int | None = None
    """Threads that tokenize; one a core if left out. The result does not depend on it."""


def run(args: PrepareArgs) -> None:
    """Prepare the folder and say on stderr what is in it and what to type next."""
    from jaxgpt.display import note, progress_bar
    from jaxgpt.text.manifest import MANIFEST_FILE
    from jaxgpt.text.prepare import prepare

    existed = (args.out / MANIFEST_FILE).exists()
    with progress_bar() as progress:
        manifest = prepare(
            args.texts,
            args.out,
            tokenizer=args.tokenizer,
            val_fraction=args.val_fraction,
            shard_tokens=args.shard_tokens,
            workers=args.workers,
            progress=progress,
        )
    train, val = manifest.splits["train"], manifest.splits["val"]
    done = "unchanged, already prepared" if existed else "prepared"
    note(
        f"{args.out}: {done}: {train.tokens:,} training and {val.tokens:,} validation tokens of {manifest.tokenizer} "
        f"(vocabulary {manifest.vocab:,}); next: jaxgpt pretrain nano --data.path {args.out}"
    )
