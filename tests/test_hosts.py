"""Several processes decide, wait, stop and fail together. The processes are real."""

import contextlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import pytest
from command_line import exit_code
from test_guard import Trainer

from jaxgpt import hosts
from jaxgpt.config import read_config
from jaxgpt.training.stop import stop_on_signal

SOON = 10  # seconds within which one's error must have ended all
LONG = 300  # seconds for what is only slow: a busy machine is not a failure

JOIN = """
import sys, jax
count, index, port = (int(sys.argv.pop(1)) for _ in range(3))
jax.distributed.initialize(
    f"127.0.0.1:{port}", num_processes=count, process_id=index, heartbeat_timeout_seconds=30
)
"""
COMMAND_LINE = JOIN + "from jaxgpt.cli import main; main()"
UNDER_SLURM = """
import os, sys
count, index, port = (sys.argv.pop(1) for _ in range(3))
os.environ |= {"SLURM_NTASKS": count, "SLURM_PROCID": index, "SLURM_LOCALID": index}
os.environ |= {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost"}
os.environ |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
from jaxgpt.cli import main; main()
"""


class Job:
    """Processes of one job, each with its output in a file; whatever happens, they are gone at the end."""

    def __init__(self, folder: Path, code: str, *args: object, count: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
        self._outputs = [
            (folder / f"stdout-{number}", folder / f"stderr-{number}") for number in range(count)
        ]
        self._processes: list[subprocess.Popen[bytes]] = []
        for number, outputs in enumerate(self._outputs):
            command = [sys.executable, "-c", code, str(count), str(number), str(port)]
            own = [str(arg).replace("PROCESS", str(number)) for arg in args]
            with contextlib.ExitStack() as stack:
                stdout, stderr = (stack.enter_context(output.open("w")) for output in outputs)
                process = subprocess.Popen(
                    [*command, *own],
                    env=os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"},
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                )
            self._processes.append(process)
        self._end_times = [float("inf")] * count
        for number in range(count):
            threading.Thread(target=self._note_end, args=(number,), daemon=True).start()

    def _note_end(self, number: int) -> None:
        self._processes[number].wait()
        self._end_times[number] = time.monotonic()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def printed(self, number: int) -> str:
        """What a process has written to stdout."""
        return self._outputs[number][0].read_text()

    def said(self, number: int) -> str:
        """What a process has written to stderr, without what C++ code logs."""
        lines = self._outputs[number][1].read_text().splitlines()
        return "\n".join(line for line in lines if not re.match(r"[IWE]\d+ |WARNING: All log messages", line))

    def wait_for(self, number: int, text: str) -> None:
        """Return once a process has printed a text."""
        self._await(lambda: text in self.said(number) or self._end_times[number] < float("inf"))
        assert text in self.said(number), self.all_said()

    def send(self, number: signal.Signals, *to: int) -> None:
        """Send a signal to some of the processes."""
        for process in to:
            self._processes[process].send_signal(number)

    def ended(self) -> list[int]:
        """The processes' exit codes, once all have ended."""
        self._await(lambda: max(self._end_times) < float("inf"))
        return [process.returncode for process in self._processes]

    def seconds_after(self, moment: float) -> float:
        """How long after a moment of the monotonic clock, which all share, the last process ended."""
        return max(self._end_times) - moment

    def _await(self, happened: Callable[[], bool]) -> None:
        end = time.monotonic() + LONG
        while not happened():
            assert time.monotonic() < end, f"waited in vain:\n{self.all_said()}"
            time.sleep(0.02)

    def all_said(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for paths in self._outputs for path in paths)

    def errors(self) -> list[list[str]]:
        """The error messages that each process has printed."""
        mark = "jaxgpt: error: "
        return [
            [line.removeprefix(mark) for line in self.said(number).splitlines() if line.startswith(mark)]
            for number in range(len(self._outputs))
        ]


# One process


def test_with_one_process_everything_is_only_a_function_call(tmp_path: Path) -> None:
    before = threading.active_count()
    error = ValueError("as it was")

    def fail() -> None:
        raise error

    with hosts.one_error_ends_all():
        assert threading.active_count() == before
        assert hosts.is_first()
        assert hosts.decide(lambda: threading) is threading  # nothing is copied
        assert hosts.each(lambda: 3) == [3]
        hosts.barrier("here")
        hosts.check_same("this", {"name": object()})
        hosts.check_shared(tmp_path / "not there")
        hosts.announce(error)
    for call in (lambda: hosts.decide(fail), lambda: hosts.each(fail)):
        with pytest.raises(ValueError, match=str(error)) as raised, hosts.one_error_ends_all():
            call()
        assert raised.value is error


def test_two_signals_in_one_process_are_a_stop_and_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signal() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed() and stop.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)


