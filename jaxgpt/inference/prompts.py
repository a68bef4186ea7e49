"""Prompts: few-shot prompts made of examples, and the book's instruction template for tasks and
conversations.

A few-shot prompt has this layout (T. Brown et al. 2020, section 2: zero-, one- and few-shot differ only in
the number of examples):

    INSTRUCTION

    Input: the first example's input
    Output: its output

    Input: the query
    Output:

The model continues after `Output:`. A blank line ends its answer, so no example's output may contain one.

The instruction template is that of Stanford Alpaca (R. Taori et al. 2023), as the book prints it in section
7.2.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgpt.errors import ConfigError, DataError, MissingError

Example = tuple[str, str]  # input, output
FEW_SHOT_STOP: tuple[str, ...] = ("\n\n", "\nInput:")
PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
HEADINGS = {"user": "### Instruction:", "assistant": "### Response:"}
CHAT_STOP: tuple[str, ...] = tuple(
    f"{space}### {heading}:" for space in ("\n\n", "\n") for heading in ("Instruction", "Input", "Response")
)
ROLES = ("system", "user", "assistant")
FIELDS = ("input", "output")
MOST_SHOWN = 20  # an error lists this many problems of a file, and counts the rest


def few_shot_prompt(query: str, *, instruction: str = "", examples: Sequence[Example] = ()) -> str:
    """Return instruction, examples and query in the layout above. Without examples, the prompt is zero-shot.

    White space around each part is dropped. The prompt ends in `Output:` without a space, because GPT-2's
    tokens contain the space before their word. The answer ends at one of FEW_SHOT_STOP.
    """
    blocks = [instruction.strip()] if instruction.strip() else []
    blocks += [f"{_open_block(given)} {output.strip()}" for given, output in examples]
    return "\n\n".join([*blocks, _open_block(query)])


def _open_block(given: str) -> str:
    return f"Input: {given.strip()}".rstrip() + "\nOutput:"


def read_examples(path: str | Path) -> list[Example]:
    """Return the (input, output) pairs of a JSONL file, each line of which is an object of exactly these two
    strings.

    Blank lines are skipped. Raises MissingError when there is no such file. Raises DataError, which lists all
    problems of the file, for a line that is no such object, for an output that is empty or contains one of
    FEW_SHOT_STOP, and for a file without examples.
    """
    path = Path(path)
    if not path.is_file():
        fix = "name an existing JSONL file"
        raise MissingError("no examples", path=path, why="there is no such file", fix=fix)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        fix = "save the file as UTF-8"
        raise DataError("examples", path=path, why=f"not UTF-8: {error}", fix=fix) from error
    examples, problems = [], []
    lines = text.split("\n")  # splitlines would also split at U+2028 inside a string
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                examples.append(_example(line))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if not examples and not problems:
        problems = ["it has none"]
    if problems:
        shown = problems[:MOST_SHOWN] + [f"{len(problems) - MOST_SHOWN} more"] * (len(problems) > MOST_SHOWN)
        fix = 'write lines such as {"input": "2 + 2", "output": "4"}'
        raise DataError("examples", path=path, why="; ".join(shown), fix=fix)
    return examples


def _example(line: str) -> Example:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(found, dict) or set(found) != set(FIELDS):
        keys = f"the keys {sorted(found)}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise ValueError(f"expected an object with the keys {list(FIELDS)}, found {keys}")
    if wrong := [name for name in FIELDS if not isinstance(found[name], str)]:
        raise ValueError(f"{' and '.join(wrong)} must be strings")
    output = found["output"].strip()
    if not output:
        raise ValueError("output is empty")
    if held := [stop for stop in FEW_SHOT_STOP if stop in output]:
        raise ValueError(f"output contains {held[0]!r}, which ends an answer")
    return found["input"], found["output"]


def instruction_prompt(instruction: str, input: str = "") -> str:
    """Return the book's template for one task, up to the response. An empty `input` is left out."""
    given = f"\n\n### Input:\n{input}" if input else ""
    return f"{PREAMBLE}\n\n{HEADINGS['user']}\n{instruction}{given}\n\n{HEADINGS['assistant']}\n"


def chat_prompt(messages: Sequence[tuple[str, str]]) -> str:
    """Return a conversation of (role, content) pairs in the instruction template, up to the next response.

    Messages of the user stand under `### Instruction:`, those of the assistant under `### Response:`. System
    messages, wherever they stand, replace the opening sentences of the template. The answer ends at one of
    CHAT_STOP.

    Raises ConfigError if there are no messages, and for a role other than system, user and assistant.
    """
    if not messages:
        raise ConfigError("no messages", why="there is nothing to answer", fix="give at least one message")
    if unknown := sorted({role for role, _ in messages} - set(ROLES)):
        raise ConfigError(
            f"role {unknown[0]!r}",
            why=f"it must be one of {', '.join(ROLES)}",
            fix="give each message one of these roles",
        )
    systems = [content for role, content in messages if role == "system"]
    head = "\n\n".join(systems) if systems else PREAMBLE
    blocks = [f"{HEADINGS[role]}\n{content}" for role, content in messages if role != "system"]
    return "\n\n".join([head, *blocks, HEADINGS["assistant"] + "\n"])
