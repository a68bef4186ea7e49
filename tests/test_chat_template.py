"""Chat templates: the text that transformers makes, where a template stands, and what a bad one can do."""

import dataclasses
import gc
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import jaxgpt
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.files import write_files
from jaxgpt.inference.templates import Own
from jaxgpt.text import chat_template
from jaxgpt.text.chat_template import ChatTemplate, read_template, template_files, templates_in
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.weights.convert import FORMATS, write_model
from jaxgpt.weights.open import open_model

GOLDEN = Path(__file__).parent / "golden"
TABLE = json.loads((GOLDEN / "chat_templates.json").read_text("utf-8"))
NAMES = list(TABLE["templates"])
TURN = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_has_the_text_and_the_ids_that_transformers_gives_it(name: str) -> None:
    cases = [case for case in TABLE["cases"] if case["template"] == name]
    assert len(cases) == 5
    tokenizer = load_tokenizer(GOLDEN / "tokenizers" / cases[0]["tokenizer"])
    template = ChatTemplate(TABLE["templates"][name], tokenizer.special_tokens)
    for case in cases:
        messages = [{"role": role, "content": content} for role, content in case["messages"]]
        if "refused" in case:
            with pytest.raises(ConfigError) as caught:
                template.render(messages, answering=case["answering"])
            assert f"refuses these messages: {case['refused']};" in str(caught.value)
            continue
        assert template.render(messages, answering=case["answering"]) == case["text"]
        if case["answering"]:
            turns = [(role, content) for role, content in case["messages"]]
            assert Own(tokenizer, template).ids(turns) == case["ids"]


def test_the_golden_file_has_sixty_conversations_and_some_are_refused() -> None:
    assert len(TABLE["cases"]) == 60 and sum("refused" in case for case in TABLE["cases"]) == 4


def test_special_tokens_are_ids_where_the_template_writes_them_and_text_where_a_person_does() -> None:
    tokenizer = load_tokenizer("bytes")
    template = ChatTemplate(
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", {"eos_token": END}
    )
    ids = Own(tokenizer, template).ids([("user", f"a{END}"), ("user", "\ufdd0b")])
    assert ids == [*b"a<|endoftext|>", 256, *"\ufdd0b".encode(), 256]
    with pytest.raises(ConfigError, match="noncharacter"):
        Own(tokenizer, template).ids([("user", "".join(map(chr, range(0xFDD0, 0xFDF0))))])


END = "<|endoftext|>"


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ("{% if %}", DataError, "not a chat template: line 1: Expected an expression"),
        ("a\n{{ x | nothing }}", DataError, "not a chat template: line 2: No filter named 'nothing'"),
        ("{{ messages[3].role }}", DataError, "the chat template fails: list object has no element 3"),
        ("{{ 1 + 'a' }}", DataError, "the chat template fails: TypeError: unsupported operand"),
        (
            "{{ ''.__class__.__mro__ }}",
            DataError,
            "fails: access to attribute '__class__' of 'str' object is",
        ),
        ("{{ messages.append(1) }}", DataError, "fails: <.*> is not safely callable|is unsafe"),
        ("{% include '/etc/passwd' %}", DataError, "fails: TypeError: no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DataError, "fails: RecursionError"),
        (
            "{{ raise_exception('only\ntwo roles') }}",
            ConfigError,
            "refuses these messages: only\ntwo roles; ch",
        ),
        ("{{ raise_exception('') }}", ConfigError, "refuses these messages: it gives no reason; change"),
        ("{{ 'a' * 4194305 }}", DataError, "makes too much: its text has more than 4,194,304 characters"),
        ("{{ ('a' * 10 ** 12) | length }}", DataError, "makes too much: it needs more than 1,024 MiB of mem"),
    ],
)
def test_what_is_wrong_with_a_template_is_said_in_a_sentence(source: str, kind: Any, said: str) -> None:
    template = ChatTemplate(source, {})
    for _ in range(2):  # the process goes on, or is started again
        with pytest.raises(kind, match=said):
            template.render(TURN)


