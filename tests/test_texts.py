"""The loop from tokens to text: pieces as they come, ends at stop strings, and nothing left running."""

from collections.abc import Generator, Sequence
from contextlib import closing

import pytest

from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import NewToken, Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.texts import Piece, pieces_of, texts_of
from jaxgpt.language_model import LanguageModel
from jaxgpt.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("bytes")


class Scripted:
    """A decoder that writes given texts, a byte of each in turn, whatever it is asked."""

    def __init__(self, *texts: str, end: bool = False) -> None:
        self.ids = [[*text.encode(), *[BYTES.end_of_text] * end] for text in texts]
        self.cancelled: list[int] = []
        self.closed = False

    def run(self, requests: Sequence[Request]) -> Generator[tuple[int, NewToken], None, None]:
        try:
            for step in range(max(map(len, self.ids))):
                for place, ids in enumerate(self.ids):
                    if step < len(ids) and 100 + place not in self.cancelled:
                        finish = "end" if ids[step] == BYTES.end_of_text else None
                        yield place, NewToken(100 + place, ids[step], None, (), finish)
        finally:
            self.closed = True

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)


def requests(count: int) -> list[Request]:
    return [Request(prompt=(97, 98), max_new_tokens=20, sampling=Sampling(temperature=0))] * count


def test_each_text_comes_in_pieces_with_its_place_and_one_last_piece() -> None:
    pieces = list(pieces_of(Scripted("aé", "xyz"), requests(2), BYTES))
    assert [(piece.place, piece.text) for piece in pieces] == [
        *[(0, "a"), (1, "x"), (0, ""), (1, "y"), (0, "é"), (1, "z")],
        *[(0, ""), (1, "")],
    ]
    assert [piece.new is None for piece in pieces] == [False] * 6 + [True] * 2


def test_a_text_ends_before_its_stop_string_and_its_request_is_cancelled() -> None:
    """The token that completes the stop string is told of; nothing after it is."""
    decoder = Scripted("one. two", "no stop here")
    pieces = list(pieces_of(decoder, requests(2), BYTES, [". "]))
    assert "".join(piece.text for piece in pieces if piece.place == 0) == "one"
    assert "".join(piece.text for piece in pieces if piece.place == 1) == "no stop here"
    assert decoder.cancelled == [100]
    assert [piece.new.token for piece in pieces if piece.place == 0 and piece.new] == list(b"one. ")


def test_tokens_made_in_the_same_step_behind_a_stop_string_are_passed_over() -> None:
    class Hasty(Scripted):
        def cancel(self, number: int) -> None:
            """What is made already still comes."""

    pieces = list(pieces_of(Hasty("a.bc"), requests(1), BYTES, ["."]))
    assert [piece.text for piece in pieces] == ["a", "", ""]


def test_what_may_begin_a_stop_string_comes_with_the_last_piece() -> None:
    assert list(pieces_of(Scripted("ab"), requests(1), BYTES, ["bc"]))[-1] == Piece(0, "b", None)


def test_the_token_that_ends_a_text_is_told_of_and_has_no_text() -> None:
    pieces = list(pieces_of(Scripted("ab", end=True), requests(1), BYTES))
    assert [piece.text for piece in pieces] == ["a", "b", "", ""]
    assert pieces[2].new is not None and pieces[2].new.token == BYTES.end_of_text
    assert texts_of(Scripted("ab", "", end=True), requests(2), BYTES) == ["ab", ""]


def test_it_is_told_how_many_texts_have_begun() -> None:
    told: list[tuple[int, int]] = []
    texts = texts_of(Scripted("abc", "", "d"), requests(3), BYTES, show=lambda *counts: told.append(counts))
    assert texts == ["abc", "", "d"]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)], (
        "the one in the middle begins and ends with its last piece"
    )


def test_closing_the_pieces_ends_what_runs() -> None:
    decoder = Scripted("abc")
    with closing(pieces_of(decoder, requests(1), BYTES)) as pieces:
        assert next(pieces).text == "a"
        assert not decoder.closed
    assert decoder.closed


@pytest.mark.parametrize("steps", [1, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_an_engine_is_free_after_its_texts_however_they_ended(lm: LanguageModel, steps: int) -> None:
    engine = Engine(lm.served, slots=2, ends={256}, steps=steps)
    whole, same = texts_of(engine, requests(2), BYTES)
    assert whole == same == lm.generate(["ab"], max_new_tokens=20, temperature=0)[0]
    assert not engine.busy
    stop = whole[5:7]
    assert texts_of(engine, requests(2), BYTES, [stop]) == [whole[: whole.index(stop)]] * 2
    assert not engine.busy
    with closing(pieces_of(engine, requests(2), BYTES)) as pieces:
        said = [next(pieces) for _ in range(3)]
    assert whole.startswith("".join(piece.text for piece in said if piece.place == 0)) and not engine.busy
