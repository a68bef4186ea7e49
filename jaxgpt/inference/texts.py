"""The one loop that runs requests, turns their tokens into text, and ends them at a stop string."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import NamedTuple

from jaxgpt.inference.requests import Decoder, NewToken, Request
from jaxgpt.inference.text_stream import TextStream
from jaxgpt.text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """The next part of a text."""

    place: int
    """Which request it belongs to, counted from 0."""
    text: str
    """What has become certain; often nothing yet."""
    new: NewToken | None
    """The news that it came with. None for the last piece of a text, which has what was held back."""


def pieces_of(
    decoder: Decoder, requests: Sequence[Request], tokenizer: Tokenizer, stop: Sequence[str] = ()
) -> Generator[Piece, None, None]:
    """The texts that continue some prompts, piece by piece as they come; at the end, one last piece of each.

    A text ends before the first of the `stop` strings, where the model ends it, or with its last token. The
    token that completes a stop string is the last that is told of. Closing the generator cancels what has not
    ended.
    """
    streams = [TextStream(tokenizer, stop) for _ in requests]
    with closing(decoder.run(requests)) as news:
        for place, new in news:
            stream = streams[place]
            if stream.stopped:
                continue  # made in the same step as the token that completed the stop string
            yield Piece(place, "" if new.written is None else stream.push(new.written), new)
            if stream.stopped:
                decoder.cancel(new.request)
    for place, stream in enumerate(streams):
        yield Piece(place, stream.finish(), None)


def texts_of(
    decoder: Decoder,
    requests: Sequence[Request],
    tokenizer: Tokenizer,
    stop: Sequence[str] = (),
    *,
    show: Callable[[int, int], None] = lambda *_: None,
) -> list[str]:
    """The whole texts that continue some prompts, without the prompts; see `pieces_of`.

    `show` is called with how many of the texts have begun and how many there are.
    """
    texts: list[str | None] = [None for _ in requests]
    begun = 0
    for piece in pieces_of(decoder, requests, tokenizer, stop):
        before = texts[piece.place]
        if before is None:
            show(begun, len(texts))
            begun += 1
        texts[piece.place] = (before or "") + piece.text
    show(len(texts), len(texts))
    return [text or "" for text in texts]
