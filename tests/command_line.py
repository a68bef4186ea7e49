"""A command line run in this process, for the tests of the verbs."""

from typing import Any

from jaxgpt.cli import main


def exit_code(*argv: Any) -> Any:
    """The code that it ends with."""
    code = None
    try:
        main([str(arg) for arg in argv])
    except SystemExit as end:
        code = end.code or "it went well and did not return"
    return code or 0
