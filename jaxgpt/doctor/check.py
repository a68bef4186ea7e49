"""What a check hands back."""

from typing import NamedTuple


class Finding(NamedTuple):
    """Something that is wrong."""

    what: str
    """What is wrong and why it matters."""
    fix: str
    """The one line that mends it."""


class Check(NamedTuple):
    """One side of the machine, looked at. Nothing is wrong with it where there are no findings."""

    name: str
    result: str
    """What was seen."""
    findings: list[Finding]
