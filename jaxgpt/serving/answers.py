"""What a client gets: tokens become pieces of text, and pieces the JSON of OpenAI's two routes.

Text is cut before a stop string, and with it the tokens that begin behind the cut. The token that ends a text is
reported among the log-probabilities, without text, as OpenAI does: who asks for one token gets one. Tokens that are not
whole characters are shown as `bytes:\\xe2\\x82`.
"""

import codecs
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxgpt.inference.requests import NewToken
from jaxgpt.inference.text_stream import TextStream
from jaxgpt.serving.api import Call, Prompt
from jaxgpt.text.tokenizer import Tokenizer


class Reported(NamedTuple):
    """A token with what is said of it."""

    token: int
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...]
    offset: int
    """Characters of the choice's text in front of it."""


class Piece(NamedTuple):
    """The next part of a choice."""

    text: str
    tokens: tuple[Reported, ...]
    finish: str | None
    """`stop` or `length` with the last piece."""


class Choice:
    """One text as it grows: takes the engine's tokens, gives what is certain of their text."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stream, self._decoder = (
            TextStream(tokenizer, stop),
            codecs.getincrementaldecoder("utf-8")("replace"),
        )
        self._held: deque[Reported] = deque()
        self._decoded = self._length = 0  # characters of all tokens, and of what was given out
        self.finish: str | None = None
        self.written = 0
        """Tokens made."""

    def echo(self, prompt: Prompt, scores: Sequence[NewToken]) -> Piece:
        """The prompt itself, first of all; `scores` of its tokens where they were asked for."""
        decoder, offset, tokens = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
        for score in scores:
            assert score.token is not None
            tokens.append(Reported(score.token, score.logprob, score.alternatives, offset))
            if prompt.text:  # an empty prompt is the end of the text before, which is not shown
                offset += len(decoder.decode(self._tokenizer.decode_bytes([score.token])))
        self._decoded = self._length = len(prompt.text)
        return Piece(prompt.text, tuple(tokens), None)

    def add(self, news: Sequence[NewToken]) -> Piece:
        """The part that these tokens make certain. What comes behind the end is passed over."""
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
            self._held.append(Reported(new.token, new.logprob, new.alternatives, self._decoded))
            if new.finish != "end":
                self._decoded += len(self._decoder.decode(self._tokenizer.decode_bytes([new.token])))
                text = self._stream.push(new.token)
        if new.finish and not self._stream.stopped:
            text += self._stream.finish()
            self.finish = "length" if new.finish == "length" else "stop"
        if self._stream.stopped:
            self.finish = "stop"
        return text


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """A token as a string: its text, or its bytes where they are not whole characters."""
    content = tokenizer.decode_bytes([token])
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


@dataclass(frozen=True)
class Answer:
    """The JSON of one answer, whole or in chunks."""

    call: Call
    model: str
    tokenizer: Tokenizer
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def choices(self) -> list[Choice]:
        """The texts of this answer, nothing written yet."""
        return [Choice(self.tokenizer, self.call.stop) for _ in range(len(self.call.prompts) * self.call.n)]

    def whole(self, pieces: Sequence[Sequence[Piece]], written: int) -> dict[str, Any]:
        """The answer in one, from the pieces of each choice and the number of new tokens."""
        choices = []
        for index, parts in enumerate(pieces):
            text = "".join(part.text for part in parts)
            tokens, finish = [token for part in parts for token in part.tokens], parts[-1].finish
            if self.call.chat:
                message = {"role": "assistant", "content": text, "refusal": None}
                choices.append({"index": index, "message": message, **self._end(tokens, finish)})
            else:
                choices.append({"index": index, "text": text, **self._end(tokens, finish)})
        return self._envelope("chat.completion" if self.call.chat else "text_completion") | {
            "choices": choices,
            "usage": self._usage(written),
        }

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice of a chat."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """The next part of a choice."""
        text: dict[str, Any] = {"text": piece.text}
        if self.call.chat:
            text = {"delta": {"content": piece.text} if piece.text else {}}
        return self._chunk([{"index": index, **text, **self._end(piece.tokens, piece.finish)}])

    def closing(self, written: int) -> dict[str, Any]:
        """The chunk with the usage."""
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
        for each in tokens:  # the token itself is always among its alternatives
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