# Agreement

AGREEMENTS = """
import json, os, time
from pathlib import Path
from jaxgpt import hosts
from jaxgpt.errors import DataError, JaxgptError

index, folder = jax.process_index(), Path(sys.argv[1])
calls = []

def fail(error, on=None):
    if on is None or index in on:
        raise error
    return index

def outcome(act):
    try:
        return act()
    except Exception as error:
        return [type(error).__name__, str(error), getattr(error, "exit_code", None)]

def late():
    begun = time.monotonic()
    if index == 2:
        time.sleep(1)
    hosts.barrier("late")
    return time.monotonic() - begun

data = DataError("shard is damaged", path="a.bin", why="too short", fix="make it anew")
print(json.dumps({
    "first": hosts.is_first(),
    "decided": hosts.decide(lambda: calls.append(index) or {"chosen by": index, "step": 7}),
    "calls": calls,
    "ours": outcome(lambda: hosts.decide(lambda: fail(data))),
    "other": outcome(lambda: hosts.decide(lambda: fail(ValueError("no number")))),
    "io": outcome(lambda: hosts.decide(lambda: fail(OSError(28, "No space left")))),
    "not picklable": outcome(lambda: hosts.decide(lambda: lambda: 0))[0],
    "each": hosts.each(lambda: index * 10),
    "one fails": outcome(lambda: hosts.each(lambda: fail(data, on=(1,)))),
    "two fail": outcome(lambda: hosts.each(lambda: fail(OSError(index), on=(1, 2)))),
    "waited": late(),
    "barriers": outcome(lambda: hosts.barrier("a" if index else "b")),
    "same": outcome(lambda: hosts.check_same("their settings", {"seed": 0})),
    "not same": outcome(lambda: hosts.check_same("their settings", {"steps": 5, "seed": index // 2})),
    "shared": outcome(lambda: hosts.check_shared(folder)),
    "not shared": outcome(lambda: hosts.check_shared(folder / f"own-{min(index, 1)}")),
    "not there": outcome(lambda: hosts.check_shared(folder / "nowhere")),
}))
"""


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three processes got from calls that all of them made."""
    folder = tmp_path_factory.mktemp("agreements")
    for number in range(2):
        (folder / f"own-{number}").mkdir()
    with Job(folder / "job", JOIN + AGREEMENTS, folder, count=3) as job:
        assert job.ended() == [0, 0, 0], job.all_said()
        found = [json.loads(job.printed(number)) for number in range(3)]
    left = {path.name for place in (folder, folder / "own-0", folder / "own-1") for path in place.iterdir()}
    assert left == {"job", "own-0", "own-1"}, "no file is left in a folder that was looked at"
    return found


def test_the_first_process_decides_and_every_process_gets_its_result(agreed: list[dict[str, Any]]) -> None:
    assert [one["first"] for one in agreed] == [True, False, False]
    assert [one["decided"] for one in agreed] == [{"chosen by": 0, "step": 7}] * 3
    assert [one["calls"] for one in agreed] == [[0], [], []]


def test_an_error_while_deciding_is_the_same_error_everywhere(agreed: list[dict[str, Any]]) -> None:
    assert [one["ours"] for one in agreed] == [
        ["DataError", "shard is damaged (a.bin): too short; make it anew", 65]
    ] * 3
    advice = "run the command again with --debug and report what it prints"
    hidden = f"internal error: ValueError('no number'); {advice}"
    assert [one["other"] for one in agreed] == [
        ["ValueError", "no number", None],
        ["JaxgptError", hidden, 70],
        ["JaxgptError", hidden, 70],
    ]
    assert [one["io"][0] for one in agreed] == ["OSError", "StorageError", "StorageError"]
    assert [one["io"][2] for one in agreed] == [None, 74, 74]
    assert agreed[0]["not picklable"] != "function" and agreed[1]["not picklable"] == "JaxgptError"


def test_each_gives_every_process_what_all_of_them_got(agreed: list[dict[str, Any]]) -> None:
    assert [one["each"] for one in agreed] == [[0, 10, 20]] * 3


def test_an_error_of_one_is_raised_on_each(agreed: list[dict[str, Any]]) -> None:
    said = "process 1: shard is damaged (a.bin): too short; make it anew"
    assert [one["one fails"] for one in agreed] == [["DataError", said, 65]] * 3
    storage = "see that the disk has free space and that you have permission to read and write there"
    assert [one["two fail"] for one in agreed] == [
        ["StorageError", f"process 1: input/output failed: 1; {storage}", 74]
    ] * 3


def test_a_barrier_waits_for_the_last_and_is_the_same_for_all(agreed: list[dict[str, Any]]) -> None:
    assert min(one["waited"] for one in agreed) > 0.5
    assert [one["barriers"] for one in agreed] == [
        ["JaxgptError", "processes wait at different barriers: b, a, a; report this", 70]
    ] * 3


def test_what_must_be_the_same_is_named_where_it_is_not(agreed: list[dict[str, Any]]) -> None:
    assert [one["same"] for one in agreed] == [None] * 3
    [(kind, message, code)] = {tuple(one["not same"]) for one in agreed}
    assert (kind, code) == ("ConfigError", 2)
    assert "disagree about their settings: seed is 1 in process 2 and 0 in process 0; start" in message
    assert "steps" not in message and "process 1" not in message


def test_a_folder_that_is_not_shared_is_refused_by_all(agreed: list[dict[str, Any]]) -> None:
    assert [one["shared"] for one in agreed] == [None] * 3
    [(kind, message, code)] = {tuple(one["not shared"]) for one in agreed}
    assert (kind, code) == ("ConfigError", 2)
    assert "own-0): what process 0 writes there is not seen by process 1 (" in message and "own-1)" in message
    assert len({tuple(one["not there"]) for one in agreed[1:]}) == 1
    assert [one["not there"][2] for one in agreed[1:]] == [74, 74]


# One process's error ends all

SCENARIO = """
import os, signal, threading, time
from pathlib import Path
import jaxgpt.verbs.info
from jax._src import distributed
from jax.sharding import NamedSharding, PartitionSpec as P
from jax.experimental.multihost_utils import sync_global_devices
from jaxgpt import hosts
from jaxgpt.cli import main
from jaxgpt.errors import DataError, DivergedError, MissingError, StoppedError, StorageError
from jaxgpt.training.stop import stop_on_signal

