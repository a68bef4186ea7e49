"""`jaxgpt generate`: a trained model continues a text."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxgpt.errors import ConfigError
from jaxgpt.verbs.decoders import Decoder, DecoderFlags

if TYPE_CHECKING:
    from jaxgpt.inference.requests import NewToken, Request
    from jaxgpt.inference.sampling import Sampling
    from jaxgpt.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How tokens are drawn: the flags that `generate` and `chat` share."""

    max_new_tokens: int = 100
    """Tokens written at most; the model may end its text earlier."""
    temperature: float = 0.8
    """Below 1 bolder, above 1 wilder; 0 is greedy: always the most probable token."""
    top_k: int = 50
    """Draw from the k most probable tokens only; 0 keeps all."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this much probability only; 1 keeps all."""
    min_p: float = 0.0
    """Draw from tokens with at least this share of the most probable one's probability only; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that stand in the text already become less probable, prompt included; 1 does nothing."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens already written, prompt not included."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it has been written."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End before this string; may be given several times."""
    seed: int = 0
    """The same seed gives the same text."""

    def sampling(self) -> "Sampling":
        """These settings for the engine. Raises ConfigError for what cannot be."""
        from jaxgpt.inference.sampling import Sampling

        if self.max_new_tokens < 0:
            raise ConfigError(
                f"max_new_tokens = {self.max_new_tokens}", why="it must be 0 or more", fix="change it"
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(
                f"seed = {self.seed}", why="it must be a 32-bit unsigned integer", fix="change it"
            )
        return Sampling(**{name: getattr(self, name) for name in Sampling.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class GenerateArgs(SamplingFlags, DecoderFlags):
    """Continue each PROMPT and write prompt and continuation to stdout.

    With --instruction or --examples a PROMPT is a query instead, put behind them, and only the answer is written.

    A text longer than the model's context slides: when the window is full, its older half is dropped and the rest is
    read again.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT...")] = field(
        default=("",)
    )
    """Texts to continue; an empty one starts a new text."""
    instruction: str = ""
    """What to do with the query, said before it."""
    examples: Path | None = None
    """Worked examples, put before the query: a JSONL file, a line {"input": "2 + 2", "output": "4"} each."""
    logprobs: int | None = None
    """Write JSON lines instead of text, one a token: prompt (its number, from 0), token (its id), text (the token's
    own), logprob (nats, under the model itself) and as many alternatives [id, logprob], 0 to 20. The tokens of a stop
    string are among them."""
    stream: bool = True
    """Write text as it comes; without, all prompts are continued together, which is faster for all but tiny models."""


def run(args: GenerateArgs) -> None:
    """Write the texts. What cannot be run is refused before anything is written."""
    from jaxgpt.display import note, write_text
    from jaxgpt.inference.prompts import FEW_SHOT_STOP, few_shot_prompt, read_examples
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
                f"a prompt of {len(request.prompt)} tokens: only the last {lm.config.context}, the context, are read"
            )
    slots = 1 if args.stream else min(MOST_SLOTS, 1 << (len(prompts) - 1).bit_length())
    written: list[_Output] = [
        _Output(
            tokenizer, stop, prompt=None if asks else prompt, lines=None if args.logprobs is None else number
        )
        for number, prompt in enumerate(prompts)
    ]
    with args.decoder(lm, requests, slots=slots) as decoder:
        if args.stream:
            for request, output in zip(requests, written, strict=True):
                for _, piece in _pieces(decoder, [request], [output]):
                    write_text(piece)
        else:
            wholes = [""] * len(prompts)
            for place, piece in _pieces(decoder, requests, written):
                wholes[place] += piece
            write_text("".join(wholes))


def _pieces(
    decoder: Decoder, requests: "Sequence[Request]", outputs: "Sequence[_Output]"
) -> Iterator[tuple[int, str]]:
    """What is to be written for these requests, as it comes, with each one's place in the list."""
    for place, new in decoder.run(requests):
        yield place, outputs[place].take(new)
        if outputs[place].stopped:
            decoder.cancel(new.request)
    for place, output in enumerate(outputs):
        yield place, output.end()


class _Output:
    """What is written for one prompt: its text and the continuation (None: an answer alone), or lines of its number."""

    def __init__(
        self, tokenizer: "Tokenizer", stop: "Sequence[str]", *, prompt: str | None, lines: int | None
    ) -> None:
        from jaxgpt.inference.text_stream import TextStream

        self._tokenizer, self._stream, self._lines = tokenizer, TextStream(tokenizer, stop), lines
        self._before, self._space = (
            prompt or "",
            prompt is None,
        )  # an answer's first space belongs to the layout

    @property
    def stopped(self) -> bool:
        return self._stream.stopped

    def take(self, new: "NewToken") -> str:
        """What one event adds; nothing once a stop string has come."""
        if self.stopped:
            return ""
        piece = self._stream.push(new.token) if new.token is not None else ""
        if self._lines is None:
            return self._shown(piece)
        if new.token is None:
            return ""
        line = {"prompt": self._lines, "token": new.token, "text": self._tokenizer.decode([new.token])}
        line |= {"logprob": new.logprob, "alternatives": new.alternatives}
        return json.dumps(line, ensure_ascii=False) + "\n"

    def end(self) -> str:
        """What was held back, and the end of the line."""
        return self._shown(self._stream.finish()) + "\n" if self._lines is None else ""

    def _shown(self, piece: str) -> str:
        if self._space and piece:
            piece, self._space = piece.removeprefix(" "), False
        before, self._before = self._before, ""
        return before + piece
