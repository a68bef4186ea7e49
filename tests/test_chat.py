"""A conversation keeps within the window by whole exchanges; Ctrl-C stops an answer and not the program."""

import dataclasses
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import exit_code

from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.inference.conversation import Conversation, room_for_prompt
from jaxgpt.inference.prompts import CHAT_STOP, chat_prompt
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.templates import CHAT_FILE, Instruction, Own, Plain, template_of
from jaxgpt.inference.texts import texts_of
from jaxgpt.language_model import LanguageModel
from jaxgpt.text.chat_template import ChatTemplate
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.verbs.chat import _interruptible

BYTES = load_tokenizer("bytes")
PLAIN, INSTRUCTION = Plain(BYTES), Instruction(BYTES)


def asked(talk: Conversation, text: str) -> tuple[str, list[str]]:
    ids, notes = talk.ask(text)
    return BYTES.decode(ids), notes


def test_a_plain_conversation_is_one_growing_text() -> None:
    talk = Conversation(PLAIN, 100, "Title. ")
    assert asked(talk, "Once") == ("Title. Once", [])
    talk.answer(" upon a time")
    assert asked(talk, "") == ("Title. Once upon a time", [])
    talk.answer(" ")
    assert asked(talk, "there") == ("Title. Once upon a time there", [])


def test_an_instructed_conversation_is_the_template_with_answers_stripped() -> None:
    talk = Conversation(INSTRUCTION, 1000)
    assert asked(talk, "Hi") == (chat_prompt([("user", "Hi")]), [])
    talk.answer("Hello.\n")
    assert asked(talk, "Bye")[0] == chat_prompt([("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")])
    assert INSTRUCTION.stop == CHAT_STOP and PLAIN.stop == ()


def test_a_reset_forgets_all_but_the_system_text() -> None:
    talk = Conversation(PLAIN, 100, "S")
    talk.ask("a")
    talk.answer("b")
    talk.reset()
    assert asked(talk, "c") == ("Sc", [])


@pytest.mark.parametrize("template", ["plain", "instruction"])
def test_old_exchanges_are_dropped_whole_and_no_more_than_needed(template: str) -> None:
    room = {"plain": 30, "instruction": 150}[template]
    talk = Conversation({"plain": PLAIN, "instruction": INSTRUCTION}[template], room, "SYSTEM ")
    messages, kept, dropped = [], 0, 0
    for turn in range(8):
        text, notes = asked(talk, f"<{turn}>")
        messages.append(("user", f"<{turn}>"))
        whole = [m for m in range(0, len(messages), 2) if expected(template, messages[m:], room)]
        assert text == expected(template, messages[whole[0] :], room)
        assert text.startswith("SYSTEM ") and len(text) <= room
        now = len(messages[: whole[0]]) // 2 - dropped
        assert notes == (
            [f"the context is full: {now} earlier exchange{'s' * (now > 1)} dropped"] if now else []
        )
        kept, dropped = kept + (not now), dropped + now
        answer = f"({'x' * (turn % 3)})"
        talk.answer(answer)
        messages.append(("assistant", answer))
    assert kept > 1 and dropped > 1


def expected(template: str, messages: list[tuple[str, str]], room: int) -> str:
    """The prompt, or nothing where it is too long."""
    plain = "SYSTEM " + "".join(content for _, content in messages)
    text = plain if template == "plain" else chat_prompt([("system", "SYSTEM "), *messages])
    return text if len(text) <= room else ""


def test_a_turn_that_does_not_fit_alone_is_cut_at_its_beginning_and_the_system_text_stays() -> None:
    talk = Conversation(INSTRUCTION, 60, "SYSTEM")
    around = len(chat_prompt([("system", "SYSTEM"), ("user", "")]))
    text, notes = asked(talk, "abc" * 50)
    assert text == chat_prompt([("system", "SYSTEM"), ("user", ("abc" * 50)[-(60 - around) :])])
    assert notes == [f"only the last {60 - around} of 150 characters fit the context and are read"]


def test_a_cut_never_splits_a_character() -> None:
    talk = Conversation(PLAIN, 10)
    assert asked(talk, "é" * 3 + "a" + "é" * 5)[0] == "é" * 5
    talk = Conversation(PLAIN, 11)
    assert asked(talk, "é" * 3 + "a" + "é" * 5)[0] == "a" + "é" * 5


