"""TensorFlow's checkpoints of version 2 ("tensor bundles"), read without TensorFlow.

`NAME.index` is a table in LevelDB's format. The empty key holds a header. The name of each variable holds its
shape, the place of its numbers and their checksum. All these values are protobuf messages.
`NAME.data-00000-of-00001` and so on hold nothing but numbers. A table with right checksums may still lie, so
every size is checked before use.

Source: tensorflow/tensorflow, core/util/tensor_bundle, core/lib/io and core/protobuf/tensor_bundle.proto;
google/leveldb, doc/table_format.md; https://protobuf.dev/programming-guides/encoding.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from jaxgpt.errors import DataError, MissingError, unreadable
from jaxgpt.weights.formats.torch_storage import CHUNK, LARGEST_SHAPE, MOST_AXES, shown
from jaxgpt.weights.tensors import DTYPES, Tensor, bytes_of

# types.proto's DataType: the float types; then the bytes that a number takes, also of integer types and bool.
CODES = {1: DTYPES["float32"], 2: np.dtype(np.float64), 14: DTYPES["bfloat16"], 19: DTYPES["float16"]}
SIZES = {3: 4, 4: 1, 5: 2, 6: 1, 9: 8, 10: 1} | {code: dtype.itemsize for code, dtype in CODES.items()}
LARGEST_INDEX = 1 << 20  # bytes; a variable takes about 40, and GPT-2 XL has 580
# A key stores only how it differs from the one before it, so a small file could otherwise hold huge keys.
LONGEST_KEY = 1 << 10  # bytes
MOST_SHARDS = 99_999  # file names have five digits for it
VERSION = 1  # of the bundles' format
FOOTER, MAGIC = 48, 0xDB4775248B80FB57
TRAILER = 1 + 4  # bytes after a block: its compression, and the checksum of the block and that byte
# The messages: (number, wire type) -> name. These are the fields of the .proto files; others are refused.
VARINT, BYTES, FIXED32 = 0, 2, 5
HEADER_FIELDS = {(1, VARINT): "num_shards", (2, VARINT): "endianness", (3, BYTES): "version"}
VERSION_FIELDS = {(1, VARINT): "producer", (2, VARINT): "min_consumer"}
ENTRY_FIELDS = {
    (1, VARINT): "dtype",
    (2, BYTES): "shape",
    (3, VARINT): "shard_id",
    (4, VARINT): "offset",
    (5, VARINT): "size",
    (6, FIXED32): "crc32c",
    (7, BYTES): "slices",
}
SHAPE_FIELDS = {(2, BYTES): "dim", (3, VARINT): "unknown_rank"}
DIM_FIELDS = {(1, VARINT): "size", (2, BYTES): "name"}
REPEATED = {"dim", "slices"}


class Variable(NamedTuple):
    """A variable as the index describes it; offset and size are in bytes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int  # masked


