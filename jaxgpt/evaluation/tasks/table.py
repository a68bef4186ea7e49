"""All tasks by name, and how those that are asked for are found and measured."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxgpt.display import Progress
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.tasks import cbt, enwik8, hellaswag, lambada, lm1b, ptb, wikitext
from jaxgpt.evaluation.tasks.sources import find_files, read_file
from jaxgpt.evaluation.tasks.task import Task

_ALL = (lambada.TASK, cbt.CN, cbt.NE, wikitext.WIKITEXT_2, wikitext.WIKITEXT_103, hellaswag.TASK)
_MORE = (ptb.TASK, enwik8.WIKI, enwik8.LETTERS, lm1b.TASK)
TASKS = {task.name: task for task in (*_ALL, *_MORE)}


LM_EVAL = "lm-eval:"  # before the name of a task of lm-evaluation-harness


class Asked(NamedTuple):
    """A task, the protocol it is measured by, and its documents."""

    task: Task
    protocol: str
    documents: Any


def chosen(names: Sequence[str]) -> list[tuple[Task, str]]:
    """The tasks and protocols of names such as `lambada:harness`; `lambada` alone means all its protocols.

    Raises ConfigError with the nearest name for one that is not there.
    """
    found: list[tuple[Task, str]] = []
    for name in names:
        task_name, _, protocol = name.partition(":")
        task = TASKS.get(task_name)
        if task is None:
            raise _unknown(f"no task {task_name}", task_name, list(TASKS))
        if protocol and protocol not in task.protocols:
            raise _unknown(f"no protocol {protocol} of {task_name}", protocol, list(task.protocols))
        found += [(task, each) for each in ([protocol] if protocol else task.protocols)]
    return _once(found)


def parted(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of our own tasks, and those that follow `lm-eval:`."""
    ours = [name for name in names if not name.startswith(LM_EVAL)]
    return ours, [name.removeprefix(LM_EVAL) for name in names if name.startswith(LM_EVAL)]


def open_tasks(names: Sequence[str], folder: Path | None, progress: Progress | None = None) -> list[Asked]:
    """Those of our tasks that are asked for, with their documents from a folder or from downloads.

    Raises what `chosen`, `find_files` and the readers of the files raise.
    """
    asked = chosen(names)
    paths = find_files([task.source for task, _ in asked], folder, progress)
    documents: dict[str, Any] = {}
    for task, _ in asked:
        if task.name not in documents:
            documents[task.name] = task.read(read_file(task.source, paths[task.source]))
    return [Asked(task, protocol, documents[task.name]) for task, protocol in asked]


def _once(found: Sequence[tuple[Task, str]]) -> list[tuple[Task, str]]:
    by_name = {(task.name, protocol): (task, protocol) for task, protocol in found}
    return list(by_name.values())


def _unknown(what: str, given: str, known: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(given, known, n=1)
    fix = f"did you mean {near[0]}?" if near else f"choose one of these, or {LM_EVAL}NAME for lm-eval's"
    return ConfigError(what, why=f"there are {', '.join(known)}", fix=fix)
