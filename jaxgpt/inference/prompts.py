"""Prompts: few-shot blocks of examples, and the instruction template of the book, for one task or a conversation.

Few-shot (T. Brown et al. 2020, section 2: zero-, one- and few-shot differ only in the number of examples):

    INSTRUCTION

    Input: the first example's input
    Output: its output

    Input: the query
    Output:

The model goes on after `Output:`. A blank line ends its answer, so no output may hold one.

The instruction template is that of Stanford Alpaca (R. Taori et al. 2023) as the book has it in section 7.2.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxgpt.errors import ConfigError, DataError, MissingError

Example = tuple[str, str]  # input, output
FEW_SHOT_STOP: tuple[str, ...] = ("\n\n", "\nInput:")
PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
HEADINGS = {"user": "### Instruction:", "assistant": "### Response:"}
CHAT_STOP: tuple[str, ...] = tuple(
    f"{space}### {heading}:" for space in ("\n\n", "\n") for heading in ("Instruction", "Input", "Response")
)
ROLES = ("system", "user", "assistant")
FIELDS = ("input", "output")
MOST_SHOWN = 20  # problems of a file that an error spells out


def few_shot_prompt(query: str, *, instruction: str = "", examples: Sequence[Example] = ()) -> str:
    """Instruction, examples and query in the layout above; without examples it is zero-shot.

    Space around each part is dropped. The prompt ends in `Output:` without a space: GPT-2's tokens carry the space in
    front of their word. The answer ends at one of FEW_SHOT_STOP.
    """
    blocks = [instruction.strip()] if instruction.strip() else []
    blocks += [f"{_open_block(given)} {output.strip()}" for given, output in examples]
    return "\n\n".join([*blocks, _open_block(query)])


def _open_block(given: str) -> str:
    return f"Input: {given.strip()}".rstrip() + "\nOutput:"


def read_examples(path: str | Path) -> list[Example]:
    """The (input, output) pairs of a JSONL file, whose lines are objects of exactly these two strings.

    Blank lines are passed over. Raises MissingError when there is no file, DataError with all its problems: a line that
    is no such object, an output that is empty or holds one of FEW_SHOT_STOP, a file without examples.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError("no examples", path=path, why="there is no such file", fix="give a JSONL file")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError("examples", path=path, why=f"not UTF-8: {error}", fix="save it as UTF-8") from error
    examples, problems = [], []
    for number, line in enumerate(
        text.split("\n"), 1
    ):  # splitlines would also break at U+2028 inside a string
        if line.strip():
            try:
                examples.append(_example(line))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if not examples and not problems:
        problems = ["it has none"]
    if problems:
        shown = problems[:MOST_SHOWN] + [f"{len(problems) - MOST_SHOWN} more"] * (len(problems) > MOST_SHOWN)
        fix = 'give lines such as {"input": "2 + 2", "output": "4"}'
        raise DataError("examples", path=path, why="; ".join(shown), fix=fix)
    return examples


def _example(line: str) -> Example:
    try:
        found: Any = json.loads(line)
    except json.JSONDecodeError as error:
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
        raise ValueError(f"output holds {held[0]!r}, where an answer ends")
    return found["input"], found["output"]


def instruction_prompt(instruction: str, input: str = "") -> str:
    """The book's template for one task, up to where the response begins; `input` is left out where it is empty."""
    given = f"\n\n### Input:\n{input}" if input else ""
    return f"{PREAMBLE}\n\n{HEADINGS['user']}\n{instruction}{given}\n\n{HEADINGS['assistant']}\n"


def chat_prompt(messages: Sequence[tuple[str, str]]) -> str:
    """A conversation of (role, content) in the instruction template, ending where the next response begins.

    Turns of the user stand under `### Instruction:`, the assistant's under `### Response:`. A system text takes the
    place of the template's opening sentence. The answer ends at one of CHAT_STOP. Raises ConfigError for no messages, a
    role other than system, user and assistant, and a system text that is not the first message.
    """
    if not messages:
        raise ConfigError("no messages", why="there is nothing to answer", fix="give at least one")
    if unknown := sorted({role for role, _ in messages} - set(ROLES)):
        raise ConfigError(
            f"role {unknown[0]!r}", why=f"it must be one of {', '.join(ROLES)}", fix="change it"
        )
    if any(role == "system" for role, _ in messages[1:]):
        raise ConfigError("system message", why="it must be the first, and the only one", fix="put it there")
    head, turns = PREAMBLE, list(messages)
    if turns[0][0] == "system":
        head, turns = turns[0][1], turns[1:]
    blocks = [f"{HEADINGS[role]}\n{content}" for role, content in turns]
    return "\n\n".join([head, *blocks, HEADINGS["assistant"] + "\n"])