def test_a_template_without_end_is_ended_and_the_next_text_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 1)
    loop = "{% for b in range(99999) %}"
    loops = "{% for a in range(99999) if messages | length > 1 %}" + loop + "{% endfor %}" * 2
    template = ChatTemplate(loops + "ok", {})
    assert template.render(TURN) == "ok"
    start = time.monotonic()
    with pytest.raises(
        DataError, match=r"makes too much: it took more than 1 seconds, or far more than 1,024"
    ):
        template.render(TURN * 2)
    assert 1 <= time.monotonic() - start < 20
    assert template.render(TURN) == "ok"


def test_its_process_ends_with_it() -> None:
    template = ChatTemplate("a", {})
    assert template.render(TURN) == "a"
    process = template._process
    assert process.poll() is None
    del template
    gc.collect()
    assert process.poll() is not None


# --- where a template stands


def test_a_folder_states_its_templates_in_files_or_in_its_settings(tmp_path: Path) -> None:
    assert templates_in(tmp_path) == {}
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"eos_token": "x"}')
    assert templates_in(tmp_path) == {}
    settings.write_text('{"chat_template": "one\u00e9"}', "utf-8")
    assert templates_in(tmp_path) == {"default": "one\u00e9"}
    several = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]
    settings.write_text(json.dumps({"chat_template": several}))
    assert templates_in(tmp_path) == {"default": "two", "tool_use": "three"}
    (tmp_path / "chat_template.jinja").write_bytes(b"four\r\n")
    assert templates_in(tmp_path) == {"default": "four\n"}
    write_files(tmp_path / "new", template_files({"default": "a", "rag": "b\n"}))
    assert templates_in(tmp_path / "new") == {"default": "a", "rag": "b\n"}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"chat_template": 5}',
        '{"chat_template": [{"name": "../up", "template": "a"}]}',
        '{"chat_template": [{"name": "default"}]}',
        '{"chat_template": [{"name": "default", "template": []}]}',
    ],
)
def test_what_is_no_template_is_refused_with_its_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(DataError, match=r"not a chat template .*tokenizer_config.json"):
        templates_in(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff", "not UTF-8"), (b" " * (1 << 20) + b"x", "1,048,577 b")]
)
def test_a_file_that_is_no_text_or_too_long_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(DataError, match=said):
        templates_in(tmp_path)
    with pytest.raises(DataError, match=said):
        read_template(tmp_path / "chat_template.jinja")


@pytest.mark.parametrize("to", FORMATS)
def test_conversions_take_the_templates_along(lm_folder: Path, tmp_path: Path, to: str) -> None:
    folder = Path(shutil.copytree(lm_folder, tmp_path / "given"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    several = {"default": "{{ bos_token }}\u00e9", "tool_use": "two"}
    settings["chat_template"] = [{"name": name, "template": text} for name, text in several.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    write_model(open_model(folder), tmp_path / to, to)
    assert open_model(tmp_path / to).templates == several
    jaxgpt.load(tmp_path / to).save(tmp_path / "back")
    model = jaxgpt.load(tmp_path / "back")
    assert model.templates == several and model.chat_template is not None
    assert model.chat_template.render(TURN) == END + "\u00e9"
    assert dataclasses.replace(model, templates={}).chat_template is None


def test_a_template_that_cannot_be_read_leaves_the_model_without_one_and_is_said(
    lm_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(lm_folder, tmp_path / "given"))
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    model = open_model(folder)
    assert model.templates == {} and model.tokenizer is not None
    (note,) = model.notes
    assert note.startswith(
        "the model is used without a chat template, because we cannot read its own: not a chat"
    )


def test_a_pad_that_is_the_end_stays_a_name_of_the_template(lm_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(lm_folder, tmp_path / "given"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"pad_token": END, "chat_template": "{{ pad_token }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    jaxgpt.load(folder).save(tmp_path / "back")
    template = jaxgpt.load(tmp_path / "back").chat_template
    assert template is not None and template.render(TURN) == END
