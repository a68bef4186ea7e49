"""A report, or a table alone, in Markdown."""

import re
from collections.abc import Iterable, Sequence

from jaxgpt.evaluation.document import Heading, Paragraph, Part, Picture, Table, Tokens, Verbatim

CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}


def markdown(title: str, parts: Sequence[Part]) -> str:
    """The whole report."""
    return "\n\n".join([f"# {title}", *map(_markdown, parts)]) + "\n"


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table with these headings and lines, which may contain any characters."""
    head = list(head)
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in [head, ["---"] * len(head), *lines])
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def _markdown(part: Part) -> str:
    match part:
        case Heading(text):
            return f"## {text}"
        case Paragraph(text):
            return text
        case Table(head, lines):
            return table(head, lines)
        case Verbatim(text):
            return _fenced(text)
        case Picture(path, shows):
            return f"![{shows}]({path.name})"
        case Tokens(texts, _):
            return "\n\n".join(
                f"{each.title}: {each.loss:.4f}\n\n{_fenced(''.join(text for text, _ in each.tokens))}"
                for each in texts
            )


def _fenced(text: str) -> str:
    """The text in a fence longer than any run of backticks in it, so that the text cannot end the fence.

    Control characters become their pictures (U+2400 and up), since a NUL would make the report a binary file.
    """
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}text\n{text.translate(CONTROL_PICTURES)}\n{fence}"