def test_a_system_text_that_takes_all_the_room_is_refused_and_nothing_changes() -> None:
    talk = Conversation(PLAIN, 5, "SYSTEM")
    with pytest.raises(
        ConfigError, match=r"6 tokens before anything is said: there is room for 5; shorten --system"
    ):
        talk.ask("a")
    assert talk.exchanges == [] and talk.turns == 0


def test_special_tokens_in_what_is_said_stay_text() -> None:
    ids, _ = Conversation(INSTRUCTION, 1000).ask("<|endoftext|>")
    assert BYTES.end_of_text not in ids and "<|endoftext|>" in BYTES.decode(ids)


def test_an_empty_plain_text_starts_a_new_one() -> None:
    assert Conversation(PLAIN, 10).ask("")[0] == [BYTES.end_of_text]


def test_an_answer_leaves_at_least_half_the_window_to_the_history() -> None:
    assert [room_for_prompt(64, new) for new in (0, 10, 32, 33, 1000)] == [64, 54, 32, 32, 32]


def test_the_template_is_the_one_asked_for_or_what_the_folder_says(tmp_path: Path) -> None:
    own = ChatTemplate("{{ messages[0].content }}!", {})
    assert template_of(BYTES, "auto", tmp_path, None) is None is template_of(BYTES, "auto", "gpt2", None)
    assert isinstance(template_of(BYTES, "auto", tmp_path, own), Own)
    assert isinstance(template_of(BYTES, "plain", tmp_path, own), Plain)
    (tmp_path / CHAT_FILE).write_text('{"chat": "instruction"}')
    assert isinstance(template_of(BYTES, "auto", tmp_path, own), Instruction)
    assert isinstance(template_of(BYTES, "plain", tmp_path, own), Plain)
    (tmp_path / "mine").write_text("{{ messages[0].content }}?")
    found = template_of(BYTES, str(tmp_path / "mine"), tmp_path, own)
    assert found is not None and BYTES.decode(found.ids([("user", "a")])) == "a?"
    with pytest.raises(MissingError, match=r"no chat template .*nothing"):
        template_of(BYTES, str(tmp_path / "nothing"), tmp_path, own)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"chat": "chatml"}', '{"chat": "plain", "more": 1}', '{"chat": []}']
)
def test_a_damaged_chat_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / CHAT_FILE).write_text(content)
    with pytest.raises(DataError, match=CHAT_FILE):
        template_of(BYTES, "auto", tmp_path, None)


