"""Token ids become text piece by piece, never in half characters and never beyond a stop string."""

import codecs
from collections.abc import Sequence

from jaxgpt.text.tokenizer import Tokenizer


class TextStream:
    """Turns ids into text as they come, and ends the text before the first stop string.

    The bytes of an unfinished UTF-8 character are held back until the rest comes. So is text that may be the
    beginning of a stop string: a stop string can begin and end inside a token.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False
        """Whether a stop string has come. There is then no more text."""

    def push(self, token: int) -> str:
        """Return the text that one more token makes certain. It may be empty."""
        return self._add(self._decoder.decode(self._tokenizer.decode_bytes([token])), last=False)

    def finish(self) -> str:
        """Return the text that is still held back."""
        return self._add(self._decoder.decode(b"", final=True), last=True)

    def _add(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        held = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    return next(
        (size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0
    )