index = jax.process_index()
damaged = DataError("shard is damaged", path="a.bin", why="too short", fix="make it anew")
diverged = DivergedError("diverged", why="loss is nan", fix="lower it")
stopped = StoppedError("stopped at step 3", why="SIGTERM came", fix="run it again")
full = StorageError("checkpoint not saved", why="no space", fix="make room")

def fail(error):
    print("fails at", time.monotonic(), flush=True)
    raise error

def work():
    BODY

def run(args):
    with hosts.one_error_ends_all():
        work()

sync_global_devices("all are here")
jaxgpt.verbs.info.run = run
main(["info"])
"""


class Scenario(NamedTuple):
    """What processes 0 and 1 do, and how they end."""

    body: str
    codes: tuple[int, int]
    errors: tuple[list[str], list[str]]
    others: str = ""  # what process 1 prints besides


GONE = "process {} of host {} is gone: it was killed, or has crashed, or its machine is lost; {}"
AGAIN = "start the job again: it goes on from {}"
DAMAGED = "shard is damaged (a.bin): too short; make it anew"
STOPPED = "stopped at step 3: SIGTERM came; run it again"
SCENARIOS = {
    "the first is in a collective": Scenario(
        "fail(damaged) if index else sync_global_devices('never')",
        (65, 65),
        ([f"process 1: {DAMAGED}"], [DAMAGED]),
    ),
    "the other is in a barrier of C++": Scenario(
        "distributed.global_state.client.wait_at_barrier('never', 600_000) if index else fail(damaged)",
        (65, 65),
        ([DAMAGED], [f"process 0: {DAMAGED}"]),
    ),
    "it waits for a checkpoint as it fails": Scenario(
        """
        from jaxgpt.weights.checkpoint import Checkpoints

        with Checkpoints(Path(sys.argv[1])) as checkpoints:
            checkpoints._manager.close = lambda: time.sleep(60)
            fail(damaged) if index else time.sleep(60)
        """,
        (65, 65),
        ([f"process 1: {DAMAGED}"], [DAMAGED]),
    ),
    "the first then waits for what cannot come": Scenario(
        """
        from jaxgpt.weights.checkpoint import Checkpoints

        with Checkpoints(Path(sys.argv[1])) as checkpoints:
            if index == 0:
                checkpoints._manager.close = lambda: time.sleep(60)
                sync_global_devices("never")
        fail(damaged)
        """,
        (65, 65),
        ([f"process 1: {DAMAGED}"], [DAMAGED]),
    ),
    "it has begun what it cannot end alone": Scenario(
        """
        if index == 0:
            time.sleep(60)
        sharding = NamedSharding(jax.make_mesh((4,), ("all",)), P("all"))
        ones = jax.make_array_from_callback((4,), sharding, lambda where: jax.numpy.ones((1,)))
        total = jax.jit(jax.numpy.sum)(ones)
        fail(damaged)
        """,
        (65, 65),
        ([f"process 1: {DAMAGED}"], [DAMAGED]),
    ),
    "a thread of it never ends": Scenario(
        """
        if index == 0:
            time.sleep(60)
        threading.Thread(target=time.sleep, args=(60,)).start()
        fail(damaged)
        """,
        (65, 65),
        ([f"process 1: {DAMAGED}"], [DAMAGED]),
    ),
    "somebody pressed Ctrl-C there": Scenario(
        "fail(KeyboardInterrupt()) if index else time.sleep(60)",
        (130, 130),
        (["process 1: stopped by Ctrl-C"], ["stopped by Ctrl-C"]),
    ),
    "all fail alike and take their time": Scenario(
        """
        try:
            fail(diverged)
        except DivergedError as error:
            hosts.announce(error)
            time.sleep(5 if index else 1)
            print("in good order")
            raise
        """,
        (76, 76),
        (["diverged: loss is nan; lower it"], ["diverged: loss is nan; lower it"]),
        "in good order",
    ),
    "it is killed while the first is in a collective": Scenario(
        "os.kill(os.getpid(), signal.SIGKILL) if index else sync_global_devices('never')",
        (71, -9),
        ([GONE.format(1, platform.node(), AGAIN.format("where it was"))], []),
    ),
    "the first is killed while it is in a barrier": Scenario(
        """
        hosts.barrier("begun")
        hosts.barrier("never") if index else os.kill(os.getpid(), signal.SIGKILL)
        """,
        (-9, 71),
        ([], [GONE.format(0, platform.node(), AGAIN.format("where it was"))]),
    ),
    "the first is killed when the other is done": Scenario(
        """
        hosts.barrier("begun")
        index or time.sleep(2) or os.kill(os.getpid(), signal.SIGKILL)
        """,
        (-9, 71),
        ([], [GONE.format(0, platform.node(), AGAIN.format("where it was"))]),
    ),
    "one is done before the other": Scenario("index or time.sleep(5)", (0, 0), ([], [])),
    "both stop and the first saves longer": Scenario(
        """
        try:
            raise stopped
        finally:
            index or time.sleep(5)
        """,
        (75, 75),
        ([STOPPED], [STOPPED]),
    ),
    "both stop and the first cannot save": Scenario(
        """
        try:
            raise stopped
        finally:
            if index == 0:
                time.sleep(1)
                fail(full)
        """,
        (74, 74),
        (
            ["checkpoint not saved: no space; make room"],
            ["process 0: checkpoint not saved: no space; make room"],
        ),
    ),
    "a second Ctrl-C comes to both": Scenario(
        """
        with stop_on_signal() as stop:
            for _ in range(2):
                print("fails at", time.monotonic(), flush=True)
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(60):
                    time.sleep(0.05)
            print("not interrupted")
        """,
        (130, 130),
        (["stopped by Ctrl-C"], ["stopped by Ctrl-C"]),
    ),
}


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Job]]:
    """All scenarios, started together: they wait more than they work."""
    with contextlib.ExitStack() as stack:
        jobs = {}
        for name, scenario in SCENARIOS.items():
            body = textwrap.indent(textwrap.dedent(scenario.body), "    ")
            code = JOIN + SCENARIO.replace("    BODY", body)
            folder = tmp_path_factory.mktemp("scenario")
            jobs[name] = stack.enter_context(Job(folder, code, folder / "checkpoints"))
        yield jobs


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_error_of_one_process_ends_all(scenarios: dict[str, Job], name: str) -> None:
    """With its message and its exit code, each once, whatever the others are doing."""
    job, expected = scenarios[name], SCENARIOS[name]
    assert (*job.ended(),) == expected.codes, job.all_said()
    assert (*job.errors(),) == expected.errors, job.all_said()
    assert expected.others in job.printed(1)
    failed = re.findall(r"fails at (\S+)", job.all_said())
    assert bool(failed) == ("fail" in expected.body)
    assert not failed or job.seconds_after(max(map(float, failed))) < SOON


# Training

TEXT = "\n".join(f"{a} times {b} is {a * b}, as {b} times {a} is." for a in range(40) for b in range(40))
SMALL = {
    "--model.context": 16,
    "--model.layers": 1,
    "--model.heads": 2,
    "--model.width": 16,
    "--batch": 8,
    "--log-every": 1,
    "--eval-every": 0,
    "--optim.warmup-steps": 2,
    "--optim.learning-rate": 0.02,
    "--optim.schedule": "constant",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared tokens of a small text."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "tables.txt").write_text(TEXT)
    verb("prepare", folder / "tables.txt", "--out", folder / "data", "--tokenizer", "bytes")
    return folder / "data"


def verb(*args: object) -> None:
    """One command line in this process."""
    assert exit_code(*args) == 0


def pretrain(data: Path, out: Path | str, *more: object) -> list[str]:
    settings = [word for setting in SMALL.items() for word in setting]
    return [str(arg) for arg in ("pretrain", "nano", *settings, "--data.path", data, "--out-dir", out, *more)]


def measured(run: Path, name: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[name] for row in rows if name in row}


def saved_steps(run: Path) -> list[int]:
    names = [path.parent.name for path in run.glob("checkpoints/*/_CHECKPOINT_METADATA")]
    return sorted(int(name) for name in names if name.isdecimal())


@pytest.mark.slow
def test_two_processes_train_stop_and_resume_as_one(data: Path, tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to both; SIGTERM to one before its first step; and to the end."""
    out = tmp_path / "two"
    args = pretrain(data, out, "--mesh.fsdp", 2, "--steps")
    with Job(tmp_path / "start", UNDER_SLURM, *args, 100_000, "--distributed") as job:
        job.wait_for(0, "step 3:")
        job.send(signal.SIGINT, 0, 1)
        assert job.ended() == [75, 75], job.all_said()
        [[stopped], [other]] = job.errors()
    assert stopped == other
    [step] = saved_steps(out)
    assert f"stopped at step {step}: SIGINT came; run the same command again" in stopped and step >= 3
    assert max(measured(out, "loss")) == step

    with Job(tmp_path / "resume", COMMAND_LINE, *args, 100_000) as job:
        job.wait_for(0, "reading checkpoint")
        job.send(signal.SIGTERM, 1)
        assert job.ended() == [75, 75], job.all_said()
        assert "going on from" in job.said(0)
        assert job.said(1) == f"jaxgpt: error: {job.errors()[0][0]}", "the first process alone shows progress"
    again = saved_steps(out)[-1]
    assert again > step and max(measured(out, "loss")) == again

    last = again + 2, "--eval-every", 100_000, "--eval-batches", 2
    with Job(tmp_path / "end", COMMAND_LINE, *args, *last) as job:
        assert job.ended() == [0, 0], job.all_said()
    one = tmp_path / "one"
    verb(*pretrain(data, one, "--mesh.fsdp", 2, "--mesh.data", 4, "--steps", *last, "--sample-tokens", 0))
    ours, theirs = measured(out, "loss"), measured(one, "loss")
    assert ours.keys() == theirs.keys() == set(range(1, again + 3))
    np.testing.assert_allclose([*ours.values()], [*theirs.values()], rtol=1e-5)
    [(_, value)] = measured(out, "val_loss").items()
    assert value == pytest.approx(measured(one, "val_loss")[again + 2], rel=1e-5)


