"""Safetensors files, read and written tensor by tensor.

The library reads the numbers. Here the header is parsed once more, because the library accepts a key that
occurs twice. The writer is our own, because the library's needs all tensors in memory at once.

The format: the length of the header in 8 bytes, little-endian; the header, in JSON, with a dtype, shape and
offsets for each name; the numbers. Source: https://github.com/huggingface/safetensors, "Format".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxgpt.errors import DataError, unreadable
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
    """Return every tensor of a file by its name; one that is not of floats has the dtype void.

    Raises DataError when the file is damaged, StorageError when it cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    try:
        _refuse_repeated_keys(path)
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_slice(name)
                # Another dtype is that of a mask buffer, or of a model that is not ours: it is refused by
                # name when it is wanted.
                dtype = CODES.get(part.get_dtype(), np.dtype(np.void))
                tensors[name] = Tensor(tuple(part.get_shape()), dtype, _Read(path, name))
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error
    return tensors


class _Read:
    """Reads one tensor. It opens the file anew: a file left open would keep every page it read in memory."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __call__(self) -> np.ndarray:
        try:
            with safe_open(self.path, framework="numpy") as file:
                array: np.ndarray = file.get_tensor(self.name)
                return array
        except SafetensorError as error:
            raise _damaged(self.path, error) from error


def _refuse_repeated_keys(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"its header would have {length} bytes")
        header = file.read(length)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("its header has a key twice")
        return table

    try:
        json.loads(str(header, "utf-8"), object_pairs_hook=unique)  # given bytes, it would guess the encoding
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError("not a safetensors file", path=path, why=str(error)[:200], fix="fetch it again")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file, whole or not at all, with one tensor in memory at a time.

    Raises StorageError when writing fails.
    """
    codes = {dtype: code for code, dtype in CODES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    # Tensors with larger elements come first, so that all stay aligned; transformers orders its files like
    # this too.
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
