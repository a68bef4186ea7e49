"""Text from a stream of token ids, piece by piece, never with half a character."""

import codecs
from collections.abc import Iterable, Iterator

from jaxgpt.text.tokenizer import Tokenizer


def text_pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids as they come; bytes of an unfinished UTF-8 character wait for the rest.

    Joined, the pieces are `tokenizer.decode(ids)`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        if piece := decoder.decode(tokenizer.decode_bytes([token])):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest
