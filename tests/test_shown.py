"""The texts of a batch, token by token, against rows written by hand."""

import numpy as np

from jaxgpt.text.batch import shifted
from jaxgpt.text.examples import Example, packed, padded
from jaxgpt.text.shown import Shown, shown_texts, token_texts
from jaxgpt.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("bytes")


def losses(shape: tuple[int, int]) -> np.ndarray:
    """The loss at row r and column c is 100 r + c."""
    return (100 * np.arange(shape[0])[:, None] + np.arange(shape[1])).astype(np.float32)


def test_the_first_token_of_a_window_is_not_scored_and_each_other_has_the_loss_of_its_prediction() -> None:
    batch = shifted(np.array([[*b"abcd"], [*b"efgh"]], np.int32))
    first, second = shown_texts(batch, losses((2, 3)), BYTES)
    assert first == Shown("row 1", [("a", None), ("b", 0.0), ("c", 1.0), ("d", 2.0)], 1.0)
    assert second == Shown("row 2", [("e", None), ("f", 100.0), ("g", 101.0), ("h", 102.0)], 101.0)


def test_padding_is_left_out_and_what_is_not_scored_has_no_loss() -> None:
    batch = padded(
        [Example(list(b"Q:x"), start=2), Example(list(b"abcde"), start=1, gaps=[(3, 4)])], 6, rows=3
    )
    first, second = shown_texts(batch, losses((3, 6)), BYTES)
    assert first == Shown("row 1", [("Q", None), (":", None), ("x", 1.0)], 1.0)
    assert second.tokens == [("a", None), ("b", 100.0), ("c", 101.0), ("d", None), ("e", 103.0)]


def test_each_text_of_a_packed_row_stands_alone() -> None:
    batch = packed([Example(list(b"abc"), start=1), Example(list(b"xyz!"), start=2)], 8)
    first, second = shown_texts(batch, losses((1, 8)), BYTES)
    assert first == Shown("row 1, text 1", [("a", None), ("b", 0.0), ("c", 1.0)], 0.5)
    assert second == Shown("row 1, text 2", [("x", None), ("y", None), ("z", 3.0), ("!", 4.0)], 3.5)


def test_a_part_of_a_character_is_shown_as_its_bytes() -> None:
    assert token_texts([*"é".encode(), ord("e")], BYTES) == ["\\xc3", "\\xa9", "e"]
    gpt2 = load_tokenizer("gpt2")
    assert token_texts(gpt2.encode("né, 好"), gpt2) == ["n", "é", ",", " \\xe5", "\\xa5", "\\xbd"]
