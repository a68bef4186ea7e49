"""What a client gets: tokens become pieces of text, and pieces become the JSON of OpenAI's two routes.

The text is cut before a stop string, and the tokens that begin after the cut are left out, too. The token
that ends a text has no text, but it is reported among the log-probabilities, as OpenAI does: a client that
asks for one token gets one. A token that is not made of whole characters is shown by its bytes:
`bytes:\\xe2\\x82`.
"""

import codecs
import json
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxgpt.inference.requests import NewToken
from jaxgpt.inference.text_stream import TextStream
from jaxgpt.serving.call import Call, Prompt
from jaxgpt.text.tokenizer import Tokenizer


class Reported(NamedTuple):
    """A token and what is reported of it."""

    token: int
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...]
    offset: int
    """The number of characters of the choice's text before this token."""


class Piece(NamedTuple):
    """The next part of a choice."""

    text: str
    tokens: tuple[Reported, ...]
    finish: str | None
    """`stop` or `length` in the last piece, None in the others."""


class Choice:
    """One text as it grows: it takes the engine's tokens and gives the part of their text that is certain.

    Its pieces hold the tokens only if `reports` says so: to follow them costs as much as the text itself.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], *, reports: bool) -> None:
        self._tokenizer, self._reports = tokenizer, reports
        self._stream = TextStream(tokenizer, stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: deque[Reported] = deque()
        self._decoded = self._length = 0  # the characters of all tokens, and of the text that was given out
        self.finish: str | None = None
        self.written = 0
        """The number of tokens that were generated."""
        self._logprob = 0.0  # of all of them

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of the tokens that were generated, in nats."""
        return self._logprob / max(1, self.written)

    def echo(self, prompt: Prompt, scores: Sequence[NewToken]) -> Piece:
        """Return the prompt itself, which comes before all else, with the `scores` of its tokens, if any."""
        decoder, offset, tokens = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
        for id, score in zip(prompt.ids, scores, strict=True) if scores else ():
            tokens.append(Reported(id, score.logprob, score.alternatives, offset))
            if prompt.text:  # an empty prompt stands for the end-of-text token, which is not shown
                offset += len(decoder.decode(self._tokenizer.decode_bytes([id])))
        self._decoded = self._length = len(prompt.text)
        return Piece(prompt.text, tuple(tokens), None)

    def add(self, news: Sequence[NewToken]) -> Piece:
        """Return the part of the text that these tokens make certain. Tokens after the end are ignored."""
        text = ""
        for new in news:
            if self.finish:
                break
            text += self._take(new)
        self._length += len(text)
        ready = []
        while self._held and (
            self._held[0].offset < self._length or (self.finish and not self._stream.stopped)
        ):
            ready.append(self._held.popleft())
        return Piece(text, tuple(ready), self.finish)

    def _take(self, new: NewToken) -> str:
        text = ""
        if new.token is not None:
            self.written += 1
            self._logprob += new.logprob or 0.0
            if self._reports:
                self._held.append(Reported(new.token, new.logprob, new.alternatives, self._decoded))
            if new.finish != "end":
                if self._reports:
                    self._decoded += len(self._decoder.decode(self._tokenizer.decode_bytes([new.token])))
                text = self._stream.push(new.token)
        if new.finish and not self._stream.stopped:
            text += self._stream.finish()
            self.finish = "length" if new.finish == "length" else "stop"
        if self._stream.stopped:
            self.finish = "stop"
        return text


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as a string: its text, or its bytes if they are not whole characters."""
    content = tokenizer.decode_bytes([token])
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


@dataclass(frozen=True)
class Answer:
    """The JSON of the answer to one call, whole or in chunks."""

    call: Call
    model: str
    tokenizer: Tokenizer
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def choices(self) -> list[Choice]:
        """Return the texts of this answer, in which nothing is written yet."""
        count = len(self.call.prompts) * self.call.best_of
        reports = self.call.logprobs is not None
        return [Choice(self.tokenizer, self.call.stop, reports=reports) for _ in range(count)]

    def best(self, choices: Sequence[Choice]) -> list[int]:
        """Return which choices are in the answer: of each prompt, those whose tokens are most probable."""
        best_of, found = self.call.best_of, list[int]()
        if best_of == self.call.n:
            return list(range(len(choices)))
        for first in range(0, len(choices), best_of):
            places = range(first, first + best_of)
            found += sorted(places, key=lambda place: choices[place].mean_logprob, reverse=True)[
                : self.call.n
            ]
        return found

    def whole(self, pieces: list[list[Piece]], written: int) -> list[bytes]:
        """Return the JSON of the whole answer in parts, from the pieces of each choice and the number of new
        tokens.

        `pieces` is used up, so that what was written does not take memory twice.
        """
        kind = "chat.completion" if self.call.chat else "text_completion"
        parts = [json.dumps(self._envelope(kind)).encode()[:-1] + b', "choices": [']
        for index in range(len(pieces)):
            parts.append(b", " * (index > 0) + json.dumps(self._choice(index, pieces[index])).encode())
            pieces[index] = []
        return [*parts, b'], "usage": ' + json.dumps(self._usage(written)).encode() + b"}"]

    def _choice(self, index: int, parts: Sequence[Piece]) -> dict[str, Any]:
        text = "".join(part.text for part in parts)
        tokens, finish = [token for part in parts for token in part.tokens], parts[-1].finish
        if self.call.chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            return {"index": index, "message": message, **self._end(tokens, finish)}
        return {"index": index, "text": text, **self._end(tokens, finish)}

    def opening(self, index: int) -> dict[str, Any]:
        """Return the first chunk of a choice in a chat."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return the chunk of the next part of a choice."""
        text: dict[str, Any] = {"text": piece.text}
        if self.call.chat:
            text = {"delta": {"content": piece.text} if piece.text else {}}
        return self._chunk([{"index": index, **text, **self._end(piece.tokens, piece.finish)}])

    def closing(self, written: int) -> dict[str, Any]:
        """Return the last chunk, which states the usage."""
        return self._chunk([]) | {"usage": self._usage(written)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self.call.usage else {}
        kind = "chat.completion.chunk" if self.call.chat else "text_completion"
        return self._envelope(kind) | {"choices": choices} | usage

    def _envelope(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl-" if self.call.chat else "cmpl-"
        return {"id": prefix + self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self, written: int) -> dict[str, int]:
        read = sum(len(prompt.ids) for prompt in self.call.prompts)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _end(self, tokens: Sequence[Reported], finish: str | None) -> dict[str, Any]:
        logprobs = None
        if self.call.logprobs is not None:
            logprobs = self._chat_logprobs(tokens) if self.call.chat else self._logprobs(tokens)
        return {"logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[Reported]) -> dict[str, Any]:
        names = [token_name(self.tokenizer, each.token) for each in tokens]
        tops: list[dict[str, float] | None] = []
        for each in tokens:  # the chosen token is always listed beside its alternatives
            if each.logprob is None:
                tops.append(None)
                continue
            top: dict[str, float] = {}
            for token, logprob in (*each.alternatives, (each.token, each.logprob)):
                top.setdefault(token_name(self.tokenizer, token), logprob)
            tops.append(top)
        return {
            "tokens": names,
            "token_logprobs": [each.logprob for each in tokens],
            "top_logprobs": tops,
            "text_offset": [each.offset for each in tokens],
        }

    def _chat_logprobs(self, tokens: Sequence[Reported]) -> dict[str, Any]:
        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            name, content = token_name(self.tokenizer, token), self.tokenizer.decode_bytes([token])
            return {"token": name, "logprob": logprob, "bytes": list(content)}

        content = [
            entry(each.token, each.logprob) | {"top_logprobs": [entry(*pair) for pair in each.alternatives]}
            for each in tokens
        ]
        return {"content": content, "refusal": None}
