"""Files with faults, and the commands that must refuse them, for tools/soak_data.py."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from operator import methodcaller
from pathlib import Path
from typing import Any

from soak_faults import TEXT, train

from jaxgpt.cli import main as jaxgpt_command
from jaxgpt.text.manifest import MANIFEST_FILE as MANIFEST
from jaxgpt.text.tokenizer import TOKENIZER_FILE

Fault = tuple[str, tuple[list[Any], str]]
"""Its name, a command line, and what the message must have in it."""
TRAIN, VAL = "train_000000.bin", "val_000000.bin"
NESTED = b"[" * 100_000

MANIFESTS: dict[str, dict[str, Any]] = {
    "larger vocabulary": {"vocab": 70_000},
    "vocabulary as text": {"vocab": "257"},
    "vocabulary zero": {"vocab": 0},
    "vocabulary in part": {"vocab": 257.5},
    "vocabulary beyond all": {"vocab": 10**400},
    "dtype": {"dtype": "uint32"},
    "other dtype": {"dtype": "int8"},
    "not a number": {"val_fraction": float("nan")},
    "share below zero": {"val_fraction": -0.5},
    "shard size": {"shard_tokens": 0},
    "end of text": {"end_of_text": -1},
    "end of text beyond": {"end_of_text": 257},
    "format": {"format": 99},
    "format as text": {"format": "1"},
    "no splits": {"splits": {}},
    "splits as list": {"splits": []},
    "sources": {"sources": 7},
    "extra": {"extra": 1},
}
SHARDS: dict[str, dict[str, Any]] = {
    "twice": {"file": VAL},
    "absolute": {"file": "/etc/hostname"},
    "outside": {"file": "../tables.txt"},
    "without name": {"file": ""},
    "null": {"file": None},
    "NUL": {"file": "a\0b"},
    "count": {"tokens": 4999},
    "negative": {"tokens": -1},
    "count as text": {"tokens": "5000"},
    "short hash": {"sha256": "0"},
}
REWRITTEN: tuple[tuple[str, str, Callable[[bytes], bytes]], ...] = (
    ("manifest nested", MANIFEST, lambda _: NESTED),
    ("manifest list", MANIFEST, lambda _: b"[]"),
    ("manifest empty", MANIFEST, lambda _: b""),
    ("manifest cut", MANIFEST, lambda old: old[:-9]),
    ("manifest not UTF-8", MANIFEST, lambda old: b"\xff" + old),
    ("bit flipped", TRAIN, lambda old: old[:2000] + bytes([old[2000] ^ 1]) + old[2001:]),
    ("id outside", TRAIN, lambda old: old[:1024] + b"\xff\xff" + old[1026:]),
    ("validation flipped", VAL, lambda old: old[:-2] + bytes([old[-2] ^ 1]) + old[-1:]),
    ("shard cut", TRAIN, lambda old: old[:-1]),
    ("shard longer", TRAIN, lambda old: old + b"\0\0"),
    ("shard empty", TRAIN, lambda _: b""),
    ("shard magic", VAL, lambda old: b"x" + old[1:]),
    ("shard version", VAL, lambda old: old[:4] + b"\7" + old[5:]),
    ("tokenizer cut", TOKENIZER_FILE, lambda old: old[:-20]),
    ("tokenizer empty", TOKENIZER_FILE, lambda _: b""),
)
TEXTS: dict[str, tuple[bytes, str, str]] = {  # what the file holds, its name, what the message has in it
    "not UTF-8": (b"abc\xff", "a.txt", "a.txt"),
    "UTF-16": ("two words".encode("utf-16"), "a.txt", "a.txt"),
    "cut inside of a letter": ("é".encode()[:1], "a.txt", "a.txt"),
    "overlong": (b"a\xc0\xafb", "a.txt", "a.txt"),
    "half of a pair": (b"a\xed\xa0\x80b", "a.txt", "a.txt"),
    "empty": (b"", "a.txt", "a.txt"),
    "of one letter": (b"a", "a.txt", "a.txt"),
    "binary": (b"a\0b", "a.txt", "a.txt"),
    "picture": (b"\x89PNG....", "a.txt", "a.txt"),
    "gzip cut": (b"\x1f\x8b\x08", "a.txt.gz", "a.txt.gz"),
    "gzip cut later": (gzip.compress(TEXT.encode())[:-20], "a.txt.gz", "a.txt.gz"),
    "gzip of no text": (gzip.compress(b"abc\xff" * 9), "a.txt.gz", "a.txt.gz"),
    "JSON nested": (b'{"text": ' + NESTED, "a.jsonl", "line 1"),
    "JSON without text": (b'{"txt": "a"}\n', "a.jsonl", "line 1"),
    "JSON with a number": (b'{"text": "a"}\n{"text": 1}\n', "a.jsonl", "line 2"),
    "JSON with nothing": (b'{"text": null}\n', "a.jsonl", "line 1"),
    "JSON list": (b'["a"]\n', "a.jsonl", "line 1"),
    "JSON cut": (b'{"text": "a"}\n{"text": "b', "a.jsonl", "line 2"),
    "JSON of a long number": (b'{"text": ' + b"9" * 5_000 + b"}\n", "a.jsonl", "line 1"),
    "surrogate": (b'{"text": "\\ud800"}\n', "a.jsonl", "line 1"),
    "tokens cut": (b"\x00" * 1025, "a.bin", "a.bin"),
    "tokens without header": (b"", "a.bin", "a.bin"),
    "a name with a newline": (b"abc\xff", "a\nb.txt", "b.txt"),
    "a name that is no UTF-8": (b"abc\xff", os.fsdecode(b"\xff.txt"), ".txt"),
}
RECIPES = {  # what the file holds, and what the message has in it, where that is not the file's name
    "nested": b"steps = " + NESTED,
    "long number": b"steps = " + b"9" * 5_000,
    "large number": (b"steps = " + b"9" * 30, "steps"),
    "not UTF-8": b"steps = 1 # \xff",
    "cut": b'steps = 10\ntask = "pre',
    "twice": b"steps = 1\nsteps = 2\n",
    "unknown keys": b"stepz = 1\nmodle = 2\n",
    "types": b'steps = "many"\nseed = 1.5\n',
    "date": b"steps = 2026-01-01\n",
    "table for a number": b"[steps]\na = 1\n",
    "number for a table": b"model = 1\n",
    "not a number": (b"[optim]\nlearning_rate = nan\n", "learning_rate"),
    "infinite": (b"[optim]\nlearning_rate = inf\n", "learning_rate"),
    "no steps": (b"steps = -1\n", "steps"),
    "no batch": (b"batch = 0\n", "batch"),
    "heads": (b"[model]\nwidth = 10\nheads = 3\n", "width"),
    "no context": (b"[model]\ncontext = 0\n", "context"),
    "choice": b'[optim]\nschedule = "stairs"\n',
    "base": b'base = "absent"\n',
}
TABLES = {  # of two columns, label and text
    "nested.json": NESTED,
    "a number.json": b"1",
    "numbers.json": b"[1, 2]",
    "cut.json": b'[{"label": "a", "text": "b"}',
    "no rows.json": b"[]",
    "half a pair.json": b'[{"label": "a", "text": "\\ud800"}, {"label": "b", "text": "c"}]',
    "empty.csv": b"",
    "header alone.csv": b"label,text\n",
    "not UTF-8.csv": b"label,text\nham,\xff\n",
    "one label.csv": b"label,text\nham,a\nham,b\n",
    "no such column.csv": b"a,b\nham,a\nspam,b\n",
    "column twice.csv": b"label,label,text\nham,ham,a\nspam,ham,b\n",
    "short row.csv": b"label,text\nham\nspam,b\n",
    "NUL.csv": b"label,text\nham,a\0b\nspam,b\n",
    "other kind.xlsx": b"PK\x03\x04",
}


def faults(folder: Path) -> Iterator[Fault]:
    """Each fault by its name: a command line, and what its message must have in it."""
    folder.mkdir(exist_ok=True)
    yield from _prepared(folder)
    yield from _texts(folder / "texts")
    for name, recipe in RECIPES.items():
        content, said = recipe if isinstance(recipe, tuple) else (recipe, "")
        path = folder / f"recipe-{name.replace(' ', '-')}.toml"
        path.write_bytes(content)
        out = path.with_suffix("")
        yield f"recipe {name}", (["pretrain", path, "--out-dir", out], said or path.name)
    model = train(folder, folder / "model", steps=1)
    for name, content in TABLES.items():
        path = folder / f"table-{name.replace(' ', '-')}"
        path.write_bytes(content)
        argv = ["finetune", "classify", "--from", model, "--data.path", path, "--out-dir", folder / "run"]
        yield f"table {name}", (argv, path.name)


def _prepared(folder: Path) -> Iterator[Fault]:
    """Faults in what `jaxgpt prepare` wrote."""
    (folder / "tables.txt").write_text(TEXT)
    jaxgpt_command(
        [
            *("prepare", str(folder / "tables.txt"), "--out", str(folder / "sound")),
            *("--tokenizer", "bytes", "--shard-tokens", "5000"),
        ]
    )

    def fault(name: str, act: Callable[[Path], object], said: str) -> Fault:
        out = folder / name.replace(" ", "-")
        shutil.copytree(folder / "sound", out)
        act(out)
        argv = ["pretrain", "nano", "--data.path", out, "--out-dir", folder / "run", "--model.context", "16"]
        return name, (argv, said)

    def manifest(name: str, change: Callable[[dict[str, Any]], object], said: str = MANIFEST) -> Fault:
        def act(out: Path) -> None:
            table = json.loads((out / MANIFEST).read_text())
            change(table)
            (out / MANIFEST).write_text(json.dumps(table))

        return fault(name, act, said)

    def shard(name: str, change: Callable[[dict[str, Any]], object], said: str = MANIFEST) -> Fault:
        return manifest(name, lambda table: change(table["splits"]["train"]["shards"][0]), said)

    def replaced(name: str, file: str, act: Callable[[Path], object]) -> Fault:
        return fault(name, lambda out: act(out / file), file)

    def rewritten(name: str, file: str, change: Callable[[bytes], bytes]) -> Fault:
        return replaced(name, file, lambda path: _rewrite(path, change))

    for name, changes in MANIFESTS.items():
        yield manifest(f"manifest {name}", methodcaller("update", changes))
    for name, changes in SHARDS.items():
        yield shard(f"shard {name}", methodcaller("update", changes))
    yield shard("shard hash", methodcaller("update", {"sha256": "0" * 64}), TRAIN)
    yield manifest("manifest vocabulary", lambda table: table.update(vocab=300), "bytes's, of 300 ids")
    other = {"tokenizer_sha256": "0" * 64}
    yield manifest("manifest tokenizer", lambda table: table.update(other), "the tokenizer beside them")
    yield manifest("manifest without splits", lambda table: table.pop("splits"))
    yield manifest("manifest without validation", lambda table: table["splits"].pop("val"))
    yield manifest("manifest without shards", lambda table: table["splits"]["train"].update(shards=[]))
    yield shard("shard without tokens", methodcaller("pop", "tokens"))

    for name, file, rewrite in REWRITTEN:
        yield rewritten(name, file, rewrite)
    exchanged = b"YQ== 98\nYg== 97\n"
    yield fault(
        "tokens exchanged",
        lambda out: _rewrite(out / TOKENIZER_FILE, lambda old: old.replace(b"YQ== 97\nYg== 98\n", exchanged)),
        "the tokenizer beside them",
    )
    for name, file in {
        "shard": TRAIN,
        "validation": VAL,
        "tokenizer": TOKENIZER_FILE,
        "manifest": MANIFEST,
    }.items():
        yield replaced(f"{name} missing", file, Path.unlink)
        yield replaced(f"{name} a folder", file, _folder_at)
        yield replaced(f"{name} a pipe", file, _pipe_at)
    yield fault("shards exchanged", _exchange, "000000.bin")


def _texts(folder: Path) -> Iterator[Fault]:
    """Faults in texts."""
    for name, (content, file, said) in TEXTS.items():
        path = folder / name.replace(" ", "-") / file
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        out = path.parent / "out"
        yield f"text {name}", (["prepare", path, "--out", out, "--tokenizer", "bytes"], said)
    nothing, turns = folder / "nothing", folder / "turns"
    nothing.mkdir()
    turns.symlink_to(turns)
    for text in ("/dev/zero", folder / "absent", nothing, turns):
        yield f"text {text}", (["prepare", text, "--out", folder / "out", "--tokenizer", "bytes"], str(text))


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _folder_at(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe_at(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _exchange(prepared: Path) -> None:
    """Give a shard of the training's and the first of the validation's each other's name."""
    (prepared / TRAIN).rename(prepared / "x")
    (prepared / VAL).rename(prepared / TRAIN)
    (prepared / "x").rename(prepared / VAL)
