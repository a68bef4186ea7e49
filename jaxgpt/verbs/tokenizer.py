"""`jaxgpt tokenizer`: trains a byte-pair vocabulary of your own, or adds special tokens to a model's."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxgpt.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenizerArgs:
    """Train a byte-pair vocabulary (BPE) on texts; or, with --extend, add special tokens to a model.

    The first is TEXT... --vocab N --out FILE, the second --extend MODEL TOKEN... --out DIR.
    """

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT...")]
    """Files, folders, pipes, `-` for standard input, or names of corpora.
    The corpora are builtin, tiny-shakespeare, the-verdict and fineweb.
    With --extend, the special tokens to add, such as '<|user|>'."""
    vocab: int | None = None
    """Number of token ids in the vocabulary, including the 256 bytes and the end-of-text token."""
    extend: str | None = None
    """Model that gets special tokens: a run directory, weights in any format, or a public name such as gpt2.
    Its embedding gets a row for each of them, which is the mean of the old rows."""
    out: Path
    """File to write, which must not exist yet.
    It holds tiktoken ranks if its name ends in .tiktoken, and Hugging Face's tokenizer.json if in .json.
    With --extend, the folder of the new model."""


def run(args: TokenizerArgs) -> None:
    """Make a vocabulary or a model, write it, and say on stderr what was made and what to type next."""
    if args.extend is not None:
        _extend(args, args.extend)
    else:
        _train(args)


def _extend(args: TokenizerArgs, model: str) -> None:
    from jaxgpt.display import note, program
    from jaxgpt.weights.convert import write_model
    from jaxgpt.weights.open import open_model
    from jaxgpt.weights.vocabulary import with_tokens

    if args.vocab is not None:
        why = "the vocabulary grows by the tokens that are named"
        raise ConfigError("--vocab beside --extend", why=why, fix="leave out one of the two")
    written = write_model(with_tokens(open_model(model), args.texts), args.out, "jaxgpt")
    for text in written.notes:
        note(text)
    note(f"{args.out}: a model with {written.config.vocab:,} rows in its embedding")
    note(f"next: {shlex.join([program(), 'finetune', 'instruct', '--from', str(args.out)])} --template FILE")


def _train(args: TokenizerArgs) -> None:
    import tempfile

    from jaxgpt.display import program, progress_bar
    from jaxgpt.text.bpe import train
    from jaxgpt.text.corpus import open_texts
    from jaxgpt.text.documents import Meter, cut_blocks

    if (
        not args.texts
        or args.vocab is None
        or args.out.suffix not in (".tiktoken", ".json")
        or args.out.exists()
    ):
        if not args.texts:
            why, fix = "no TEXT was given", "name at least one file, folder or corpus"
        elif args.vocab is None:
            why, fix = "its size was not given", "give the number of its ids: --vocab N"
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
