"""Tables in Markdown, as reports show them."""

from collections.abc import Iterable


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table with these headings and lines, which may contain any characters."""
    head = list(head)
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in [head, ["---"] * len(head), *lines])
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)
