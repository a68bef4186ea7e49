"""Data, manifests, recipes and tables with faults, for tools/soak.py."""

import contextlib
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from soak_faults import TEXT, Outcome

from jaxgpt.cli import main as jaxgpt_command

LONGEST = 5.0  # seconds that a refusal may take
Fault = tuple[str, tuple[list[Any], str]]
"""Its name, a command line, and what the message must have in it."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Give data with faults: a documented exit code in five seconds, and the file named."""

    def run(self, folder: Path) -> Outcome:
        codes, problems, slowest = Counter[int](), list[str](), 0.0
        faults = dict(_faults(folder))
        compiled = RuntimeError("the training step would be compiled")
        with mock.patch("jaxgpt.training.run.compile_step", side_effect=compiled):
            for name, (argv, named) in faults.items():
                since, said = time.monotonic(), io.StringIO()
                code: Any = 0
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                    try:
                        jaxgpt_command([str(arg) for arg in argv])
                    except SystemExit as end:
                        code = end.code
                seconds = time.monotonic() - since
                slowest = max(slowest, seconds)
                codes[code] += 1
                last = said.getvalue().strip().splitlines()[-1:]
                if code not in (2, 65, 66) or named not in said.getvalue() or seconds > LONGEST:
                    problems.append(f"{name}: code {code} after {seconds:.1f} s: {last}")
        told = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
        return Outcome(f"{len(faults)} faults: {told}; the slowest took {slowest:.1f} s", problems)


