"""What a check of the installation or the machine returns."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that is wrong."""

    what: str
    """What is wrong and why it matters."""
    fix: str
    """The command, or the advice, that mends it."""


class Check(NamedTuple):
    """The result of one check. Without findings, nothing is wrong."""

    name: str
    result: str
    """What was seen."""
    findings: list[Finding]
