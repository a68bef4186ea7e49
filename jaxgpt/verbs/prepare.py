"""`jaxgpt prepare`: turns texts into a folder of token files."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

SMALL_VOCABULARY = 4096  # ids; with more, most of the time of the recipe `nano` goes into its output head


@dataclass(frozen=True, kw_only=True)
class PrepareArgs:
    """Turn texts into tokens, and write them to a folder that `jaxgpt pretrain` reads."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT...")]
    """Files, folders, pipes, `-` for standard input, or names of corpora.
    The corpora are builtin, tiny-shakespeare, the-verdict and fineweb."""
    out: Path
    """Folder to write to. It is made if it does not exist."""
    tokenizer: str = "gpt2"
    """How text becomes tokens: gpt2, bytes, or a file of your own (tiktoken ranks or tokenizer.json)."""
    val_fraction: float = 0.1
    """Share of the text that is kept for validation, at least 0 and less than 1."""
    shard_tokens: int = 100_000_000
    """Largest number of tokens in one file."""
    workers: int | None = None
    """Number of threads that tokenize. None means one for each core. The result does not depend on it."""
    skip_unreadable: bool = False
    """Leave out files that are damaged, empty or no text, and name them, instead of refusing all."""


def run(args: PrepareArgs) -> None:
    """Prepare the folder and say on stderr what is in it and what to type next."""
    from jaxgpt.display import note, program, progress_bar
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
            skip_unreadable=args.skip_unreadable,
            progress=progress,
            tell=note,
        )
    train, val = manifest.splits["train"], manifest.splits["val"]
    done = "it was prepared already and is unchanged" if existed else "prepared"
    recipe = "nano" if manifest.vocab <= SMALL_VOCABULARY else "small"
    note(
        f"{args.out}: {done}: {train.tokens:,} training and {val.tokens:,} validation tokens of "
        f"{manifest.tokenizer} (vocabulary {manifest.vocab:,}); "
        f"next: {program()} pretrain {recipe} --data.path {shlex.quote(str(args.out))}"
    )
