"""A model's own chat template: where it stands in a folder, and the text that it makes of a conversation.

It is a Jinja template, in chat_template.jinja or in tokenizer_config.json, there as a text or as a list of
several with names. A template is somebody else's program: it runs in a sandbox and in a process of its own
(`jinja_process`), with bounds of time and memory.
"""

import contextlib
import functools
import json
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from jaxgpt.errors import ConfigError, DataError, MissingError, unreadable
from jaxgpt.text import jinja_process
from jaxgpt.text.jinja_process import MEMORY
from jaxgpt.text.tokenizer_folder import SETTINGS_FILE

TEMPLATE_FILE = "chat_template.jinja"
OTHERS = "additional_chat_templates"  # a folder with the further templates, NAME.jinja
DEFAULT = "default"
NAME = re.compile(r"[\w-]{1,64}")
SECONDS = 5  # that a text may take; one of usual length takes less than a millisecond
LARGEST_TEMPLATE = 1 << 20  # bytes; those that are published have some thousands
_FIX = "correct the template, or name another one with --chat-template"


class ChatTemplate:
    """Makes one text of a conversation. `special_tokens` are variables of the template.

    Its process starts with the first text and ends with this object.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self._special = source, dict(special_tokens)
        self._lock = threading.Lock()
        self._finish: Callable[[], object]

    def render(self, messages: Sequence[Mapping[str, Any]], *, answering: bool = True) -> str:
        """Return the text of messages, each with a role and a content; it ends where the answer begins.

        With `answering` False it ends with the last message. Raises ConfigError with the template's own words
        where it refuses these messages, DataError for a template that is wrong or goes beyond its bounds.
        """
        given = {"messages": list(messages), "tools": None, "documents": None}
        answer = self._asked(self._special | given | {"add_generation_prompt": answering})
        if (text := answer.get("text")) is not None:
            return text
        kind, why = answer["error"], answer["why"].strip()[:500] or "it gives no reason"
        if kind == "refused":
            fix = "change the messages, or name another template with --chat-template"
            raise ConfigError("the chat template refuses these messages", why=why, fix=fix)
        what = {"syntax": "not a chat template", "large": "the chat template makes too much"}
        raise DataError(what.get(kind, "the chat template fails"), why=why, fix=_FIX)

    def _asked(self, variables: Mapping[str, Any]) -> dict[str, str]:
        with self._lock:
            process = self._process
            stdin, stdout = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
            try:
                stdin.write(json.dumps(variables) + "\n")
                stdin.flush()
                line = stdout.readline()
            except OSError:  # it has ended
                line = ""
            if line:
                answer: dict[str, str] = json.loads(line)
                return answer
            self._finish()
            del self._process
            why = f"it took more than {SECONDS} seconds, or far more than {MEMORY >> 20:,} MiB of memory"
            return {"error": "large", "why": why}

    @functools.cached_property
    def _process(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603  All its arguments are ours.
            [sys.executable, "-P", jinja_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",  # which is what our JSON is made of
        )
        self._finish = weakref.finalize(self, _end, process)
        cast(IO[str], process.stdin).write(json.dumps([self.source, SECONDS]) + "\n")
        return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not sent yet
            if pipe:
                pipe.close()
    process.wait()


def read_template(path: Path) -> str:
    """Return the template in a file of its own.

    Raises MissingError when there is no such file, DataError for what is no text, StorageError when reading
    fails.
    """
    if not path.is_file():
        fix = "name a file with a Jinja template"
        raise MissingError("no chat template", path=path, why="there is no such file", fix=fix)
    try:
        return _text(path)
    except OSError as error:
        raise unreadable(path, error, "cannot read the chat template") from error


def templates_in(folder: Path) -> dict[str, str]:
    """Return the templates of a model's folder by their names; the one that is used is called `default`.

    Those in files of their own go before those in tokenizer_config.json, as in transformers. Raises DataError
    for what are no templates, OSError when a file cannot be read.
    """
    own = [folder / TEMPLATE_FILE] * (folder / TEMPLATE_FILE).is_file()
    own += sorted((folder / OTHERS).glob("*.jinja"))
    if own:
        names = [DEFAULT if path.name == TEMPLATE_FILE else path.stem for path in own]
        return dict(zip(names, map(_text, own), strict=True))
    path = folder / SETTINGS_FILE
    try:
        settings = json.loads(_text(path)) if path.is_file() else {}
        given = settings.get("chat_template") or {}
        if isinstance(given, list):
            given = {entry["name"]: entry["template"] for entry in given}
        given = {DEFAULT: given} if isinstance(given, str) else given
        if odd := [name for name, text in given.items() if not (NAME.fullmatch(name) and type(text) is str)]:
            raise ValueError(f"its chat template {str(odd[0])[:80]!r} is no text, or has no plain name")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unlike(path, f"{type(error).__name__}: {str(error)[:200]}") from error
    return dict(given)


def _text(path: Path) -> str:
    content = path.read_bytes()
    if len(content) > LARGEST_TEMPLATE and path.name != SETTINGS_FILE:
        raise _unlike(path, f"it has {len(content):,} bytes, more than any template")
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _unlike(path, f"it is not UTF-8: {error}") from error


def _unlike(path: Path, why: str) -> DataError:
    return DataError("not a chat template", path=path, why=why, fix="fetch the file again, or correct it")


def template_files(templates: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files that hold the templates, by their paths in a model's folder, as transformers does."""
    return {
        TEMPLATE_FILE if name == DEFAULT else f"{OTHERS}/{name}.jinja": source.encode()
        for name, source in templates.items()
    }
