"""`jaxgpt tokenizer`: train a byte-pair vocabulary of one's own."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxgpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenizerArgs:
    """Train a byte-pair vocabulary on texts."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT...")]
    """Files, folders, `-` for standard input, or corpus names: builtin, tiny-shakespeare, the-verdict, fineweb."""
    vocab: int
    """How many ids, the 256 bytes and the end-of-text token among them."""
    out: Path
    """The file to write: tiktoken ranks if it ends in .tiktoken, Hugging Face's tokenizer.json if in .json."""


def run(args: TokenizerArgs) -> None:
    """Train the vocabulary, write it, and say on stderr what was made and what to type next."""
    import tempfile

    from jaxgpt.display import progress_bar
    from jaxgpt.text.bpe import train
    from jaxgpt.text.corpus import open_texts
    from jaxgpt.text.documents import Meter, cut_blocks

    if not args.texts or args.out.suffix not in (".tiktoken", ".json") or args.out.exists():
        why = (
            f"{len(args.texts)} texts; a file ending in .tiktoken or .json that does not exist yet is wanted"
        )
        raise ConfigError("cannot train a vocabulary", path=args.out, why=why, fix="correct the arguments")
    with tempfile.TemporaryDirectory() as spool, progress_bar() as progress:
        texts = open_texts(args.texts, spool=Path(spool) / "stdin.txt", progress=progress)
        meter = Meter("reading", None, progress)
        blocks = (block for text in texts for block in cut_blocks(text.blocks(), 1 << 18))
        tokenizer = train((block.text for block in meter.count(blocks)), args.vocab)
    if args.out.suffix == ".json":
        tokenizer.save_json(args.out)
    else:
        tokenizer.save(args.out)
    print(
        f"{args.out}: a vocabulary of {tokenizer.vocab:,} learned from {meter.done:,} characters; "
        f"next: jaxgpt prepare {' '.join(args.texts)} --tokenizer {args.out} --out DIR",
        file=sys.stderr,
    )