MANY_ARRAYS = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxgpt.training.divergence import refuse_non_finite_arrays
from jaxgpt.weights.digests import digests

mesh = jax.make_mesh((2, 2), ("data", "fsdp"))
specs = P("fsdp"), P(), P(("data", "fsdp")), P(None, "fsdp")


def array(number):
    placed = NamedSharding(mesh, specs[number % 4])
    ones = np.ones((8, 8), np.float32)
    return jax.make_array_from_callback(ones.shape, placed, lambda index: ones[index])


arrays = {f"array {number}": array(number) for number in range(48)}
for step in range(8):
    refuse_non_finite_arrays(step, arrays)
    found = digests(arrays)
print(sorted(found.items()))
"""


def test_what_two_processes_save_is_checked_without_waiting_for_ever(tmp_path: Path) -> None:
    """More arrays than JAX on CPU runs programs at once: 32 of a device."""
    with Job(tmp_path / "job", JOIN + MANY_ARRAYS) as job:
        assert job.ended() == [0, 0], job.all_said()
        assert job.printed(0).splitlines()[-1] == job.printed(1).splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("trains", [pytest.param("all", marks=pytest.mark.exhaustive), "lora"])
def test_two_processes_tune_preferences_and_measure_a_text_as_one(
    trains: str, bytes_base: Path, tmp_path: Path
) -> None:
    """The reference is measured by both, and kept by the first."""
    pairs = [{"prompt": f"Say {n}", "chosen": f"{n}", "rejected": f"no {n}"} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "text.txt").write_text("Say seven and say no. " * 20)
    (tmp_path / "lambada_test.jsonl").write_text('{"text": "Say seven"}\n{"text": "Say no"}\n')
    args = ["finetune", "dpo", "--from", bytes_base, "--data.path", tmp_path / "pairs.jsonl", "--steps", 4]
    args += ["--batch", 8, "--log-every", 1, "--eval-every", 2, "--sample-tokens", 0, "--mesh.fsdp", 2]
    args += ["--trains", trains, "--template", "plain", "--optim.learning-rate", 0.01]
    args += ["--evaluation.data", tmp_path / "text.txt", "--evaluation.tasks", "lambada:harness"]
    args += ["--evaluation.data-dir", tmp_path, "--out-dir"]
    with Job(tmp_path / "job", COMMAND_LINE, *args, tmp_path / "two") as job:
        assert job.ended() == [0, 0], job.all_said()
    verb(*args, tmp_path / "one")
    with (
        np.load(tmp_path / "two" / "data" / "reference.npz") as two,
        np.load(tmp_path / "one" / "data" / "reference.npz") as one,
    ):
        for part in ("train", "val"):
            np.testing.assert_allclose(two[part], one[part], rtol=1e-5)
    for name in (
        "loss",
        "margin",
        "val_loss",
        "val_margin",
        "text:tokens/loss",
        "lambada:harness/perplexity",
    ):
        ours, theirs = measured(tmp_path / "two", name), measured(tmp_path / "one", name)
        assert ours.keys() == theirs.keys() and len(ours) >= 3
        np.testing.assert_allclose([*ours.values()], [*theirs.values()], rtol=1e-4, atol=1e-5)


@pytest.mark.exhaustive
def test_twenty_resumes_in_a_row_train_as_one_run(data: Path, tmp_path: Path) -> None:
    steps = 21
    args = pretrain(data, tmp_path / "run", "--eval-every", 1, "--eval-batches", 1, "--steps")
    for step in range(1, steps + 1):
        with Job(tmp_path / f"job-{step}", COMMAND_LINE, *args, step) as job:
            assert job.ended() == [0, 0], job.all_said()
    one = tmp_path / "one"
    verb(*pretrain(data, one, "--eval-every", 1, "--eval-batches", 1, "--steps", steps, "--sample-tokens", 0))
    for name in ("loss", "val_loss"):
        ours, theirs = measured(tmp_path / "run", name), measured(one, name)
        assert ours.keys() == theirs.keys() == set(range(name == "loss", steps + 1))
        np.testing.assert_allclose([*ours.values()], [*theirs.values()], rtol=1e-5)


def test_without_a_job_distributed_says_what_it_needs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "jaxgpt",
        "pretrain",
        "nano",
        "--distributed",
        "--out-dir",
        str(tmp_path / "run"),
    ]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "JAX_COORD"))
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 2
    assert "error: --distributed: the processes of this job did not find one another" in done.stderr
    assert "start the same command on every host" in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_which_say_so(data: Path, tmp_path: Path) -> None:
    """While they train; the job started again goes on from what they have named."""
    run = tmp_path / "run"
    args = pretrain(data, run, "--steps", 100_000, "--checkpoint-every", 5, "--distributed")
    text = "step 13:"
    for victim, other in ((1, 0), (0, 1)):
        with Job(tmp_path / f"job-{victim}", UNDER_SLURM, *args) as job:
            job.wait_for(0, text)
            moment, before = time.monotonic(), saved_steps(run)
            job.send(signal.SIGKILL, victim)
            codes = job.ended()
            assert (codes[victim], codes[other]) == (-signal.SIGKILL, 71), job.all_said()
            assert job.seconds_after(moment) < 20
            [error], after = job.errors()[other], saved_steps(run)
        said = [
            GONE.format(victim, platform.node(), AGAIN.format(f"step {step} of {run}, or a later one"))
            for step in (before[-1], after[-1])  # a save may end after the kill
        ]
        assert error in said
        text = f"going on from step {after[-1]} of"


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "during"),
    [
        pytest.param(0, "compiling", marks=pytest.mark.exhaustive),
        (1, "compiling"),
        (0, "saving"),
        pytest.param(1, "saving", marks=pytest.mark.exhaustive),
    ],
)
def test_a_job_that_loses_a_process_leaves_nothing_behind(
    victim: int, during: str, data: Path, tmp_path: Path
) -> None:
    """The others end soon, and the next start goes on from a whole checkpoint, as if nothing had happened."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    args = "--mesh.fsdp", 2, "--sample-tokens", 0, "--checkpoint-every", 4, "--steps", 18
    with Job(tmp_path / "job", UNDER_SLURM, *pretrain(data, run, *args, "--distributed")) as job:
        if during == "compiling":
            job.wait_for(0, "compiling the training step")
        else:
            wait_until(lambda: saved_steps(run) and [*run.glob("checkpoints/*.orbax-checkpoint-tmp")])
        moment, before = time.monotonic(), saved_steps(run)
        job.send(signal.SIGKILL, victim)
        codes = job.ended()
        assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 71), job.all_said()
        assert job.seconds_after(moment) < 20
    assert bool(before) == (during == "saving") and {*before[-1:]} <= {*saved_steps(run)}
    with Job(tmp_path / "again", UNDER_SLURM, *pretrain(data, run, *args, "--distributed")) as job:
        assert job.ended() == [0, 0], job.all_said()
        assert ("going on from step" in job.said(0)) == (during == "saving")
    verb(*pretrain(data, whole, *args, "--mesh.data", 4))
    for folder in (".", "checkpoints"):
        assert {path.name for path in (run / folder).iterdir()} == {
            path.name for path in (whole / folder).iterdir()
        }
    ours, theirs = measured(run, "loss"), measured(whole, "loss")
    assert [*ours] == [*theirs]
    np.testing.assert_allclose([*ours.values()], [*theirs.values()], rtol=1e-5)


