"""`jaxgpt generate`: continues texts with a trained model."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxgpt.verbs.decoders import DecoderFlags
from jaxgpt.verbs.flags import SamplingFlags

if TYPE_CHECKING:
    from jaxgpt.inference.texts import Piece
    from jaxgpt.text.tokenizer import Tokenizer


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
