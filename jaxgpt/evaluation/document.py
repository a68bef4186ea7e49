"""What a report says, as a list of parts. `markdown` and `page` each show it in their own way."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxgpt.text.shown import Shown


class Heading(NamedTuple):
    """The heading of a section."""

    text: str


class Paragraph(NamedTuple):
    """A paragraph. Code stands between backticks."""

    text: str


class Table(NamedTuple):
    """A table. Its cells may contain any characters; code stands between backticks."""

    head: Iterable[str]
    lines: Iterable[Iterable[str]]


class Verbatim(NamedTuple):
    """A text to be shown as it is, to its last blank."""

    text: str


class Picture(NamedTuple):
    """A PNG file beside the report, and what it shows."""

    path: Path
    shows: str


class Tokens(NamedTuple):
    """Texts whose tokens are coloured by their losses. `most` nats have the strongest colour."""

    texts: Sequence[Shown]
    most: float

    def heat(self, loss: float) -> float:
        """How strongly a loss is coloured, from 0 to 1; most strongly where it is not finite."""
        return min(max(loss / self.most, 0.0), 1.0) if math.isfinite(loss) else 1.0


Part = Heading | Paragraph | Table | Verbatim | Picture | Tokens
