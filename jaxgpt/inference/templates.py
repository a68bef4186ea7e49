"""How a conversation becomes a prompt: the model's own chat template, the book's, or one growing text."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference.prompts import CHAT_STOP, chat_prompt
from jaxgpt.text.chat_template import ChatTemplate, read_template
from jaxgpt.text.tokenizer import Tokenizer

CHAT_FILE = (
    "chat.json"  # a file beside a model's weights; {"chat": "instruction"} says how the model was tuned
)
AUTO, INSTRUCTION, PLAIN = "auto", "instruction", "plain"
Message = tuple[str, str]  # who speaks (system, user or assistant), and what is said


class Template(Protocol):
    """Makes a prompt of a conversation, up to the next answer."""

    name: str
    """What a person calls it."""
    stop: tuple[str, ...]
    """The strings that end an answer."""

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids to continue. Raises ConfigError for messages that the template cannot have."""

    def remembered(self, answer: str) -> str:
        """Return an answer as it stands in the prompts that come after it."""


class Instruction:
    """The template of `chat_prompt`, for models that were tuned with it."""

    name = "instruction template"
    stop: tuple[str, ...] = CHAT_STOP

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the template's text."""
        return self._tokenizer.encode(chat_prompt(messages))

    def remembered(self, answer: str) -> str:
        """Return the answer without white space around it."""
        return answer.strip()


class Plain:
    """One growing text, for models that were not tuned: what is said is appended exactly as it is."""

    name = "plain template"
    stop: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the text."""
        return self._tokenizer.prompt_ids("".join(content for _, content in messages))

    def remembered(self, answer: str) -> str:
        """Return the answer as it is."""
        return answer


class Own:
    """The model's own template, or one from a file.

    The special tokens that the template writes become their ids; where a person writes the same characters,
    they stay characters, so that nobody can end a message in the middle.
    """

    stop: tuple[str, ...] = ()

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, name: str = "own template") -> None:
        self._tokenizer, self._template, self.name = tokenizer, template, name
        longest_first = sorted(tokenizer.special_ids, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the template's text. Raises what `ChatTemplate.render` raises."""
        mark = _unused([content for _, content in messages])
        safe = [{"role": role, "content": self._apart(content, mark)} for role, content in messages]
        text, ids, start = self._template.render(safe), list[int](), 0
        for found in self._special.finditer(text):
            ids += self._tokenizer.encode(text[start : found.start()].replace(mark, ""))
            ids.append(self._tokenizer.special_ids[found[0]])
            start = found.end()
        return ids + self._tokenizer.encode(text[start:].replace(mark, ""))

    def _apart(self, content: str, mark: str) -> str:
        return self._special.sub(lambda found: mark.join(found[0]), content)

    def remembered(self, answer: str) -> str:
        """Return the answer as it is."""
        return answer


def _unused(texts: Sequence[str]) -> str:
    """Return a character that none of the texts has, and no template either: Unicode's noncharacters."""
    found = set().union(*texts)
    for code in range(0xFDD0, 0xFDF0):
        if chr(code) not in found:
            return chr(code)
    why = "U+FDD0 to U+FDEF are no characters of any text, and a template needs one of them for itself"
    raise ConfigError("the messages hold every noncharacter", why=why, fix="leave them out")


def template_of(
    tokenizer: Tokenizer, wanted: str, model: str | Path, own: ChatTemplate | None
) -> Template | None:
    """Return the template that is wanted: `instruction`, `plain`, the path of a Jinja template, or `auto`.

    `auto` is what chat.json in the model's folder says, else the model's own, and None without either. Raises
    MissingError and DataError for a file that is not there or is something else.
    """
    if wanted == AUTO:
        wanted = _stated(Path(model) / CHAT_FILE)
    if wanted == INSTRUCTION:
        return Instruction(tokenizer)
    if wanted == PLAIN:
        return Plain(tokenizer)
    if wanted == AUTO:
        return Own(tokenizer, own) if own else None
    path = Path(wanted)
    return Own(
        tokenizer, ChatTemplate(read_template(path), tokenizer.special_tokens), f"template {path.name}"
    )


def _stated(path: Path) -> str:
    """Return what chat.json says, or `auto` where there is none.

    Raises DataError for a file that is neither {"chat": "instruction"} nor {"chat": "plain"}.
    """
    if not path.is_file():
        return AUTO
    fix = 'write {"chat": "instruction"} into the file, or delete it'
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError("not JSON", path=path, why=str(error), fix=fix) from error
    if not isinstance(found, dict) or set(found) != {"chat"} or found["chat"] not in (INSTRUCTION, PLAIN):
        why = f"it must have one key, chat, whose value is one of {INSTRUCTION}, {PLAIN}"
        raise DataError("no template", path=path, why=why, fix=fix)
    return str(found["chat"])
