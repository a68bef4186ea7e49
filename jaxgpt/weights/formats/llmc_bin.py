"""llm.c's model file: 256 integers, then every tensor, the layers of each kind together. Source: karpathy/llm.c,
train_gpt2.py (write_model).

GPT-2 exactly, matrices (out, in), the embedding's rows padded for speed. Version 3 is float32, 5 is bfloat16.
"""

import math
from pathlib import Path

import numpy as np

from jaxgpt.errors import DataError, StorageError
from jaxgpt.files import replacing
from jaxgpt.weights.names import fitted, foreign_config, in_layout_of_torch, leaves
from jaxgpt.weights.tensors import DTYPES, StoredModel, Tensor, bytes_of

MODEL = "model.bin"
MAGIC = 20240326
DTYPE_OF_VERSION = {3: DTYPES["float32"], 5: DTYPES["bfloat16"]}
HEADER = 256  # int32
FIELDS = ("context", "vocab", "layers", "heads", "width", "padded vocabulary")
VOCAB_MULTIPLE = 128  # llm.c pads 50257 rows to 50304


def is_llmc(path: Path) -> bool:
    """The file begins as llm.c's do."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def open_llmc(path: Path) -> StoredModel:
    """The model of a file, without its padding rows, which it does not use. Raises DataError."""
    with path.open("rb") as file:
        raw = file.read(4 * HEADER)
    header = np.frombuffer(raw.ljust(4 * HEADER, b"\0"), "<i4")
    if len(raw) < 4 * HEADER or header[0] != MAGIC or header[1] not in DTYPE_OF_VERSION:
        raise DataError(
            "not llm.c's model file", path=path, why="another magic or version", fix="use version 3 or 5"
        )
    stored = DTYPE_OF_VERSION[int(header[1])]
    sizes = dict(zip(FIELDS, header[2:].tolist(), strict=False))
    padded = sizes.pop("padded vocabulary")
    if padded < sizes["vocab"] or np.any(header[8:]) or min(sizes.values()) < 1:
        raise DataError(
            "not llm.c's model file", path=path, why="its header is inconsistent", fix="fetch it again"
        )
    config = foreign_config(path, **sizes)
    rows, width = padded - config.vocab, config.width
    # 12 matrices of width x width and 13 vectors a block; Python's integers do not overflow.
    numbers = (padded + config.context + 2) * width + config.layers * (12 * width + 13) * width
    expected, size = 4 * HEADER + numbers * stored.itemsize, path.stat().st_size
    if size != expected:
        raise DataError(
            "not llm.c's model file", path=path, why=f"{size} bytes, not {expected}", fix="fetch it again"
        )
    found: dict[str, Tensor] = {}
    offset = 4 * HEADER
    for places in leaves(config).values():
        for place in places:
            shape = place.shape[::-1] if place.is_linear else place.shape
            found[place.name] = Tensor(shape, stored, _Read(path, offset, shape, stored))
            offset += math.prod(shape) * stored.itemsize
            if place.name == "wte.weight":
                offset += rows * width * stored.itemsize
    turned = in_layout_of_torch(config, found)
    return StoredModel(config, fitted(config, turned, path))


class _Read:
    """Reads one tensor of the file."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.offset, self.shape, self.dtype = path, offset, shape, dtype

    def __call__(self) -> np.ndarray:
        array = np.empty(self.shape, self.dtype)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                read = file.readinto(bytes_of(array))
        except OSError as error:
            raise StorageError("cannot read", path=self.path, why=str(error), fix="check the file") from error
        if read != array.nbytes:
            raise DataError(
                "not llm.c's model file", path=self.path, why="it became shorter", fix="fetch it again"
            )
        return array


def write_llmc(model: StoredModel, path: Path) -> None:
    """Write a file for llm.c; the embedding is padded with rows of zeros to a multiple of 128."""
    config = model.config
    version = next(version for version, dtype in DTYPE_OF_VERSION.items() if dtype == model.dtype)
    padded = -(-config.vocab // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    header = np.zeros(HEADER, "<i4")
    sizes = (config.context, config.vocab, config.layers, config.heads, config.width, padded)
    header[:8] = (MAGIC, version, *sizes)
    tensors = in_layout_of_torch(config, model.tensors)
    with replacing(path) as file:
        file.write(header.tobytes())
        for places in leaves(config).values():
            for place in places:
                file.write(tensors[place.name].raw())
                if place.name == "wte.weight":
                    file.write(bytes((padded - config.vocab) * config.width * model.dtype.itemsize))
