"""torch's file format before 1.6: five pickles one after another, then the storages.

The pickles hold a magic number, the version of the format, the machine's byte order, the tree, and the keys
of the storages. Then each storage follows, in the order of the keys: its number of elements in 8 bytes, and
the elements. Source: pytorch/pytorch, torch/serialization.py (`_legacy_save`).
"""

from io import BufferedReader
from pathlib import Path
from typing import Any

from jaxgpt.weights.formats.torch_pickle import LARGEST_PICKLE, read_pickle
from jaxgpt.weights.formats.torch_storage import Span, Storages, refused

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


def open_legacy(path: Path, file: BufferedReader) -> Any:
    """Return the tree of a file, whose tensors are not read yet.

    Raises DataError when the file is damaged or is not what torch saves.
    """
    content = file.read(LARGEST_PICKLE)
    storages = Storages(path)
    parts, at = [], 0
    for _ in range(5):
        part, at = read_pickle(content, at, storages)
        parts.append(part)
        if parts[0] != MAGIC:
            raise refused(path, "it begins with a pickle, but not with torch's magic number")
    _, version, machine, tree, keys = parts
    if version != VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise refused(path, "it is of another version or byte order")
    storages.place(_spans(file, at, keys, storages))
    return tree


def _spans(file: BufferedReader, at: int, keys: Any, storages: Storages) -> dict[str, Span]:
    texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not texts or sorted(keys) != sorted(storages.named):
        raise refused(storages.path, "its list of storages is not that of its tensors")
    spans = {}
    for key in keys:
        storage = storages.named[key]
        file.seek(at)
        if file.read(8) != storage.count.to_bytes(8, "little"):
            raise refused(storages.path, f"its storage {key} is damaged, or the file is cut short")
        spans[key] = Span(at + 8, storage.size)
        at += 8 + storage.size
    if at != file.seek(0, 2):
        raise refused(storages.path, "it is cut short, or something follows its last storage")
    return spans
