"""`jaxgpt generate`: a trained model continues a text."""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class GenerateArgs:
    """Continue each PROMPT and write prompt and continuation to stdout.

    A text longer than the model's context slides: when the window is full, its older half is dropped and the rest is
    read again.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT...")] = field(default=("",))
    """Texts to continue; an empty one starts a new text."""
    max_new_tokens: int = 100
    """Tokens written at most; the model may end its text earlier."""
    temperature: float = 0.8
    """Below 1 bolder, above 1 wilder; 0 is greedy: always the most probable token."""
    top_k: int = 50
    """Draw from the k most probable tokens only; 0 keeps all."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this much probability only; 1 keeps all."""
    seed: int = 0
    """The same seed gives the same text."""


def run(args: GenerateArgs) -> None:
    """Write the texts, token by token."""
    from jaxgpt.errors import ConfigError
    from jaxgpt.inference.sampling import Sampling
    from jaxgpt.inference.text_stream import text_pieces
    from jaxgpt.language_model import load

    if args.max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens = {args.max_new_tokens}", why="it must be 0 or more", fix="change it")
    sampling = Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    lm = load(args.model)
    tokenizer = lm.tokenizer  # a model without one is refused before anything is written
    for prompt in args.prompts:
        sys.stdout.write(prompt)
        ids = lm.stream(prompt, max_new_tokens=args.max_new_tokens, sampling=sampling, seed=args.seed)
        for piece in text_pieces(tokenizer, ids):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
