"""A prepared folder is checked to the bit before it is used, and every problem is named at once."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxgpt.errors import DataError, MissingError
from jaxgpt.files import file_sha256
from jaxgpt.text import prepared
from jaxgpt.text.manifest import Manifest
from jaxgpt.text.prepare import prepare
from jaxgpt.text.prepared import SOUND_FILE, check_prepared
from jaxgpt.text.shards import shard_header
from jaxgpt.text.tokenizer import byte_tokenizer, gpt2_tokenizer

BYTES = byte_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four shards for training and one for validation, of bytes."""
    (tmp_path / "a.txt").write_text(" ".join(map(str, range(180))))
    prepare([str(tmp_path / "a.txt")], tmp_path / "data", tokenizer="bytes", shard_tokens=150)
    return tmp_path / "data"


def refused(folder: Path, kind: type[Exception] = DataError, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        check_prepared(folder, BYTES, **more)
    return str(caught.value)


def change(path: Path, place: int) -> None:
    """Flip a bit, also where the clock stands still."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def test_what_prepare_wrote_is_sound_and_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[str]()

    def counted(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(prepared, "file_sha256", counted)
    check_prepared(folder, BYTES, splits=["val"])
    assert read == ["val_000000.bin"]
    check_prepared(folder, BYTES)
    assert sorted(read) == [*(f"train_{n:06d}.bin" for n in range(4)), "val_000000.bin"]
    check_prepared(folder, BYTES)
    assert len(read) == 5
    (folder / SOUND_FILE).write_text("[" * 100_000)  # a damaged memory only costs time
    check_prepared(folder, BYTES)
    assert len(read) == 10


def test_flipped_bits_exchanged_shards_and_another_tokenizer_are_seen_at_once(folder: Path) -> None:
    check_prepared(folder, BYTES)
    change(folder / "train_000001.bin", 1100)
    change(folder / "val_000000.bin", -1)
    names = [folder / f"train_00000{n}.bin" for n in (0, 2)]
    contents = [path.read_bytes() for path in names]
    for path, content in zip(names, reversed(contents), strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
    with pytest.raises(DataError) as caught:
        check_prepared(folder, gpt2_tokenizer())
    for said in ("bytes's, of 257 ids", "train_000000.bin has", "train_000001", "train_000002", "val_000000"):
        assert said in str(caught.value)
    assert "train_000003" not in str(caught.value)


def test_an_id_outside_the_vocabulary_is_found_with_its_place(folder: Path) -> None:
    """The manifest states the very file; only its tokens are none of the tokenizer's."""
    path = folder / "train_000001.bin"
    ids = np.arange(150, dtype="<u2")
    ids[[42, 77]] = 257, 60_000
    path.write_bytes(shard_header("uint16", 150) + ids.tobytes())
    table = json.loads((folder / "manifest.json").read_text())
    table["splits"]["train"]["shards"][1]["sha256"] = file_sha256(path)
    (folder / "manifest.json").write_text(json.dumps(table))
    assert "train_000001.bin: token 42 is 257, but the vocabulary has 257 ids" in refused(folder)


def test_missing_files_of_both_splits_are_named_together(folder: Path) -> None:
    for name in ("train_000002.bin", "val_000000.bin"):
        (folder / name).unlink()
    said = refused(folder, MissingError)
    assert "cannot use 2 of 5" in said and "train_000002.bin" in said and "val_000000.bin" in said


def test_a_folder_that_cannot_be_written_is_checked_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / f"{SOUND_FILE}.part").mkdir()
    check_prepared(folder, BYTES)
    assert not (folder / SOUND_FILE).exists()
    change(folder / "val_000000.bin", -1)
    assert "val_000000.bin has changed" in refused(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vocab": 70_000}, "dtype is uint16, but 70000 ids need uint32"),
        ({"end_of_text": 257}, "end_of_text is 257, and the vocabulary has 257 ids"),
        ({"val_fraction": float("nan")}, "val_fraction is nan, not from 0 to 1"),
        ({"shard_tokens": 0}, "a number of tokens is less than it can be"),
        ({"file": "/etc/passwd"}, "the file '/etc/passwd' is not a name in the folder"),
        ({"file": "../a.bin"}, "the file '../a.bin' is not a name in the folder"),
        ({"file": "val_000000.bin"}, "the file 'val_000000.bin' is there 2 times"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(folder: Path, change: dict[str, Any], why: str) -> None:
    table = json.loads((folder / "manifest.json").read_text())
    if "file" in change:
        table["splits"]["train"]["shards"][0]["file"] = change["file"]
    else:
        table |= change
    (folder / "manifest.json").write_text(json.dumps(table))
    with pytest.raises(DataError) as caught:
        Manifest.load(folder)
    assert why in str(caught.value)
