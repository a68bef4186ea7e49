"""Runs the commands of README as they are printed, in order, in a fresh clone, and says how long each took.

    python tools/run_readme.py --text novels.txt

`--text` is the text of a reader's own, which README calls austen.txt. The commands that stand in `NOT_RUN`
need a network or machines that this one has not; they are named at the end. Everything is made in a temporary
folder, with an environment of its own. The exit code is 1 when a command failed.
"""

import csv
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parent.parent
NOT_RUN = {
    "git clone": "the clone is made from this checkout",
    "pip install '.[cuda": "it needs an NVIDIA GPU",
    "pip install '.[tpu": "it needs a TPU",
    "jaxgpt generate gpt2": "it downloads weights from the hub",
    "jaxgpt convert gpt2": "it downloads weights from the hub",
    "jaxgpt plan gpt2 --topology v5e": "it needs TPUs' compiler, the extra `plan`",
    "jaxgpt pretrain gpt2-medium": "it needs 8 accelerators, or several hosts",
}
TYPED = {"jaxgpt chat": "Good morning.\n/quit\n"}  # what is typed into a command
PAIRS = [{"input": "bread", "output": "pain"}, {"input": "milk", "output": "lait"}]
LABELLED = [
    (label, f"{text} {number}")
    for number in range(40)
    for label, text in (("spam", "Win a free prize, call"), ("ham", "See you at"))
]
DIALOGUES = [
    {"instruction": f"Double {number}.", "output": f"{number} and {number} are {2 * number}."}
    for number in range(40)
]
PREFERENCES = [
    {"prompt": row["instruction"], "chosen": row["output"], "rejected": "I do not know."} for row in DIALOGUES
]
PATIENCE = 3600.0  # seconds for a command
SERVER = "http://127.0.0.1:8000/health"


@dataclass(frozen=True, kw_only=True)
class Args:
    """Run the commands of README, each as it is printed."""

    text: Path
    """The text that README calls austen.txt."""


def commands(readme: str) -> list[str]:
    """Return the command lines in README's console blocks, in order, as they are printed."""
    blocks = re.findall(r"```console\n(.*?)```", readme, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def reason_not_to_run(command: str) -> str | None:
    """Return why a command is left out, or None."""
    return next((why for beginning, why in NOT_RUN.items() if command.startswith(beginning)), None)


def run(command: str, folder: Path) -> int:
    """Run a command in a shell whose environment is the clone's, once there is one; its exit code."""
    activate = "if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi; "
    shell = ["bash", "-c", activate + ("exec " if command.startswith("jaxgpt") else "") + command]
    if command.startswith("jaxgpt serve"):
        return serve(shell, folder)
    typed = next((text for beginning, text in TYPED.items() if command.startswith(beginning)), "")
    return subprocess.run(shell, cwd=folder, input=typed, text=True, timeout=PATIENCE, check=False).returncode


def serve(shell: list[str], folder: Path) -> int:
    """Start the server, wait until it answers, and stop it with Ctrl-C. 0 when it answered."""
    with subprocess.Popen(shell, cwd=folder) as process:
        end, answered = time.monotonic() + 300, False
        while not answered and time.monotonic() < end and process.poll() is None:
            try:
                with urllib.request.urlopen(SERVER, timeout=5) as answer:
                    answered = answer.status == 200
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    return 0 if answered else 1


def main(args: Args) -> None:
    results: list[tuple[str, str]] = []
    failed = False
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "jaxgpt"
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        (folder / "austen.txt").write_bytes(args.text.read_bytes())
        for name, rows in (("pairs", PAIRS), ("preferences", PREFERENCES)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "dialogues.json").write_text(json.dumps(DIALOGUES))
        with (folder / "texts.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("label", "text"), *LABELLED])
        for line in commands((folder / "README.md").read_text(encoding="utf-8")):
            if why := reason_not_to_run(line):
                results.append((f"not run: {why}", line))
                continue
            print(f"\n$ {line}", flush=True)
            start = time.monotonic()
            code = run(line, folder)
            failed = failed or code != 0
            verdict = "" if code == 0 else f"FAILED with {code}, "
            results.append((f"{verdict}{time.monotonic() - start:.0f} s", line))
    print()
    for result, line in results:
        print(f"{result:<45} $ {line}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