def open_bundle(index: Path) -> dict[str, Tensor]:
    """Return every variable of a checkpoint by its name.

    A Tensor reads the file each time it is asked for its numbers, and verifies their checksum then. A
    variable that is not of floats has the dtype void and cannot be read. Raises DataError when the checkpoint
    is damaged, compressed or partitioned; MissingError without a file; StorageError when reading fails.
    """
    path = index
    try:
        if index.stat().st_size > LARGEST_INDEX:
            raise ValueError(f"it has more than {LARGEST_INDEX} bytes")
        shards, variables = _parsed(index.read_bytes())
        tensors: dict[str, Tensor] = {}
        for shard in sorted({variable.shard for variable in variables}):
            path = index.with_name(f"{index.name.removesuffix('.index')}.data-{shard:05}-of-{shards:05}")
            here = [variable for variable in variables if variable.shard == shard]
            _check_places(here, path.stat().st_size)
            tensors |= {v.name: Tensor(v.shape, v.dtype, partial(_read, path, v)) for v in here}
    except FileNotFoundError:
        raise MissingError(
            "no weights", path=path, why="there is no such file", fix="fetch it as well"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # the functions below raise it for everything they refuse
        raise _refused(path, str(error)) from error
    return tensors


def _refused(path: Path, why: str) -> DataError:
    return DataError(
        "not a TensorFlow checkpoint we read",
        path=path,
        why=why,
        fix="fetch it again, or save it again with TensorFlow's Saver",
    )


def _read(path: Path, variable: Variable) -> np.ndarray:
    """Return the numbers of a variable in this data file."""
    name, dtype, shape, _, offset, _, expected = variable
    if dtype not in CODES.values():
        raise _refused(path, f"{shown(name)} is not of floats")
    array, crc = np.empty(shape, dtype), 0
    rest = bytes_of(array)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while chunk := file.read(min(len(rest), CHUNK)):
                rest[: len(chunk)] = chunk
                rest, crc = rest[len(chunk) :], google_crc32c.extend(crc, chunk)
    except OSError as error:
        raise unreadable(path, error) from error
    if rest or _masked(crc) != expected:
        raise _refused(path, f"{shown(name)} is damaged")
    return array


def _parsed(content: bytes) -> tuple[int, list[Variable]]:
    """Return how many data files an index states, and its variables."""
    pairs = _table(content)
    key, header = next(pairs, (None, b""))
    if key != b"":
        raise ValueError("it does not begin with a bundle's header")
    shards = _shards(header)
    messages = {key: _message(value, ENTRY_FIELDS) for key, value in pairs}
    if partitioned := [ascii(key) for key, message in messages.items() if message["slices"]]:
        raise ValueError(f"it has partitioned variables: {shown(', '.join(partitioned))}")
    return shards, [_variable(key.decode(), message, shards) for key, message in messages.items()]


def _shards(value: bytes) -> int:
    """Return the number of data files that the header states. Refuses a bundle that we cannot read."""
    header = _message(value, HEADER_FIELDS)
    if header["endianness"]:
        raise ValueError("its byte order is not little")
    if _message(header["version"], VERSION_FIELDS)["min_consumer"] > VERSION:
        raise ValueError(f"it is of a format later than version {VERSION}")
    shards = int(header["num_shards"])
    if not 1 <= shards <= MOST_SHARDS:
        raise ValueError(f"it states {shards} data files")
    return shards


def _variable(name: str, message: dict[str, Any], shards: int) -> Variable:
    """Return a variable; its shape, dtype and size must agree."""
    shape = _message(message["shape"], SHAPE_FIELDS)
    sizes = tuple(_message(dim, DIM_FIELDS)["size"] for dim in shape["dim"][: MOST_AXES + 1])
    if shape["unknown_rank"] or len(sizes) > MOST_AXES or math.prod(max(n, 1) for n in sizes) > LARGEST_SHAPE:
        raise ValueError(f"{shown(name)} has an impossible shape")
    code, size, shard = message["dtype"], message["size"], message["shard_id"]
    if not code or (code in SIZES and size != math.prod(sizes) * SIZES[code]):
        raise ValueError(f"{shown(name)} has {size} bytes, not those of shape {list(sizes)} and dtype {code}")
    if shard >= shards:
        raise ValueError(f"{shown(name)} is in data file {shard} of {shards}")
    # Another type is that of a counter, or of Keras's graph: it is refused by name when it is wanted.
    dtype = CODES.get(code, np.dtype(np.void))
    return Variable(name, dtype, sizes, shard, message["offset"], size, message["crc32c"])


def _check_places(variables: list[Variable], size: int) -> None:
    """Refuse variables that overlap in their data file or end outside it. `size` is the file's, in bytes."""
    end = 0
    for variable in sorted(variables, key=lambda variable: (variable.offset, variable.size)):
        if variable.offset < end:
            raise ValueError(f"{shown(variable.name)} overlaps another variable")
        end = variable.offset + variable.size
        if end > size:
            raise ValueError(f"{shown(variable.name)} ends at byte {end} of {size}")


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table; the keys must be in strictly ascending order."""
    if len(content) < FOOTER or int.from_bytes(content[-8:], "little") != MAGIC:
        raise ValueError("it does not end as a table does: it is cut short, or it is something else")
    footer = _Cursor(content[-FOOTER:])
    metaindex, index = ((footer.varint(), footer.varint()) for _ in range(2))
    if any(_block(content, *metaindex)):
        raise ValueError("its table has more than data blocks")
    end, last = 0, None
    for _, value in _block(content, *index):  # its keys, like the restarts below, serve only searching
        handle = _Cursor(value)
        offset, size = handle.varint(), handle.varint()
        # A small file that refers to one block many times could otherwise be read without end.
        if offset < end or handle.rest:
            raise ValueError("the data blocks of its table are out of order")
        for key, entry in _block(content, offset, size):
            if last is not None and key <= last:
                raise ValueError(f"{shown(ascii(key))} is there twice, or out of order")
            yield key, entry
            last = key
        end = offset + size + TRAILER


def _block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block."""
    end = offset + size
    if end + TRAILER > len(content) - FOOTER:
        raise ValueError("a block of its table lies outside it")
    compression, crc = content[end], int.from_bytes(content[end + 1 : end + TRAILER], "little")
    if _masked(google_crc32c.value(content[offset : end + 1])) != crc:
        raise ValueError("a block of its table is damaged")
    if compression:
        raise ValueError(
            f"its table is compressed: {'snappy' if compression == 1 else f'type {compression}'}"
        )
    restarts = int.from_bytes(content[end - 4 : end], "little")  # their number, which follows their places
    if 4 * restarts + 4 > size:
        raise ValueError("a block of its table has more restarts than room")
    cursor, key = _Cursor(content[offset : end - 4 - 4 * restarts]), b""
    while cursor.rest:
        shared, own, length = cursor.varint(), cursor.varint(), cursor.varint()
        if shared > len(key) or shared + own > LONGEST_KEY:
            raise ValueError("its table has an impossible key")
        key = key[:shared] + cursor.take(own)
        yield key, cursor.take(length)


def _masked(crc: int) -> int:
    """Return a checksum in the form in which it is stored. Source: tensorflow/core/lib/hash/crc32c.h."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _message(content: bytes, fields: Mapping[tuple[int, int], str]) -> dict[str, Any]:
    """Return the fields of a message: integers, bytes, lists of bytes. A field left out is 0 or empty."""
    found: dict[str, Any] = {}
    cursor = _Cursor(content)
    while cursor.rest:
        number, kind = divmod(cursor.varint(), 8)
        if (number, kind) not in fields:
            raise ValueError(
                f"unknown field {number} of wire type {kind} beside {', '.join(fields.values())}"
            )
        name = fields[number, kind]
        value: Any = int.from_bytes(cursor.take(4), "little") if kind == FIXED32 else cursor.varint()
        if kind == BYTES:
            value = cursor.take(value)
        if name in REPEATED:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise ValueError(f"field {name} is there twice")
        else:
            found[name] = value
    for (_, kind), name in fields.items():
        found.setdefault(name, [] if name in REPEATED else b"" if kind == BYTES else 0)
    return found


class _Cursor:
    """Reads bytes from front to back."""

    def __init__(self, content: bytes) -> None:
        self.rest = memoryview(content)

    def take(self, size: int) -> bytes:
        taken, self.rest = self.rest[:size].tobytes(), self.rest[size:]
        if len(taken) < size:
            raise ValueError("an entry or a number ends outside what holds it")
        return taken

    def varint(self) -> int:  # an integer in groups of 7 bits, the lowest first
        number = 0
        for shift in range(0, 70, 7):
            [byte] = self.take(1)
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a number has more than 10 bytes")
