"""Safetensors files, read and written tensor by tensor.

Reading goes through the library; its header is parsed here once more for what the library lets pass (a key twice).
Writing is our own: the library's writer wants all tensors in memory at once. Format: 8 bytes little-endian length of
the header, the header (JSON: name -> dtype, shape, offsets), the numbers.
Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxgpt.errors import DataError, StorageError
from jaxgpt.files import replacing
from jaxgpt.weights.tensors import DTYPES, Tensor

CODES = {
    "F32": DTYPES["float32"],
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
    "F64": np.dtype(np.float64),
}
LARGEST_HEADER = 100_000_000  # bytes; the library's own limit


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file. Raises DataError for a damaged file and for tensors that are not floats."""
    tensors: dict[str, Tensor] = {}
    try:
        _refuse_repeated_keys(path)
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_slice(name)
                # Another dtype: a mask buffer, or a model that is not ours. Whoever wants it is told its name.
                dtype = CODES.get(part.get_dtype(), np.dtype(np.void))
                tensors[name] = Tensor(tuple(part.get_shape()), dtype, _Read(path, name))
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise StorageError("cannot read", path=path, why=str(error), fix="check the file") from error
    return tensors


class _Read:
    """Reads one tensor. The file is opened for each: left open, it keeps every page that was read in memory."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __call__(self) -> np.ndarray:
        try:
            with safe_open(self.path, framework="numpy") as file:
                return file.get_tensor(self.name)
        except SafetensorError as error:
            raise _damaged(self.path, error) from error


def _refuse_repeated_keys(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = file.read(length)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("its header has a key twice")
        return table

    try:
        json.loads(str(header, "utf-8"), object_pairs_hook=unique)  # of bytes, it would guess the encoding
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError("not a safetensors file", path=path, why=str(error)[:200], fix="fetch it again")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, one tensor in memory at a time, whole or not at all. Raises StorageError."""
    codes = {dtype: code for code, dtype in CODES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    # Larger elements first keeps all of them aligned; transformers writes its own files in this order too.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    for name, tensor in ordered.items():
        start, end = end, end + int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        header[name] = {
            "dtype": codes[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered.values():
            file.write(tensor.raw())
