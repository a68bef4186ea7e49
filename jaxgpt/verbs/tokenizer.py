"""`jaxgpt tokenizer`: trains a byte-pair vocabulary of your own."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxgpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenizerArgs:
    """Train a byte-pair vocabulary (BPE) on texts."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT...")]
    """Files, folders, pipes, `-` for standard input, or names of corpora.
    The corpora are builtin, tiny-shakespeare, the-verdict and fineweb."""
    vocab: int
    """Number of token ids in the vocabulary, including the 256 bytes and the end-of-text token."""
    out: Path
    """File to write, which must not exist yet.
    It holds tiktoken ranks if its name ends in .tiktoken, and Hugging Face's tokenizer.json if in .json."""


def run(args: TokenizerArgs) -> None:
    """Train the vocabulary, write it, and say on stderr what was made and what to type next."""
    import tempfile

    from jaxgpt.display import program, progress_bar
    from jaxgpt.text.bpe import train
    from jaxgpt.text.corpus import open_texts
    from jaxgpt.text.documents import Meter, cut_blocks

    if not args.texts or args.out.suffix not in (".tiktoken", ".json") or args.out.exists():
        if not args.texts:
            why, fix = "no TEXT was given", "name at least one file, folder or corpus"
        elif args.out.exists():
            why, fix = "the file exists already", "choose another name, or delete it"
        else:
            why, fix = "its name tells no format", "choose a name that ends in .tiktoken or .json"
        raise ConfigError("cannot train a vocabulary", path=args.out, why=why, fix=fix)
    with tempfile.TemporaryDirectory() as spool, progress_bar() as progress:
        texts = open_texts(args.texts, spool=Path(spool), progress=progress)
        meter = Meter("reading", None, progress)
        blocks = (block for text in texts for block in cut_blocks(text.blocks(), 1 << 18))
        tokenizer = train((block.text for block in meter.count(blocks)), args.vocab)
    if args.out.suffix == ".json":
        tokenizer.save_json(args.out)
    else:
        tokenizer.save(args.out)
    print(
        f"{args.out}: a vocabulary of {tokenizer.vocab:,} learned from {meter.done:,} characters; "
        f"next: {program()} prepare {shlex.join([*args.texts, '--tokenizer', str(args.out)])} --out DIR",
        file=sys.stderr,
    )