def test_a_first_interrupt_is_noted_and_a_second_one_raised() -> None:
    before = signal.getsignal(signal.SIGINT)
    with _interruptible() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def chat(lines: str, *argv: Any, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert exit_code("chat", *argv) == code


GREEDY = ("--temperature", "0", "--max-new-tokens", "6")


def test_piped_lines_are_answered_on_stdout_and_nothing_else_is(
    lm: LanguageModel, lm_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def answer(text: str) -> str:
        return lm.generate([text], max_new_tokens=6, temperature=0)[0]

    chat("ab\n\nc\n/reset\n/nothing\nab\n/quit\nnever\n", lm_folder, *GREEDY, monkeypatch=monkeypatch)
    out, err = capsys.readouterr()
    first = answer("ab")
    second = answer("ab" + first)
    third = answer("ab" + first + second + "c")
    assert out == "\n".join([first, second, third, first, ""])
    assert "plain" in err and "no command /nothing" in err and "forgotten" in err


def test_auto_takes_the_template_of_the_folder(
    lm: LanguageModel,
    lm_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    lm.save(tmp_path / "tuned")
    (tmp_path / "tuned" / CHAT_FILE).write_text(json.dumps({"chat": "instruction"}))
    shown = []
    for model, more in ((lm_folder, ("--chat-template", "instruction")), (tmp_path / "tuned", ())):
        chat(
            "a\n\n", model, "--system", "S", *GREEDY, *more, monkeypatch=monkeypatch
        )  # an empty line asks nothing
        shown.append(capsys.readouterr().out)
    prompt = chat_prompt([("system", "S"), ("user", "a")])
    assert shown == [lm.generate([prompt], max_new_tokens=6, temperature=0)[0] + "\n"] * 2


def test_the_models_own_template_is_used_and_its_tokens_are_ids(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    dataclasses.replace(lm, templates={"default": source}).save(tmp_path / "own", "jaxgpt")
    chat("a<|endoftext|>\nb\n", tmp_path / "own", *GREEDY, monkeypatch=monkeypatch)
    out, err = capsys.readouterr()
    said = [*b"a<|endoftext|>"]  # typed, it is no token
    first = written(lm, [*said, 256])
    second = written(lm, [*said, 256, *BYTES.encode(first), 256, ord("b"), 256])
    assert out == f"{first}\n{second}\n" and "own template" in err
    chat("a\n", tmp_path / "own", "--chat-template", "plain", *GREEDY, monkeypatch=monkeypatch)
    assert capsys.readouterr().out == written(lm, [ord("a")]) + "\n"


def written(lm: LanguageModel, ids: list[int]) -> str:
    request = Request(prompt=tuple(ids), max_new_tokens=6, sampling=Sampling(temperature=0))
    return texts_of(lm.engine(), [request], BYTES)[0]


def test_a_template_that_refuses_ends_the_chat_with_its_own_words(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "refuses").write_text("{{ raise_exception('no ' + messages[0].role) }}")
    lm.save(tmp_path / "model")
    flags = ("--chat-template", tmp_path / "refuses", "--system", "S")
    chat("a\n", tmp_path / "model", *GREEDY, *flags, monkeypatch=monkeypatch, code=2)
    assert "the chat template refuses these messages: no system; change" in capsys.readouterr().err


def test_dropped_turns_are_told(
    lm_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    chat("a" * 30 + "\n" + "b" * 40 + "\n", lm_folder, *GREEDY, monkeypatch=monkeypatch)
    assert "1 earlier exchange dropped" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_anything_is_asked(
    lm_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for flag, value in (("--seed", str(2**63)), ("--max-new-tokens", "-1"), ("--top-p", "2")):
        chat("a\n", lm_folder, flag, value, monkeypatch=monkeypatch, code=2)
        out, err = capsys.readouterr()
        assert out == "" and f"{flag} = " in err


def used_time(pid: int) -> float:
    """Processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class Terminal:
    """`jaxgpt chat` in a terminal of its own."""

    def __init__(self, *argv: str) -> None:
        self.master, slave = pty.openpty()
        # A shell that starts the tests in the background has them, and all they start, ignore SIGINT.
        program = (
            "import fcntl, signal, termios; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "fcntl.ioctl(0, termios.TIOCSCTTY, 0); from jaxgpt.cli import main; main()"
        )
        fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x20\x00\xc8\x00\x00\x00\x00\x00")  # 32 rows of 200
        environment = os.environ | {"TERM": "dumb", "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "chat", *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
        )
        os.close(slave)
        self.shown = b""

    def type(self, keys: bytes, *, at_prompt: bool = True) -> None:
        """Press keys. At a prompt, wait for the process to wait: readline shows the prompt before that."""
        still, before = 0, -1.0
        while at_prompt and still < 5:
            time.sleep(0.1)
            now = used_time(self.process.pid)
            still, before = (still + 1 if now == before else 0), now
        self.shown = b""
        os.write(self.master, keys)

    def wait_for(self, pattern: bytes, seconds: float = 60) -> None:
        """Until this was shown since the last key."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.shown, re.DOTALL):
            assert time.monotonic() < end and self.process.poll() is None, self.shown
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 65536)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc whether a process waits")


@linux
@pytest.mark.parametrize("keys", [pytest.param(b"\x04", marks=pytest.mark.slow), b"\x03\x03"])
def test_ctrl_d_and_a_second_ctrl_c_at_the_prompt_leave(lm_folder: Path, keys: bytes) -> None:
    terminal = Terminal(str(lm_folder))
    try:
        terminal.wait_for(b"you\r\n> ")
        for key in keys[:-1]:
            terminal.type(bytes([key]))
            terminal.wait_for(b"to leave.*you\r\n> ")
        terminal.type(keys[-1:])
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.close()


@pytest.mark.slow
@linux
def test_ctrl_c_stops_the_answer_and_not_the_program(lm_folder: Path) -> None:
    terminal = Terminal(str(lm_folder), "--max-new-tokens", "1000000", "--seed", "1")
    try:
        terminal.wait_for(b"you\r\n> ")
        terminal.type(b"ab\r")
        terminal.wait_for(b"model\r\n.")  # an answer without end has begun
        terminal.type(b"\x03", at_prompt=False)
        terminal.wait_for(rb"\(stopped\).*you\r\n> ")
        terminal.type(b"\x03")
        terminal.wait_for(b"Press Ctrl-C again, or Ctrl-D, to leave.*you\r\n> ")
        terminal.type(b"/reset\r")
        terminal.wait_for(b"forgotten.*you\r\n> ")
        terminal.type(b"/quit\r")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.close()