def _faults(folder: Path) -> Iterator[Fault]:
    """Each fault by its name: a command line, and what its message must have in it."""
    folder.mkdir(exist_ok=True)
    (folder / "tables.txt").write_text(TEXT)
    jaxgpt_command(
        [
            *("prepare", str(folder / "tables.txt"), "--out", str(folder / "sound")),
            *("--tokenizer", "bytes", "--shard-tokens", "5000"),
        ]
    )

    def prepared(name: str, act: Callable[[Path], None], said: str) -> Fault:
        out = folder / name.replace(" ", "-")
        shutil.copytree(folder / "sound", out)
        act(out)
        argv = ["pretrain", "nano", "--data.path", out, "--out-dir", folder / "run", "--model.context", "16"]
        return name, (argv, said)

    def manifest(name: str, said: str = "manifest.json", **changes: Any) -> Fault:
        def act(out: Path) -> None:
            table = json.loads((out / "manifest.json").read_text())
            (out / "manifest.json").write_text(json.dumps(table | changes))

        return prepared(f"manifest {name}", act, said)

    def shards(name: str, **changes: Any) -> Fault:
        def act(out: Path) -> None:
            table = json.loads((out / "manifest.json").read_text())
            table["splits"]["train"]["shards"][0] |= changes
            (out / "manifest.json").write_text(json.dumps(table))

        return prepared(f"shard {name}", act, "manifest.json")

    def rewritten(name: str, change: Callable[[bytes], bytes], file: str) -> Fault:
        return prepared(name, lambda out: _rewrite(out / file, change), file)

    yield manifest("vocabulary", "bytes's, of 300 ids", vocab=300)
    yield manifest("larger vocabulary", vocab=70_000)
    yield manifest("vocabulary as text", vocab="257")
    yield manifest("dtype", dtype="uint32")
    yield manifest("other dtype", dtype="int8")
    yield manifest("tokenizer", "the tokenizer beside them", tokenizer_sha256="0" * 64)
    yield manifest("not a number", val_fraction=float("nan"))
    yield manifest("end of text", end_of_text=-1)
    yield manifest("format", format=99)
    yield manifest("splits", splits={})
    yield manifest("extra", extra=1)
    yield shards("twice", file="val_000000.bin")
    yield shards("absolute", file="/etc/hostname")
    yield shards("outside", file="../tables.txt")
    yield shards("count", tokens=4999)
    yield shards("negative", tokens=-1)
    first, val = "train_000000.bin", "val_000000.bin"
    yield rewritten("manifest nested", lambda _: b"[" * 100_000, "manifest.json")
    yield rewritten("manifest empty", lambda _: b"", "manifest.json")
    yield rewritten("manifest cut", lambda old: old[:-9], "manifest.json")
    yield rewritten("manifest not UTF-8", lambda old: b"\xff" + old, "manifest.json")
    yield rewritten("bit flipped", lambda old: old[:2000] + bytes([old[2000] ^ 1]) + old[2001:], first)
    yield rewritten("id outside", lambda old: old[:1024] + b"\xff\xff" + old[1026:], first)
    yield rewritten("validation flipped", lambda old: old[:-2] + bytes([old[-2] ^ 1]) + old[-1:], val)
    yield rewritten("shard cut", lambda old: old[:-1], first)
    yield rewritten("shard empty", lambda _: b"", first)
    yield rewritten("shard magic", lambda old: b"x" + old[1:], val)
    exchanged = b"YQ== 98\nYg== 97\n"
    yield rewritten(
        "tokens exchanged", lambda old: old.replace(b"YQ== 97\nYg== 98\n", exchanged), "tokenizer"
    )
    yield rewritten("tokenizer cut", lambda old: old[:-20], "tokenizer.tiktoken")
    yield prepared("shard missing", lambda out: (out / first).unlink(), first)
    yield prepared("validation missing", lambda out: (out / val).unlink(), val)
    yield prepared("tokenizer missing", lambda out: (out / "tokenizer.tiktoken").unlink(), "tokenizer")

    def text(name: str, content: bytes, said: str, file: str = "a.txt") -> Fault:
        path = folder / "texts" / name.replace(" ", "-") / file
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return f"text {name}", (["prepare", path, "--out", path.parent / "out", "--tokenizer", "bytes"], said)

    yield text("not UTF-8", b"abc\xff", "a.txt")
    yield text("empty", b"", "a.txt")
    yield text("of one letter", b"a", "a.txt")
    yield text("binary", b"a\0b", "a.txt")
    yield text("picture", b"\x89PNG....", "a.txt")
    yield text("gzip cut", b"\x1f\x8b\x08", "a.txt.gz", "a.txt.gz")
    yield text("JSON nested", b'{"text": ' + b"[" * 100_000, "line 1", "a.jsonl")
    yield text("JSON without text", b'{"txt": "a"}\n', "line 1", "a.jsonl")
    yield text("surrogate", b'{"text": "\\ud800"}\n', "line 1", "a.jsonl")
    yield text("tokens cut", b"\x00" * 1025, "a.bin", "a.bin")
    os.mkfifo(folder / "pipe")
    for name in ("/dev/zero", str(folder / "absent")):
        yield f"text {name}", (["prepare", name, "--out", folder / "out-of-it", "--tokenizer", "bytes"], name)

    def recipe(name: str, content: bytes) -> Fault:
        path = folder / f"recipe-{name.replace(' ', '-')}.toml"
        path.write_bytes(content)
        return f"recipe {name}", (["pretrain", path], str(path))

    yield recipe("nested", b"steps = " + b"[" * 100_000)
    yield recipe("long number", b"steps = " + b"9" * 5_000)
    yield recipe("not UTF-8", b"steps = 1 # \xff")
    yield recipe("unknown keys", b"stepz = 1\nmodle = 2\n")
    yield recipe("types", b'steps = "many"\nseed = 1.5\n')

    def table(name: str, content: bytes, file: str) -> Fault:
        path = folder / f"table-{name.replace(' ', '-')}{file}"
        path.write_bytes(content)
        argv = ["finetune", "classify", "--from", folder / "absent", "--data.path", path]
        return f"table {name}", ([*argv, "--out-dir", folder / "run"], "")

    yield table("nested", b"[" * 100_000, ".json")
    yield table("not UTF-8", b"label,text\nham,\xff\n", ".csv")
    yield table("one label", b"label,text\nham,a\nham,b\n", ".csv")


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path = path if path.is_file() else path.with_name("tokenizer.tiktoken")
    path.write_bytes(change(path.read_bytes()))
