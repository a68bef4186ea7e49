"""Streamed text: joined it is the decoded text, and no piece holds half a character."""

from collections.abc import Iterable, Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st

from jaxgpt.inference.text_stream import TextStream
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer

GPT2, BYTES = load_tokenizer("gpt2"), load_tokenizer("bytes")


def text_pieces(tokenizer: Tokenizer, ids: Iterable[int], stop: Sequence[str] = ()) -> Iterator[str]:
    """What a stream gives for ids, without the empty pieces."""
    stream = TextStream(tokenizer, stop)
    yield from filter(None, (stream.push(token) for token in ids))
    yield from filter(None, [stream.finish()])


@given(st.lists(st.integers(0, BYTES.end_of_text)))
def test_pieces_joined_are_the_decoded_text_for_any_bytes(ids: list[int]) -> None:
    assert "".join(text_pieces(BYTES, ids)) == BYTES.decode(ids)


@given(st.lists(st.integers(0, GPT2.end_of_text)))
def test_pieces_joined_are_the_decoded_text_for_any_ids(ids: list[int]) -> None:
    assert "".join(text_pieces(GPT2, ids)) == GPT2.decode(ids)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_no_piece_of_a_text_holds_half_a_character(text: str) -> None:
    for tokenizer in (BYTES, GPT2):
        pieces = list(text_pieces(tokenizer, tokenizer.encode(text)))
        assert "".join(pieces) == text and all(pieces) and "\ufffd" not in "".join(pieces)
    assert list(text_pieces(BYTES, BYTES.encode(text))) == list(text)


def test_a_piece_comes_as_soon_as_its_character_is_whole() -> None:
    seen = []

    def ids():
        for token in "aé".encode():
            seen.append(token)
            yield token

    pieces = text_pieces(BYTES, ids())
    assert next(pieces) == "a" and seen == [0x61]
    assert next(pieces) == "é" and seen == [0x61, 0xC3, 0xA9]


def test_a_text_that_ends_inside_a_character_shows_it() -> None:
    assert list(text_pieces(BYTES, [0x61, 0xF0, 0x9F])) == ["a", "\ufffd"]


def test_a_stop_string_ends_the_text_before_it_wherever_its_tokens_end() -> None:
    tokenizer = load_tokenizer("gpt2")
    text = "One fish.\n\nTwo fish ENDING here"
    for stop, expected in (
        ("\n\n", "One fish."),
        ("fish EN", "One fish.\n\nTwo "),
        ("sh", "One fi"),
        ("xx", text),
    ):
        for ids in (tokenizer.encode(text), [i for c in text for i in tokenizer.encode(c)]):
            assert "".join(text_pieces(tokenizer, ids, [stop])) == expected
    assert (
        "".join(text_pieces(tokenizer, tokenizer.encode(text), ["here", "Two", "fish E"])) == "One fish.\n\n"
    )


def test_text_that_may_begin_a_stop_string_waits_and_comes_if_it_does_not() -> None:
    tokenizer = load_tokenizer("bytes")
    stream = TextStream(tokenizer, ["abc"])
    assert [stream.push(ord(c)) for c in "xaabab"] == ["x", "", "a", "", "ab", ""]
    assert stream.finish() == "ab" and not stream.stopped
    stream = TextStream(tokenizer, ["abc"])
    assert "".join(stream.push(ord(c)) for c in "ababcx") == "ab" and stream.stopped and stream.finish() == ""
