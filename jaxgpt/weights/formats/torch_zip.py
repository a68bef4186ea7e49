"""Files of torch.save, read and written without torch. Nothing is ever unpickled (see `torch_pickle`).

Since torch 1.6 such a file is a zip with uncompressed members: `NAME/data.pkl` holds the tree, which refers
to the storages; `NAME/data/0` and so on hold the storages; a few others are small. Python's zipfile accepts
members that overlap, that occur twice, or whose two descriptions differ. All of these are refused here.

Source: pytorch/pytorch, caffe2/serialize/inline_container.cc; PKWARE's APPNOTE.TXT (the zip format).
"""

import math
import struct
import zipfile
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.errors import JaxgptError, MissingError, unreadable
from jaxgpt.files import replacing
from jaxgpt.weights.formats.torch_legacy import open_legacy
from jaxgpt.weights.formats.torch_pickle import LARGEST_PICKLE, LONGEST_INTEGER, STORAGE_KEY, read_pickle
from jaxgpt.weights.formats.torch_storage import STORAGE_CLASSES, Span, Storages, read_into, refused, shown
from jaxgpt.weights.tensors import Tensor

# Signature, version, flags, method, time, date, CRC, two sizes, two lengths.
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
LARGEST_DIRECTORY = 1 << 22  # bytes; a member takes about 100
END, END_64, LOCATOR_64 = 22, 56, 20  # sizes in bytes of the records at the end of a zip
SIZES_BEHIND, UTF_8 = 0x8, 0x800  # flags: the CRC and sizes follow the data; the names are UTF-8
NOT_IN_32_BITS = 0xFFFFFFFF
TREE, BYTE_ORDER, STORAGE = "data.pkl", "byteorder", "data/"
OTHERS = {"version", ".format_version", ".storage_alignment", ".data/serialization_id"}
ALIGNMENT = 64  # bytes; torch.save writes its storages at multiples of this
FOLDER = "archive"
CLASSES = {dtype: name for name, dtype in STORAGE_CLASSES.items()}


