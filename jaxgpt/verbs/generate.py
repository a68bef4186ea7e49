"""`jaxgpt generate`: continues texts with a trained model."""

import dataclasses
import json
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.verbs.decoders import DecoderFlags
from jaxgpt.verbs.flags import AdapterFlags, SamplingFlags

if TYPE_CHECKING:
    from jaxgpt.inference.requests import Request
    from jaxgpt.inference.texts import Piece
    from jaxgpt.language_model import LanguageModel
    from jaxgpt.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class GenerateArgs(SamplingFlags, DecoderFlags, AdapterFlags):
    """Continue each PROMPT, and write the prompt and its continuation to stdout.

    Several texts are told apart by lines such as `==> prompt 2, seed 8 <==`. Each is drawn with a seed of its
    own. A PROMPT that is - is read from standard input, and so is a pipe where no PROMPT is given.

    With --instruction or --examples, a PROMPT is a query instead. It comes after them, and only the answer is
    written.

    A text may be longer than the model's context. When the context is full, its older half is dropped, and
    the model goes on from the newer half.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or a name on the Hugging Face hub: gpt2, or OWNER/NAME.
    RUN@best is a run's best checkpoint, RUN@500 that of step 500."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT...")] = ()
    """Texts to continue. An empty text starts a new one, and so does none."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Number of texts to write for each prompt."""
    instruction: str = ""
    """Says what to do with the query. It comes first."""
    examples: Path | None = None
    """JSONL file of worked examples, which come before the query.
    Each line is an object such as {"input": "2 + 2", "output": "4"}."""
    logprobs: int | None = None
    """Write a line of JSON for each token instead of text, with this many alternatives to it, from 0 to 20.
    The keys are prompt and sample (their numbers, from 0), token (its id), text, logprob and alternatives.
    logprob is in nats, before penalties and temperature. alternatives are pairs of an id and its logprob.
    The tokens of a stop string are included."""
    stream: bool = True
    """Write text as soon as it is there, one text after the other.
    Without it, all texts are continued together, which is faster except for tiny models."""


def run(args: GenerateArgs) -> None:
    """Write the texts. Impossible settings and prompts are refused before anything is written."""
    from jaxgpt.display import write_text
    from jaxgpt.inference.prompts import FEW_SHOT_STOP, few_shot_prompt, read_examples
    from jaxgpt.inference.texts import pieces_of
    from jaxgpt.language_model import MOST_SLOTS

    args.sampling()
    if args.n < 1:
        raise ConfigError(f"n = {args.n}", why="it must be 1 or more", fix="give the number of texts")
    prompts, stop = given_prompts(args.prompts), args.stop_strings
    asks = bool(args.instruction) or args.examples is not None
    if asks:
        examples = read_examples(args.examples) if args.examples else []
        prompts = [
            few_shot_prompt(query, instruction=args.instruction, examples=examples) for query in prompts
        ]
        stop += FEW_SHOT_STOP
    lm = args.load(args.model, args.adapter)
    requests, outputs = _texts_to_write(args, lm, prompts, asks=asks)
    slots = 1 if args.stream else min(MOST_SLOTS, 1 << (len(requests) - 1).bit_length())
    with args.decoder(lm, requests, slots=slots) as decoder:
        if args.stream:
            for request, output in zip(requests, outputs, strict=True):
                for piece in pieces_of(decoder, [request], lm.tokenizer, stop):
                    write_text(output.shown(piece))
        else:
            wholes = [""] * len(requests)
            for piece in pieces_of(decoder, requests, lm.tokenizer, stop):
                wholes[piece.place] += outputs[piece.place].shown(piece)
            write_text("".join(wholes))


def given_prompts(words: Sequence[str]) -> list[str]:
    """The prompts of a command line, with what stands in standard input for `-`.

    Without any, a pipe is the prompt, and otherwise an empty text. The last line's end is no part of it.
    Raises DataError where it is not UTF-8.
    """
    words = list(words) or ["-" if _is_piped() else ""]
    if "-" not in words:
        return words
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError("input is not UTF-8", why=str(error), fix="convert the text to UTF-8") from error
    text = text.removesuffix("\n").removesuffix("\r")
    return [text if word == "-" else word for word in words]


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file; whatever else a program has there is not meant for us."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # there is none, or it has no file
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _texts_to_write(
    args: GenerateArgs, lm: "LanguageModel", prompts: Sequence[str], *, asks: bool
) -> "tuple[list[Request], list[_Output]]":
    """`n` requests for each prompt, each with a seed of its own, and what is written for each."""
    from jaxgpt.display import note

    draws = args.temperature > 0 and not args.beams
    seed = args.first_seed() if draws else 0
    requests: list[Request] = []
    outputs: list[_Output] = []
    for number, prompt in enumerate(prompts):
        request = lm.request(prompt, max_new_tokens=args.max_new_tokens, sampling=args.sampling())
        if len(request.prompt) > lm.config.context:
            note(
                f"a prompt has {len(request.prompt)} tokens: "
                f"only the last {lm.config.context}, which fill the context, are read"
            )
        for sample in range(args.n):
            own = seed + len(requests)
            names = [f"prompt {number + 1}"] * (len(prompts) > 1) + [f"sample {sample + 1}"] * (args.n > 1)
            heading = (
                _heading([*names, f"seed {own}"] if draws else names, first=not requests) if names else ""
            )
            place = None if args.logprobs is None else {"prompt": number, "sample": sample}
            before = heading + ("" if asks else prompt)
            outputs.append(_Output(lm.tokenizer, before, answer=asks, place=place))
            requests.append(dataclasses.replace(request, seed=own, logprobs=args.logprobs))
    return requests, outputs


def _heading(names: Sequence[str], *, first: bool) -> str:
    """The line above one of several texts, as `head` and `tail` write it above one of several files."""
    return ("" if first else "\n") + f"==> {', '.join(names)} <==\n"


class _Output:
    """What is written for one text.

    This is `before`, which holds the prompt, and the continuation; of an `answer`, the layout's first space
    is left out. If `place` is given, it is lines of JSON that begin with it.
    """

    def __init__(
        self, tokenizer: "Tokenizer", before: str, *, answer: bool, place: dict[str, int] | None
    ) -> None:
        self._tokenizer, self._before, self._space, self._place = tokenizer, before, answer, place

    def shown(self, piece: "Piece") -> str:
        """What is written of a piece; the last one ends the line."""
        if self._place is None:
            return self._text(piece.text) + ("\n" if piece.new is None else "")
        if piece.new is None or piece.new.written is None:
            return ""
        new, token = piece.new, piece.new.written
        line: dict[str, Any] = self._place | {"token": token, "text": self._tokenizer.decode([token])}
        line |= {"logprob": new.logprob, "alternatives": new.alternatives}
        return json.dumps(line, ensure_ascii=False) + "\n"

    def _text(self, piece: str) -> str:
        if self._space and piece:
            piece, self._space = piece.removeprefix(" "), False
        before, self._before = self._before, ""
        return before + piece
