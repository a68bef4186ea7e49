"""Ctrl-C ends a whole program, whatever it is doing; nothing here waits for more than about a second."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from jaxgpt.interrupt import TO_END

PROGRAM = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.HANDLER)
from jaxgpt.interrupt import ended_by_ctrl_c

with ended_by_ctrl_c():
    try:
        BODY
    finally:
        print("tidied", flush=True)
"""
CTRL_C = "os.kill(os.getpid(), signal.SIGINT)"


def ended(body: str, folder: Path, handler: str = "default_int_handler") -> tuple[int, str, str]:
    """What a program that does this returns and writes."""
    body = textwrap.indent(textwrap.dedent(body), " " * 8).strip()
    program = PROGRAM.replace("HANDLER", handler).replace("BODY", body)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=20
    )
    return done.returncode, done.stdout, done.stderr


ONE_LINE = "jaxgpt: error: stopped by Ctrl-C\n"


def test_an_import_is_never_interrupted_half_way(tmp_path: Path) -> None:
    """The modules of JAX cannot be: some abort the process, and some are left half imported."""
    (tmp_path / "slow.py").write_text(
        f"import os, signal\ntry: {CTRL_C}\nexcept BaseException: print('broken')\n"
    )
    assert ended("sys.path.insert(0, sys.argv[1])\nimport slow", tmp_path) == (130, "", ONE_LINE)


def test_an_interrupt_that_is_lost_ends_the_program_all_the_same(tmp_path: Path) -> None:
    body = f"""
    try:
        {CTRL_C}
    except KeyboardInterrupt:
        time.sleep(60)
    """
    assert ended(body, tmp_path) == (130, "", ONE_LINE)


def test_what_can_be_put_in_order_is_and_no_thread_is_waited_for(tmp_path: Path) -> None:
    body = f"""
    threading.Thread(target=time.sleep, args=[60]).start()
    try:
        {CTRL_C}
    except KeyboardInterrupt:
        sys.exit(130)
    """
    assert ended(body, tmp_path) == (130, "tidied\n", "")


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    body = f"""
    try:
        {CTRL_C}
    except KeyboardInterrupt:
        {CTRL_C}
    """
    assert ended(body, tmp_path) == (130, "", ONE_LINE)


# As while XLA compiles: no handler of Python's is called before this ends, after half a minute or more.
BUSY = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**8)"


def test_what_python_cannot_interrupt_is_ended_too(tmp_path: Path) -> None:
    body = f"""
    def press():
        {CTRL_C}
    threading.Timer(0.1, press).start()
    {BUSY}
    """
    assert ended(body, tmp_path) == (130, "", ONE_LINE)


def test_two_threads_that_end_the_program_say_so_once(tmp_path: Path) -> None:
    body = """
    from jaxgpt import interrupt
    end = interrupt.end_process
    interrupt.end_process = lambda code: (time.sleep(0.3), end(code))
    for _ in range(2):
        threading.Thread(target=interrupt.leave, args=[signal.SIGINT]).start()
    time.sleep(60)
    """
    assert ended(body, tmp_path) == (130, "", ONE_LINE)


TRAINING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxgpt.interrupt import ended_by_ctrl_c
from jaxgpt.training.stop import stop_on_signal

with ended_by_ctrl_c(), stop_on_signal(lambda text: print(text, flush=True)) as stop:
    stop.nothing_to_save = NOTHING
    print("busy", flush=True)
    BUSY
""".replace("BUSY", BUSY)


@pytest.mark.parametrize(
    ("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)]
)
def test_while_it_compiles_training_answers_a_signal_at_once_and_a_second_one_ends_it(
    number: signal.Signals, name: str, code: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING.replace("NOTHING", "False")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout and program.stderr
        assert program.stdout.readline() == "busy\n"
        time.sleep(0.2)
        begun = time.monotonic()
        program.send_signal(number)
        said = program.stdout.readline()
        assert time.monotonic() - begun < 0.5
        assert said.startswith(f"{name}: saving and stopping as soon as this is done")
        begun = time.monotonic()
        program.send_signal(number)
        assert program.wait(20) == code
        assert time.monotonic() - begun < 0.5
        assert program.stderr.read() == f"jaxgpt: error: stopped by {name}\n"


def test_while_there_is_nothing_to_save_the_first_signal_ends_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING.replace("NOTHING", "True")], stdout=-1, stderr=-1, text=True
    ) as program:
        assert program.stdout and program.stderr
        assert program.stdout.readline() == "busy\n"
        begun = time.monotonic()
        program.send_signal(signal.SIGUSR1)
        assert program.wait(20) == 75
        assert time.monotonic() - begun < 0.5
        said = "jaxgpt: error: stopped by SIGUSR1; run the same command again to go on\n"
        assert program.stderr.read() == said and program.stdout.read() == ""


@pytest.mark.parametrize(
    ("body", "handler"),
    [(CTRL_C, "SIG_IGN"), (f"signal.signal(signal.SIGINT, lambda *_: 0); {CTRL_C}", "default_int_handler")],
)
def test_who_ignores_it_or_handles_it_is_left_alone(tmp_path: Path, body: str, handler: str) -> None:
    assert ended(body, tmp_path, handler) == (0, "tidied\n", "")


@pytest.mark.parametrize(
    ("verb", "number", "code", "said"),
    [
        ("info", signal.SIGINT, 130, ONE_LINE),
        ("info", signal.SIGTERM, -signal.SIGTERM, ""),
        *(("pretrain", number, 75, None) for number in (signal.SIGINT, *TO_END)),
        ("finetune", signal.SIGTERM, 75, None),
    ],
)
def test_a_verb_is_ended_from_its_first_import_on(
    tmp_path: Path, verb: str, number: signal.Signals, code: int, said: str | None
) -> None:
    """The command's own module sees to it before the command line is imported."""
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    again = f"jaxgpt: error: stopped by {name}; run the same command again to go on\n"
    (tmp_path / "tyro.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{number.name})\n")
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "sys.path.insert(0, sys.argv.pop()); from jaxgpt.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, verb, str(tmp_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", again if said is None else said)


@pytest.mark.parametrize("number", TO_END, ids=[number.name for number in TO_END])
def test_a_program_that_has_trained_is_not_killed_while_python_ends(number: signal.Signals) -> None:
    """Python's handlers are gone when the C library calls what is to be done at the end: here, a sleep."""
    program = """
    import ctypes
    from jaxgpt.interrupt import ended_by_ctrl_c

    with ended_by_ctrl_c(trains=True):
        c = ctypes.CDLL(None)
        c.__cxa_atexit(c.usleep, ctypes.c_void_p(900_000), None)
    print("done", flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        time.sleep(0.4)
        assert process.poll() is None
        process.send_signal(number)
    assert process.returncode == 0
