"""Prompts have the layout they say, and answers end where the next block would begin."""

import json
from pathlib import Path

import pytest

from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.inference.prompts import (
    CHAT_STOP,
    FEW_SHOT_STOP,
    chat_prompt,
    few_shot_prompt,
    instruction_prompt,
    read_examples,
)
from jaxgpt.inference.text_stream import TextStream
from jaxgpt.text.tokenizer_files import load_tokenizer

PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)


def up_to_stop(text: str, stop: tuple[str, ...]) -> str:
    tokenizer = load_tokenizer("bytes")
    stream = TextStream(tokenizer, stop)
    return "".join(stream.push(token) for token in tokenizer.encode(text)) + stream.finish()


def test_a_few_shot_prompt_is_instruction_examples_and_query_in_blocks() -> None:
    examples = [("2 + 2", "4"), (" 3 + 2\n", " 5 ")]
    assert few_shot_prompt("1 + 1", instruction="Add. ", examples=examples) == (
        "Add.\n\nInput: 2 + 2\nOutput: 4\n\nInput: 3 + 2\nOutput: 5\n\nInput: 1 + 1\nOutput:"
    )


def test_without_examples_and_instruction_the_query_is_alone() -> None:
    assert few_shot_prompt("1 + 1") == "Input: 1 + 1\nOutput:"
    assert few_shot_prompt("") == "Input:\nOutput:"


@pytest.mark.parametrize("answer", ["4", "two\nlines", "ends in newline"])
def test_an_answer_ends_where_the_next_example_begins(answer: str) -> None:
    before = few_shot_prompt("a")
    whole = few_shot_prompt("b", examples=[("a", answer)])
    assert whole.startswith(before)
    assert up_to_stop(whole[len(before) :], FEW_SHOT_STOP) == f" {answer}"


def test_examples_are_read_as_they_stand(tmp_path: Path) -> None:
    """U+2028 ends no line of JSON; a blank line is no example."""
    examples = [("a\u2028b", "é"), ("", "two\nlines")]
    lines = [json.dumps({"input": a, "output": b}, ensure_ascii=False) for a, b in examples]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines) + "\r\n", encoding="utf-8")
    assert read_examples(tmp_path / "a.jsonl") == examples


def test_all_problems_of_a_file_of_examples_are_told_at_once(tmp_path: Path) -> None:
    lines = [
        '{"input": "a", "output": "b"}',
        "[1]",
        '{"input": "a"}',
        '{"input": "a", "output": "b", "c": 1}',
        "{",
        '{"input": 1, "output": null}',
        '{"input": "a", "output": " "}',
        json.dumps({"input": "a", "output": "b\n\nc"}),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_examples(tmp_path / "a.jsonl")
    told = str(caught.value)
    for part in (
        "line 2: expected an object",
        "found a list",
        "line 3:",
        "['input']",
        "line 4:",
        "'c'",
        "line 5: not JSON",
        "line 6: input and output must be strings",
        "line 7: output is empty",
        r"line 8: output contains '\n\n'",
        str(tmp_path / "a.jsonl"),
    ):
        assert part in told
    assert "line 1:" not in told


def test_many_problems_are_counted_not_spelled_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[]\n" * 50)
    with pytest.raises(DataError, match=r"line 20: [^;]*; 30 more") as caught:
        read_examples(tmp_path / "a.jsonl")
    assert "line 21:" not in str(caught.value)


@pytest.mark.parametrize(("content", "why"), [(b"\n", "it has none"), (b"\xff", "not UTF-8")])
def test_a_file_without_examples_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=why):
        read_examples(tmp_path / "a.jsonl")


def test_examples_that_are_not_there_are_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        read_examples(tmp_path / "a.jsonl")


def test_the_instruction_template_is_the_books() -> None:
    assert (
        instruction_prompt("Name a bird.")
        == f"{PREAMBLE}\n\n### Instruction:\nName a bird.\n\n### Response:\n"
    )
    assert instruction_prompt("Translate.", "ja") == (
        f"{PREAMBLE}\n\n### Instruction:\nTranslate.\n\n### Input:\nja\n\n### Response:\n"
    )


def test_a_conversation_of_one_message_is_the_instruction_template() -> None:
    assert chat_prompt([("user", "Name a bird.")]) == instruction_prompt("Name a bird.")


def test_several_system_texts_open_the_conversation_together() -> None:
    one, two = [("system", "A.\n\nB."), ("user", "Hi")], [("system", "A."), ("user", "Hi"), ("system", "B.")]
    assert chat_prompt(two) == chat_prompt(one)


def test_a_system_text_opens_the_conversation() -> None:
    messages = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    assert chat_prompt(messages) == (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.\n\n"
        "### Instruction:\nBye\n\n### Response:\n"
    )


@pytest.mark.parametrize("answer", ["Hello.", "# A heading\n\n### Another\n\ntext", ""])
def test_a_response_ends_where_the_next_turn_begins(answer: str) -> None:
    before = chat_prompt([("user", "Hi")])
    whole = chat_prompt([("user", "Hi"), ("assistant", answer), ("user", "Bye")])
    assert whole.startswith(before)
    assert up_to_stop(whole[len(before) :], CHAT_STOP) == answer


@pytest.mark.parametrize(
    ("messages", "why"),
    [([], "no messages"), ([("user", "a"), ("tool", "b")], "role 'tool'.*one of system, user, assistant")],
)
def test_what_is_no_conversation_is_refused(messages: list[tuple[str, str]], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        chat_prompt(messages)
