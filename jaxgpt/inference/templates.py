"""How a conversation becomes a prompt: the model's own chat template, the book's, or one growing text."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference.prompts import CHAT_STOP, PREAMBLE, chat_prompt
from jaxgpt.text.chat_template import TEMPLATE_FILE, ChatTemplate, read_template
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.weights.run import named_step

CHAT_FILE = (
    "chat.json"  # a file beside a model's weights; {"chat": "instruction"} says how the model was tuned
)
AUTO, INSTRUCTION, PHI3, PLAIN = "auto", "instruction", "phi3", "plain"
NAMES = (INSTRUCTION, PHI3, PLAIN)
Message = tuple[str, str]  # who speaks (system, user or assistant), and what is said
# What `Instruction` writes, for programs that read Jinja templates.
ALPACA_SOURCE = (
    "{%- if messages[0].role == 'system' -%}{{ messages[0].content }}{%- else -%}"
    f"{PREAMBLE}"
    "{%- endif -%}{%- for message in messages -%}{%- if message.role != 'system' -%}"
    "{{ '\n\n### ' + ('Response' if message.role == 'assistant' else 'Instruction') + ':\n' }}"
    "{{ message.content }}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '\n\n### Response:\n' }}{%- endif -%}"
)
# Phi-3's markers as the book uses them in exercise 7.1: plain text, for tokenizers that do not know them.
PHI3_SOURCE = (
    "{%- for message in messages -%}{{ '<|' + message.role + '|>\n' + message.content }}"
    "{%- if not loop.last -%}{{ '\n\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\n\n<|assistant|>\n' }}{%- endif -%}"
)
PHI3_STOP = ("\n<|user|>", "\n<|assistant|>", "\n<|system|>")


class Template(Protocol):
    """Makes a prompt of a conversation, up to the next answer."""

    name: str
    """What a person calls it."""
    stop: tuple[str, ...]
    """The strings that end an answer."""
    joint: str
    """What stands between an instruction and the input that it is to be carried out with."""

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids to continue. Raises ConfigError for messages that the template cannot have."""

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """Return the ids with which a model should continue `ids(messages)`, to answer so.

        Raises DataError where the template does not leave room for an answer behind its prompt.
        """

    def remembered(self, answer: str) -> str:
        """Return an answer as it stands in the prompts that come after it."""

    def files(self) -> dict[str, bytes]:
        """Return the files that tell, in a model's folder, that it was tuned with this template."""


class Instruction:
    """The template of `chat_prompt`, for models that were tuned with it."""

    name = "instruction template"
    stop: tuple[str, ...] = CHAT_STOP
    joint = "\n\n### Input:\n"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the template's text."""
        return self._tokenizer.encode(chat_prompt(messages))

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:  # noqa: ARG002
        """Return the ids of the answer."""
        return self._tokenizer.encode(self.remembered(answer))

    def remembered(self, answer: str) -> str:
        """Return the answer without white space around it."""
        return answer.strip()

    def files(self) -> dict[str, bytes]:
        """Return chat.json, and the template for other programs."""
        return _named(INSTRUCTION) | {TEMPLATE_FILE: ALPACA_SOURCE.encode()}


class Plain:
    """One growing text, for models that were not tuned: what is said is appended exactly as it is."""

    name = "plain template"
    stop: tuple[str, ...] = ()
    joint = "\n"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the text."""
        return self._tokenizer.prompt_ids("".join(content for _, content in messages))

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:  # noqa: ARG002
        """Return the ids of the answer."""
        return self._tokenizer.encode(answer)

    def remembered(self, answer: str) -> str:
        """Return the answer as it is."""
        return answer

    def files(self) -> dict[str, bytes]:
        """Return chat.json."""
        return _named(PLAIN)


class Own:
    """The model's own template, or one from a file.

    The special tokens that the template writes become their ids; where a person writes the same characters,
    they stay characters, so that nobody can end a message in the middle.
    """

    stop: tuple[str, ...] = ()
    joint = "\n"

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, name: str = "own template") -> None:
        self._tokenizer, self._template, self.name = tokenizer, template, name
        longest_first = sorted(tokenizer.special_ids, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the template's text. Raises what `ChatTemplate.render` raises."""
        mark = _unused([content for _, content in messages])
        return self._encoded(self._template.render(self._safe(messages, mark)), mark)

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """Return the ids of what the template writes behind its prompt, to the end of the answer."""
        whole = [*messages, ("assistant", answer)]
        mark = _unused([content for _, content in whole])
        prompt = self._template.render(self._safe(messages, mark))
        text = self._template.render(self._safe(whole, mark), answering=False)
        if not text.startswith(prompt):
            raise DataError(
                "a chat template that cannot be trained with",
                why="with the answer, it does not begin with what it writes without the answer",
                fix="use another template",
            )
        return self._encoded(text[len(prompt) :], mark)

    def _safe(self, messages: Sequence[Message], mark: str) -> list[dict[str, str]]:
        return [{"role": role, "content": self._apart(content, mark)} for role, content in messages]

    def _encoded(self, text: str, mark: str) -> list[int]:
        ids, start = list[int](), 0
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

    def files(self) -> dict[str, bytes]:
        """Return the template, in the file where transformers has it, too."""
        return {TEMPLATE_FILE: self._template.source.encode()}


class Phi3(Own):
    """Phi-3's markers, for models that were tuned with them."""

    stop: tuple[str, ...] = PHI3_STOP

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, ChatTemplate(PHI3_SOURCE, {}), "phi3 template")

    def files(self) -> dict[str, bytes]:
        """Return chat.json, and the template for other programs."""
        return _named(PHI3) | super().files()


def _named(name: str) -> dict[str, bytes]:
    return {CHAT_FILE: json.dumps({"chat": name}).encode()}


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
    """Return the template that is wanted: one of NAMES, the path of a Jinja template, or `auto`.

    `auto` is what chat.json in the model's folder says, else the model's own, and None without either. Raises
    MissingError and DataError for a file that is not there or is something else.
    """
    if wanted == AUTO:
        wanted = _stated(named_step(model)[0] / CHAT_FILE)
    if wanted in NAMES:
        kinds: dict[str, Callable[[Tokenizer], Template]]
        kinds = {INSTRUCTION: Instruction, PHI3: Phi3, PLAIN: Plain}
        return kinds[wanted](tokenizer)
    if wanted == AUTO:
        return Own(tokenizer, own) if own else None
    path = Path(wanted)
    return Own(
        tokenizer, ChatTemplate(read_template(path), tokenizer.special_tokens), f"template {path.name}"
    )


def _stated(path: Path) -> str:
    """Return what chat.json says, or `auto` where there is none.

    Raises DataError for a file that does not name one of NAMES.
    """
    if not path.is_file():
        return AUTO
    fix = 'write {"chat": "instruction"} into the file, or delete it'
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError("not JSON", path=path, why=str(error), fix=fix) from error
    if not isinstance(found, dict) or set(found) != {"chat"} or found["chat"] not in NAMES:
        why = f"it must have one key, chat, whose value is one of {', '.join(NAMES)}"
        raise DataError("no template", path=path, why=why, fix=fix)
    return str(found["chat"])
