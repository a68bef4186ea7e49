"""Renders one chat template in a process of its own: a program, which `chat_template` starts.

A template is a small program of somebody else, which may loop for ever or fill the memory. Jinja's sandbox
keeps it from everything else; this process has bounds of time and memory, and can be ended.

The program reads lines of JSON. The first has the source, and the seconds that a text may take. Each further
one is a table of variables, and is answered by a line: {"text": ...} or {"error": its kind, "why": ...}.
Templates get what transformers gives them (transformers, utils/chat_template_utils.py), so that they write
the same text.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 30  # bytes, Python's own among them
LONGEST = 1 << 22  # characters of a text


class Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; it adds nothing to the text."""

    tags = {"generation"}  # noqa: RUF012  Jinja declares it so.

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the block, which has a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("said"), [], [], body).set_lineno(line)

    def said(self, caller: Callable[[], str]) -> str:
        """Return what stands in the block."""
        return caller()


def compiled(source: str) -> jinja2.Template:
    """Return the template. Raises TemplateError for a fault of its syntax."""
    # Texts for models are no HTML, so nothing is escaped.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment.from_string(source)


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def rendered(source: str, variables: Mapping[str, Any]) -> dict[str, str]:
    """Return the text, or the kind of an error (syntax, refused, failed, large) and what it says."""
    try:
        template = compiled(source)
    except Exception as error:  # noqa: BLE001  Whatever a template makes Jinja raise is the template's fault.
        line = getattr(error, "lineno", None)
        return {"error": "syntax", "why": (f"line {line}: " if line else "") + str(error)}
    pieces: list[str] = []
    length = 0
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST:
                return {"error": "large", "why": f"its text has more than {LONGEST:,} characters"}
    except MemoryError:
        return {"error": "large", "why": f"it needs more than {MEMORY >> 20:,} MiB of memory"}
    except jinja2.TemplateError as error:
        kind = "refused" if type(error) is jinja2.TemplateError else "failed"
        return {"error": kind, "why": str(error)}
    except Exception as error:  # noqa: BLE001
        return {"error": "failed", "why": f"{type(error).__name__}: {error}"}
    return {"text": "".join(pieces)}


def main() -> None:
    """Answer lines until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that started this one
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    source, seconds = json.loads(sys.stdin.readline())
    with open(os.devnull, "w") as nowhere:
        for line in sys.stdin:
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            answer = json.dumps(rendered(source, json.loads(line)))
            faulthandler.cancel_dump_traceback_later()
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