BUSY = """
import ctypes
from jaxgpt import hosts

begun = __import__("time").monotonic()
with hosts.one_error_ends_all():
    hosts.barrier("begun")
    if jax.process_index() == int(sys.argv[1]):
        ctypes.PyDLL(None).sleep(20)  # no other thread of Python runs meanwhile
    hosts.barrier("ended")
print(__import__("time").monotonic() - begun)
"""


@pytest.mark.slow
@pytest.mark.parametrize("busy", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_process_that_is_busy_is_not_taken_for_dead(busy: int, tmp_path: Path) -> None:
    with Job(tmp_path / "job", JOIN + BUSY, busy) as job:
        assert job.ended() == [0, 0], job.all_said()
        assert min(float(job.printed(number).split()[-1]) for number in range(2)) > 19


DIVERGES = """
import jaxgpt.verbs.info
from pathlib import Path
from jaxgpt import hosts
from jaxgpt.cli import main
from test_guard import Trainer

text, out, policy = sys.argv[1:]


def run(args):
    with hosts.one_error_ends_all():
        harm = {3: float("nan"), 10: float("nan")}
        Trainer(Path(text), harm)(Path(out), on_divergence=policy, divergence_limit=2)


jaxgpt.verbs.info.run = run
main(["info"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "skipped"),
    [pytest.param("skip", "3,10", marks=pytest.mark.exhaustive), ("rewind", "2,3,9,10")],
)
def test_two_processes_skip_or_go_back_together(
    policy: str, skipped: str, data: Path, tmp_path: Path
) -> None:
    text, path = data.parent / "tables.txt", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"
    with Job(tmp_path / "job", path + JOIN + DIVERGES, text, tmp_path / "two", policy) as job:
        assert job.ended() == [0, 0], job.all_said()
    Trainer(text, {3: float("nan"), 10: float("nan")})(
        tmp_path / "one", on_divergence=policy, skip_steps=skipped
    )
    ours, theirs = (measured(tmp_path / run, "loss") for run in ("two", "one"))
    ours = {step: loss for step, loss in ours.items() if np.isfinite(loss)}
    assert ours.keys() == theirs.keys() and len(ours) >= 8
    np.testing.assert_allclose([*ours.values()], [*theirs.values()], rtol=1e-5)
    diverged = [*measured(tmp_path / "two", "diverged")]
    assert (diverged, read_config(tmp_path / "two").skip_steps) == (
        ([3, 10], "") if policy == "skip" else ([], skipped)
    )


CANNOT_READ = """
if index == 1:
    from jaxgpt.weights import checkpoint
    from jaxgpt.weights.damage import damaged

    read = checkpoint._read

    def broken(folder, step, name, target):
        if (step, name) == (8, "rest"):
            raise damaged(folder, step, "rest: it cannot be read here")
        return read(folder, step, name, target)

    checkpoint._read = broken
"""
WITHOUT_META = """
from pathlib import Path

if index == 0:
    Path(sys.argv[sys.argv.index("--out-dir") + 1], "checkpoints", "8", "meta", "metadata").write_text("")
"""
FLIPPED = """
from pathlib import Path

if index == 0:
    params = Path(sys.argv[sys.argv.index("--out-dir") + 1], "checkpoints", "8", "params")
    path = max(params.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (CANNOT_READ, "process 1: checkpoint is damaged ({}): rest: it cannot be read here"),
        (WITHOUT_META, "checkpoint is damaged ({}): meta: "),
        pytest.param(
            FLIPPED, "process 0: checkpoint is damaged ({}): params: other", marks=pytest.mark.exhaustive
        ),
    ],
    ids=["one cannot read it", "no meta", "flipped"],
)
def test_two_processes_pass_over_a_damaged_checkpoint_together(
    damage: str, said: str, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    args = pretrain(data, run, "--mesh.fsdp", 2, "--sample-tokens", 0, "--checkpoint-every", 4, "--steps")
    verb(*args, 8, "--mesh.data", 4)
    before = measured(run, "loss")
    code = COMMAND_LINE.replace("from jaxgpt.cli", damage + "from jaxgpt.cli")
    with Job(tmp_path / "job", code, *args, 10) as job:
        assert job.ended() == [0, 0], job.all_said()
        told = job.said(0)
    assert f"warning: {said.format(run / 'checkpoints' / '8')}" in told
    assert "trying the one before it, of step 4" in told and f"going on from step 4 of {run}" in told
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"8", "10", "8.damaged-1"}
    after = measured(run, "loss")
    assert [*after] == [*range(1, 11)]
    np.testing.assert_allclose([after[step] for step in before], [*before.values()], rtol=1e-5)


