"""`jaxgpt generate`: continues texts with a trained model."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxgpt.errors import ConfigError
from jaxgpt.verbs.decoders import DecoderFlags

if TYPE_CHECKING:
    from jaxgpt.inference.sampling import Sampling
    from jaxgpt.inference.texts import Piece
    from jaxgpt.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How the next token is chosen: the flags that `generate` and `chat` share."""

    max_new_tokens: int = 100
    """Largest number of tokens that the model writes. It may end its text earlier."""
    temperature: float = 0.8
    """Below 1, the model prefers probable tokens more strongly, and its text becomes more predictable.
    Above 1, improbable tokens are chosen more often, and its text becomes more varied.
    0 always takes the most probable token (greedy decoding)."""
    top_k: int = 50
    """Choose only among this many most probable tokens. 0 means among all."""
    top_p: float = 1.0
    """Choose only among the most probable tokens that together have at least this probability.
    1 means among all."""
    min_p: float = 0.0
    """Choose only among tokens that have at least this share of the most probable token's probability.
    0 means among all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that occur in the text so far become less probable. The prompt counts.
    1 changes nothing."""
    presence_penalty: float = 0.0
    """Number that is subtracted from the logit of every token that was written already.
    The prompt does not count."""
    frequency_penalty: float = 0.0
    """Number that is subtracted from a token's logit for each time it was written.
    The prompt does not count."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End the text before this string. The flag may be given several times."""
    seed: int = 0
    """Starting point of the random numbers. The same seed gives the same text."""

    def sampling(self) -> "Sampling":
        """Return these settings for the engine. Raises ConfigError for values that are impossible."""
        from jaxgpt.inference.sampling import Sampling

        if self.max_new_tokens < 0:
            raise ConfigError(
                f"max_new_tokens = {self.max_new_tokens}",
                why="it must be 0 or more",
                fix="give the number of tokens to write",
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(
                f"seed = {self.seed}",
                why="it must be a 32-bit unsigned integer",
                fix=f"give a whole number from 0 to {2**32 - 1}",
            )
        return Sampling(**{name: getattr(self, name) for name in Sampling.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class GenerateArgs(SamplingFlags, DecoderFlags):
    """Continue each PROMPT, and write the prompt and its continuation to stdout.

    With --instruction or --examples, a PROMPT is a query instead. It comes after them, and only the answer is
    written.

    A text may be longer than the model's context. When the context is full, its older half is dropped, and
    the model goes on from the newer half.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT...")] = field(
        default=("",)
    )
    """Texts to continue. An empty text starts a new one."""
    instruction: str = ""
    """Says what to do with the query. It comes first."""
    examples: Path | None = None
    """JSONL file of worked examples, which come before the query.
    Each line is an object such as {"input": "2 + 2", "output": "4"}."""
    logprobs: int | None = None
    """Write a line of JSON for each token instead of text, with this many alternatives to it, from 0 to 20.
    The keys are prompt (its number, from 0), token (its id), text (the token's), logprob and alternatives.
    logprob is in nats, before penalties and temperature. alternatives are pairs of an id and its logprob.
    The tokens of a stop string are included."""
    stream: bool = True
    """Write text as soon as it is there, one prompt after the other.
    Without it, all prompts are continued together, which is faster except for tiny models."""


def run(args: GenerateArgs) -> None:
    """Write the texts. Impossible settings and prompts are refused before anything is written."""
    from jaxgpt.display import note, write_text
    from jaxgpt.inference.prompts import FEW_SHOT_STOP, few_shot_prompt, read_examples
    from jaxgpt.inference.texts import pieces_of
    from jaxgpt.language_model import MOST_SLOTS

    sampling, prompts, stop = args.sampling(), list(args.prompts), args.stop
    asks = bool(args.instruction) or args.examples is not None
    if asks:
        examples = read_examples(args.examples) if args.examples else []
        prompts = [
            few_shot_prompt(query, instruction=args.instruction, examples=examples) for query in prompts
        ]
        stop += FEW_SHOT_STOP
    lm = args.load(args.model)
    tokenizer, requests = lm.tokenizer, []
    for prompt in prompts:
        request = lm.request(prompt, max_new_tokens=args.max_new_tokens, sampling=sampling, seed=args.seed)
        requests.append(dataclasses.replace(request, logprobs=args.logprobs))
        if len(request.prompt) > lm.config.context:
            note(
                f"a prompt has {len(request.prompt)} tokens: "
                f"only the last {lm.config.context}, which fill the context, are read"
            )
    slots = 1 if args.stream else min(MOST_SLOTS, 1 << (len(prompts) - 1).bit_length())
    written: list[_Output] = [
        _Output(tokenizer, prompt=None if asks else prompt, lines=None if args.logprobs is None else number)
        for number, prompt in enumerate(prompts)
    ]
    with args.decoder(lm, requests, slots=slots) as decoder:
        if args.stream:
            for request, output in zip(requests, written, strict=True):
                for piece in pieces_of(decoder, [request], tokenizer, stop):
                    write_text(output.shown(piece))
        else:
            wholes = [""] * len(prompts)
            for piece in pieces_of(decoder, requests, tokenizer, stop):
                wholes[piece.place] += written[piece.place].shown(piece)
            write_text("".join(wholes))


class _Output:
    """What is written for one prompt.

    This is the text of `prompt` and its continuation, or the answer alone if `prompt` is None. If `lines` is
    a number, it is lines of JSON that have this number as their prompt.
    """

    def __init__(self, tokenizer: "Tokenizer", *, prompt: str | None, lines: int | None) -> None:
        self._tokenizer, self._lines = tokenizer, lines
        self._before = prompt or ""
        self._space = prompt is None  # the first space of an answer belongs to the layout

    def shown(self, piece: "Piece") -> str:
        """What is written of a piece; the last one ends the line."""
        if self._lines is None:
            return self._text(piece.text) + ("\n" if piece.new is None else "")
        if piece.new is None or piece.new.written is None:
            return ""
        new, token = piece.new, piece.new.written
        line = {"prompt": self._lines, "token": token, "text": self._tokenizer.decode([token])}
        line |= {"logprob": new.logprob, "alternatives": new.alternatives}
        return json.dumps(line, ensure_ascii=False) + "\n"

    def _text(self, piece: str) -> str:
        if self._space and piece:
            piece, self._space = piece.removeprefix(" "), False
        before, self._before = self._before, ""
        return before + piece
