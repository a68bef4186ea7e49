"""Templates as they are trained with: the answer behind the prompt, and the files that tell of a template."""

from pathlib import Path

import pytest

from jaxgpt.errors import DataError
from jaxgpt.inference.prompts import chat_prompt, instruction_prompt
from jaxgpt.inference.templates import ALPACA_SOURCE, NAMES, Own, Template, template_of
from jaxgpt.text.chat_template import ChatTemplate, templates_in
from jaxgpt.text.dialogues import Message
from jaxgpt.text.tokenizer_files import load_tokenizer

BYTES = load_tokenizer("bytes")
TALKS = [
    [("user", "Hi")],
    [("user", "Hi"), ("assistant", "Yo"), ("user", " {{ Why }}\n")],
    [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yo"), ("user", "Why")],
]


def named(name: str) -> Template:
    found = template_of(BYTES, name, "", None)
    assert found is not None
    return found


@pytest.mark.parametrize("talk", TALKS, ids=["one", "three", "system"])
def test_the_instruction_template_writes_the_same_in_jinja(talk: list[tuple[str, str]]) -> None:
    template = Own(BYTES, ChatTemplate(ALPACA_SOURCE, {}))
    assert bytes(template.ids(talk)).decode() == chat_prompt(talk)
    assert bytes(template.answer_ids(talk, "So.")) == b"So."


def test_phi3_is_the_book_s() -> None:
    template = named("phi3")
    assert bytes(template.ids([("user", "Add.\n1, 2")])) == b"<|user|>\nAdd.\n1, 2\n\n<|assistant|>\n"
    assert bytes(template.answer_ids([("user", "Add.")], "3")) == b"3"
    longer = template.ids([("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")])
    assert (
        bytes(longer) == b"<|system|>\nS\n\n<|user|>\na\n\n<|assistant|>\nb\n\n<|user|>\nc\n\n<|assistant|>\n"
    )


def test_an_input_stands_where_the_template_has_it() -> None:
    message = Message("user", "Add.", "1, 2")
    template = named("instruction")
    ids = template.ids([("user", message.said(template.joint))])
    assert bytes(ids).decode() == instruction_prompt("Add.", "1, 2")


@pytest.mark.parametrize("name", NAMES)
def test_the_files_of_a_template_name_it(name: str, tmp_path: Path) -> None:
    template = named(name)
    for file, content in template.files().items():
        (tmp_path / file).write_bytes(content)
    again = template_of(BYTES, "auto", tmp_path, None)
    assert again is not None and (type(again), again.stop) == (type(template), template.stop)
    assert again.ids(TALKS[1]) == template.ids(TALKS[1])
    if name != "plain":  # and another program, which knows no chat.json, finds the same
        other = Own(BYTES, ChatTemplate(templates_in(tmp_path)["default"], {}))
        assert other.ids(TALKS[1]) == template.ids(TALKS[1])


def test_the_end_that_a_template_writes_is_part_of_the_answer() -> None:
    source = (
        "{% for m in messages %}{{ m.role[0] + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    template = Own(BYTES, ChatTemplate(source, {"eos_token": "<|endoftext|>"}))
    assert template.ids([("user", "Hi")]) == [*b"uHi", 256, *b"a"]
    assert template.answer_ids([("user", "Hi")], "<|endoftext|>") == [*b"<|endoftext|>", 256]


def test_a_template_without_room_for_an_answer_cannot_be_trained_with() -> None:
    template = Own(BYTES, ChatTemplate("{{ messages | length }}", {}))
    with pytest.raises(DataError, match="cannot be trained with"):
        template.answer_ids([("user", "Hi")], "Yo")