BROKEN_DATA = """
if index == 1:
    from jaxgpt.errors import DataError
    from jaxgpt.text.batches import TrainingBatches

    rows = TrainingBatches.rows

    def broken(self, step, *span):
        if step == 5:
            print("fails at", __import__("time").monotonic(), flush=True)
            raise DataError("shard is damaged", path="a.bin", why="too short", fix="make it anew")
        return rows(self, step, *span)

    TrainingBatches.rows = broken
"""


@pytest.mark.slow
def test_data_that_one_process_cannot_read_ends_both(data: Path, tmp_path: Path) -> None:
    args = pretrain(data, tmp_path / "run", "--steps", 100_000)
    code = COMMAND_LINE.replace("from jaxgpt.cli", BROKEN_DATA + "from jaxgpt.cli")
    with Job(tmp_path / "job", code, *args) as job:
        assert job.ended() == [65, 65], job.all_said()
        assert job.errors() == [[f"process 1: {DAMAGED}"], [DAMAGED]]
        [failed] = re.findall(r"fails at (\S+)", job.printed(1))
        assert job.seconds_after(float(failed)) < SOON
        assert "step 4:" in job.said(0)


@pytest.mark.slow
def test_a_run_directory_that_is_not_shared_is_refused(data: Path, tmp_path: Path) -> None:
    args = pretrain(data, tmp_path / "run-PROCESS", "--steps", 2)
    with Job(tmp_path / "job", COMMAND_LINE, *args) as job:
        assert job.ended() == [2, 2], job.all_said()
        [[error], [other]] = job.errors()
    assert error == other and "the folder is not shared" in error and "run-1" in error
    assert not (tmp_path / "run-1").exists() and not list(tmp_path.glob("run-0/*.json*"))


def test_a_run_directory_in_use_is_refused_by_all(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with filelock.FileLock(run / ".lock"), Job(tmp_path / "job", COMMAND_LINE, *pretrain(data, run)) as job:
        assert job.ended() == [69, 69], job.all_said()
        [[error], [other]] = job.errors()
    assert error == other and "in use" in error


def test_processes_of_different_settings_are_refused(data: Path, tmp_path: Path) -> None:
    args = pretrain(data, tmp_path / "run", "--seed", "PROCESS")
    with Job(tmp_path / "job", COMMAND_LINE, *args) as job:
        assert job.ended() == [2, 2], job.all_said()
        [[error], [other]] = job.errors()
    assert (
        error == other and "disagree about their settings: seed is 1 in process 1 and 0 in process 0" in error
    )
    assert not (tmp_path / "run").exists()
