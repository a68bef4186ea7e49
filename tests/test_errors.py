"""Errors say what to do, and each class has its code."""

import ast
import pickle
import re
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt import errors

ROOT = Path(jaxgpt.__file__).parent
# "change it", "correct the setting": whoever reads this knows no more than before.
EMPTY = re.compile(
    r"(change|correct|fix|mend|adjust|amend|improve|repair) "
    r"(it|them|this|that|these|those|(the|this|that|your) \w+)"
)


def strings(source: str) -> list[str]:
    """Every string in a source, with a space in place of each value that an f-string inserts."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else " " for p in node.values]
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@pytest.mark.parametrize("advice", ["change it", "change them", "correct the setting", "fix this"])
def test_empty_advice_is_seen(advice: str) -> None:
    source = f'raise ConfigError("a = 1", why="it must be 2", fix="{advice}")'
    assert [text for text in strings(source) if EMPTY.fullmatch(text)] == [advice]
    assert not EMPTY.fullmatch(f"{advice}, or give a number from 0 to 1")


def test_no_error_only_says_that_something_must_change() -> None:
    """The concrete thing to do stands there instead: "give a number from 0 to 1"."""
    empty = {
        f"{path.relative_to(ROOT)}: {text}"
        for path in ROOT.rglob("*.py")
        for text in strings(path.read_text(encoding="utf-8"))
        if EMPTY.fullmatch(text)
    }
    assert empty == set()


def test_an_error_is_one_line_of_what_where_why_and_what_to_do() -> None:
    error = errors.DataError("bad file", path="a/b", why="it is empty", fix="name another file")
    assert str(error) == "bad file (a/b): it is empty; name another file"
    assert str(errors.ConfigError("x = 1", why="no", fix="give 2")) == "x = 1: no; give 2"


def test_each_class_has_a_code_of_its_own_and_names_it() -> None:
    classes = [errors.JaxgptError, *errors.JaxgptError.__subclasses__()]
    codes = [kind.exit_code for kind in classes]
    assert sorted(codes) == [2, 65, 66, 69, 70, 71, 74, 75, 76, 130]
    for kind in classes:
        assert f"exit code {kind.exit_code})" in (kind.__doc__ or "")


def test_an_error_that_another_process_hears_of_keeps_its_attributes() -> None:
    error = errors.DivergedError("diverged", why="loss is nan", fix="lower the rate")
    error.step = 7
    heard = pickle.loads(pickle.dumps(error)).said_by(1)
    assert (type(heard), heard.step) == (errors.DivergedError, 7)
    assert str(heard) == f"process 1: {error}"
