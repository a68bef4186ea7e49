"""Damages recipes and the files of texts at random. Reading one must end in an error of jaxgpt, or go well.

    python tools/fuzz_text.py                  2,000 files of each kind
    python tools/fuzz_text.py --files 200 --seed 7 --kinds recipe manifest

No file may take longer than five seconds or be an internal error. A prepared folder must be refused, or have
the very tokens and the very vocabulary that it had. If a file breaks a rule, its kind and number are printed,
and the exit code is 1.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from fuzz_weights import damage

from jaxgpt.config import flat, load_recipe, recipes_folder
from jaxgpt.errors import JaxgptError
from jaxgpt.inference.prompts import read_examples
from jaxgpt.text.corpus import Text
from jaxgpt.text.dialogues import read_dialogues
from jaxgpt.text.manifest import Manifest
from jaxgpt.text.prepare import prepare
from jaxgpt.text.prepared import check_prepared
from jaxgpt.text.shards import open_split
from jaxgpt.text.tables import read_records
from jaxgpt.text.tokenizer import byte_tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer

LONGEST = 5.0  # seconds that one file may take
TEXT = "".join(f"{a} times {b} is {a * b}.\n" for a in range(30) for b in range(30))
ROWS = [{"text": "one ä", "label": "a", "instruction": "Add", "input": "1", "output": "2"}] * 3


@dataclass(frozen=True, kw_only=True)
class Fuzz:
    """Damage recipes and the files of texts at random."""

    files: int = 2_000
    """How many files of each kind to damage."""
    seed: int = 0
    """Starting point of the random numbers."""
    kinds: tuple[str, ...] = ("recipe", "manifest", "tokens", "jsonl", "table", "tiktoken", "tokenizer.json")
    """Kinds of files to damage."""


class Kind:
    """A kind of file: where it lies, and how it is read. What is read may have to be what was read before."""

    def __init__(self, path: Path, read: Callable[[Path], Any], *, same: bool = False) -> None:
        self.path, self.read = path, read
        self.original = read(path) if same else None

    def broken(self, content: bytes) -> tuple[str, str | None]:
        """How reading this content in place of the file's own ends, and which rule that breaks, if any."""
        before = self.path.read_bytes()
        self.path.write_bytes(content)
        since = time.monotonic()
        ended, why = "read", None
        try:
            found = self.read(self.path)
            if self.original is not None and found != self.original:
                why = "it was read as something else"
        except JaxgptError:
            ended = "refused"
        except BaseException as error:  # noqa: BLE001  Whatever else a reader raises is what this tool looks for.
            ended, why = "broken", repr(error)[:300]
        finally:
            self.path.write_bytes(before)
        seconds = time.monotonic() - since
        return ended, why or (f"it took {seconds:.1f} s" if seconds > LONGEST else None)


def kinds_in(folder: Path) -> dict[str, list[Kind]]:
    """Files of all kinds, made in a folder."""
    (folder / "text.txt").write_text(TEXT)
    prepare([str(folder / "text.txt")], folder / "data", tokenizer="bytes", shard_tokens=5_000)
    shutil.copy(recipes_folder() / "book-lora.toml", folder / "a.toml")
    shutil.copy(recipes_folder() / "nano.toml", folder / "b.toml")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text(lines)
    (folder / "c.json").write_text(json.dumps(ROWS))
    (folder / "examples.jsonl").write_text('{"input": "1", "output": "2"}\n' * 3)
    (folder / "d.csv").write_text('label,text\na,"one, two"\nb,three\n')
    byte_tokenizer().save(folder / "a.tiktoken")
    byte_tokenizer().save_json(folder / "tokenizer.json")
    manifest, shard = folder / "data" / "manifest.json", folder / "data" / "train_000000.bin"
    return {
        "recipe": [
            Kind(folder / name, lambda path: flat(load_recipe(str(path)))) for name in ("a.toml", "b.toml")
        ],
        "manifest": [Kind(manifest, _prepared, same=True)],
        "tokens": [Kind(shard, _prepared, same=True), Kind(shard, _documents)],
        "jsonl": [Kind(folder / "a.jsonl", _documents), Kind(folder / "examples.jsonl", read_examples)],
        "table": [
            Kind(folder / "d.csv", lambda path: read_records(path, ["text", "label"])),
            Kind(folder / "b.jsonl", read_dialogues),
            Kind(folder / "c.json", read_dialogues),
        ],
        "tiktoken": [Kind(folder / "a.tiktoken", load_tokenizer)],
        "tokenizer.json": [Kind(folder / "tokenizer.json", lambda path: load_tokenizer(path).encode("abc"))],
    }


def _prepared(path: Path) -> Any:
    folder = path.parent
    check_prepared(folder, load_tokenizer(folder))
    manifest = Manifest.load(folder)
    splits = [open_split(folder, name) for name in manifest.splits]
    tokens = {
        name: stream.read(0, len(stream)).tobytes()
        for name, stream in zip(manifest.splits, splits, strict=True)
    }
    return manifest.vocab, manifest.fingerprint, tokens


def _documents(path: Path) -> int:
    return sum(len(block.text) for block in Text(path.name, path).blocks())


def main(args: Fuzz) -> None:
    """Damage and read the files, and print how that ended."""
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        kinds = kinds_in(Path(name))
        for kind in args.kinds:
            ends, slowest = Counter[str](), 0.0
            for number in range(args.files):
                rng = random.Random(f"{args.seed} {kind} {number}")
                file = rng.choice(kinds[kind])
                since = time.monotonic()
                ended, broken = file.broken(damage(file.path.read_bytes(), rng))
                slowest = max(slowest, time.monotonic() - since)
                ends[ended] += 1
                if broken:
                    failures += 1
                    print(f"{kind} {args.seed} {number} of {file.path.name}: {broken}", flush=True)
            print(f"{kind}: {args.files} files, {dict(ends)}, the slowest took {slowest:.2f} s", flush=True)
    print(f"{failures} files broke a rule")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main(tyro.cli(Fuzz))