def open_torch(path: Path) -> Any:
    """Return the tree in a torch file: dicts, lists, tuples, numbers and strings, and Tensors.

    A Tensor reads the file each time it is asked for its numbers, and verifies the checksum of its storage
    then. Raises DataError when the file is damaged, holds anything else, or asks for anything to be executed;
    MissingError when there is no such file; StorageError when reading fails.
    """
    try:
        with path.open("rb") as file:
            first = file.read(4)
            file.seek(0)
            if first == b"PK\x03\x04":
                return _open_zip(path, file)
            if first[:1] == b"\x80":
                return open_legacy(path, file)
    except FileNotFoundError:
        raise MissingError(
            "no weights", path=path, why="there is no such file", fix="name a torch file"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from error
    raise refused(path, "it is neither a zip nor torch's older format")


def _open_zip(path: Path, file: BufferedReader) -> Any:
    members = _members(path, file)
    [folder] = {name.split("/")[0] for name in members}
    spans = {name.removeprefix(f"{folder}/"): span for name, span in members.items()}
    if TREE not in spans:
        raise refused(path, f"it has no {TREE}")
    if BYTE_ORDER in spans and _small(path, file, spans[BYTE_ORDER], BYTE_ORDER, 16) != b"little":
        raise refused(path, "its byte order is not little")
    storages = Storages(path)
    content = _small(path, file, spans[TREE], TREE, LARGEST_PICKLE)
    tree, end = read_pickle(content, 0, storages)
    if end < len(content):
        raise refused(path, "something follows its pickle")
    keys = spans.keys() - OTHERS - {TREE, BYTE_ORDER}
    if odd := [
        key for key in keys if not (key.startswith(STORAGE) and STORAGE_KEY.fullmatch(key, len(STORAGE)))
    ]:
        raise refused(path, f"it has a member {shown(min(odd))}")
    storages.place({key.removeprefix(STORAGE): spans[key] for key in keys})
    return tree


def _small(path: Path, file: BufferedReader, span: Span, name: str, most: int) -> bytes:
    """Return the whole content of a small member."""
    if span.size > most:
        raise refused(path, f"its {name} has {span.size} bytes, more than {most}")
    content = np.empty(span.size, np.uint8)
    if not read_into(file, span.start, content, span.crc32):
        raise refused(path, f"its {name} is damaged")
    return content.tobytes()


def _members(path: Path, file: BufferedReader) -> dict[str, Span]:
    """Return where the data of every member lies.

    Raises DataError unless they are in one folder, follow one another, and are each described in one way.
    """
    _check_size_of_directory(path, file)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
            end = archive.start_dir
    except OSError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds of error for a damaged directory
        raise refused(path, shown(f"zip directory: {error}")) from error
    if not infos or len({info.filename.split("/")[0] for info in infos}) > 1 or "/" not in infos[0].filename:
        raise refused(path, "its members are not in one folder")
    members: dict[str, Span] = {}
    at = 0
    for info in infos:
        # The first header begins the file: others may read a zip that follows something else differently.
        if info.header_offset < at or (not members and at != info.header_offset):
            raise refused(path, f"member {shown(info.filename)} overlaps another, or does not begin the file")
        if info.filename in members:
            raise refused(path, f"it has member {shown(info.filename)} twice")
        start = _start_of_data(path, file, info)
        at = start + info.file_size
        if at > end:
            raise refused(path, f"member {shown(info.filename)} ends outside the file")
        members[info.filename] = Span(start, info.file_size, info.CRC)
    return members


def _start_of_data(path: Path, file: BufferedReader, info: zipfile.ZipInfo) -> int:
    """Return where the data of a member begins.

    Raises DataError when the header before the data differs from the entry in the directory.
    """
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise refused(path, f"member {shown(info.filename)} has no header")
    _, _, flags, method, _, _, crc, packed, size, name_size, extra_size = LOCAL_HEADER.unpack(header)
    name = info.orig_filename.encode("utf-8" if flags & UTF_8 else "cp437", "replace")
    if file.read(name_size) != name or flags != info.flag_bits or info.filename != info.orig_filename:
        raise refused(path, f"member {shown(info.filename)} has another name or kind in its header")
    if method or info.compress_type or flags & ~(SIZES_BEHIND | UTF_8):
        raise refused(path, f"member {shown(info.filename)} is compressed or encrypted")
    sizes = [min(info.file_size, NOT_IN_32_BITS)] * 2
    stated = [[info.CRC, *sizes]] + ([[0, 0, 0]] if flags & SIZES_BEHIND else [])
    if info.compress_size != info.file_size or [crc, packed, size] not in stated:
        raise refused(path, f"member {shown(info.filename)} has another size or checksum in its header")
    return info.header_offset + LOCAL_HEADER.size + int(name_size) + int(extra_size)


def _check_size_of_directory(path: Path, file: BufferedReader) -> None:
    """Refuse a zip with a large directory, because zipfile needs many times its size in memory."""
    length = file.seek(0, 2)
    file.seek(max(length - END - LOCATOR_64 - END_64, 0))
    tail = file.read()
    if tail[-END : -END + 4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        raise refused(path, "it has no zip directory at its end: it is cut short")
    size = int.from_bytes(tail[-10:-6], "little")
    if tail[END_64 : END_64 + 4] == b"PK\x06\x07":  # the zip has members at places beyond 32 bits
        place, size = int.from_bytes(tail[64:72], "little"), int.from_bytes(tail[40:48], "little")
        if tail[:4] != b"PK\x06\x06" or place != length - len(tail):
            raise refused(path, "its zip directory is in an unusual place")
    if size > LARGEST_DIRECTORY:
        raise refused(path, f"its zip directory has {size} bytes, more than {LARGEST_DIRECTORY}")


def write_torch(path: Path, tree: dict[str, Any]) -> None:
    """Write a file that torch.load opens, also with weights_only and mmap.

    Only one tensor is in memory at a time. `tree` holds dicts, lists, tuples, numbers, strings, None and
    Tensors. A Tensor that occurs twice, or two with equal sources, are stored once. The file is written whole
    or not at all. Raises StorageError when writing fails, JaxgptError when a tensor reads as something other
    than its shape and dtype say.
    """
    content, tensors = _pickled(tree)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, small in ((TREE, content), (BYTE_ORDER, b"little"), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}"), small)
        for key, tensor in enumerate(tensors):
            _write_storage(archive, f"{FOLDER}/{STORAGE}{key}", file.tell(), tensor)


def _write_storage(archive: zipfile.ZipFile, name: str, at: int, tensor: Tensor) -> None:
    """Append a storage. As in torch's own files, a field FB fills the space up to a multiple of 64 bytes."""
    array = tensor.read()
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise JaxgptError(
            f"tensor {tensor.dtype}{list(tensor.shape)}",
            why=f"it reads as {array.dtype}{list(array.shape)}",
            fix="report this as a bug of jaxgpt",
        )
    info = zipfile.ZipInfo(name)
    info.file_size = array.nbytes
    large = array.nbytes > 1 << 30  # well below the size at which zipfile itself would choose 64-bit sizes
    before = at + LOCAL_HEADER.size + len(name) + 4 + (20 if large else 0)
    padding = -before % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as member:
        member.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _pickled(tree: Any) -> tuple[bytes, list[Tensor]]:
    """Return the pickle of a tree, for torch, and its tensors; tensor i is storage i.

    A tensor that occurs twice is one storage.
    """
    keys: dict[object, int] = {}
    tensors: list[Tensor] = []

    def written(node: Any) -> bytes:
        match node:
            case None | True | False:
                return {None: b"N", True: b"\x88", False: b"\x89"}[node]
            case int() if -(1 << 31) <= node < 1 << 31:
                return b"J" + node.to_bytes(4, "little", signed=True)
            case int():
                return (
                    b"\x8a" + bytes([LONGEST_INTEGER]) + node.to_bytes(LONGEST_INTEGER, "little", signed=True)
                )
            case float():
                return b"G" + struct.pack(">d", node)
            case str():
                return b"X" + struct.pack("<I", len(text := node.encode())) + text
            case dict():
                return b"}(" + b"".join(written(key) + written(value) for key, value in node.items()) + b"u"
            case list():
                return b"](" + b"".join(map(written, node)) + b"e"
            case tuple():
                return b"(" + b"".join(map(written, node)) + b"t"
            case Tensor():
                key = keys.setdefault(id(node) if node.source is None else node.source, len(tensors))
                tensors.extend([node] if key == len(tensors) else [])
                return _written_tensor(node, written, key)
        raise TypeError(f"torch's files hold no {type(node).__name__}")

    return b"\x80\x02" + written(tree) + b".", tensors


def _written_tensor(tensor: Tensor, written: Callable[[Any], bytes], key: int) -> bytes:
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    identity = b"(" + written("storage") + _written_name(f"torch.{CLASSES[tensor.dtype]}")
    identity += b"".join(map(written, (str(key), "cpu", math.prod(tensor.shape)))) + b"tQ"
    hooks = _written_name("collections.OrderedDict") + b")R"
    view = b"".join(map(written, (0, tensor.shape, tuple(strides), False)))
    return _written_name("torch._utils._rebuild_tensor_v2") + b"(" + identity + view + hooks + b"tR"


def _written_name(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()
