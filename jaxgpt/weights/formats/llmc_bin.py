"""llm.c's model file: 256 integers, then every tensor, with all layers of a kind together.

Source: karpathy/llm.c, train_gpt2.py (write_model). The model is exactly GPT-2. Matrices are (out, in), and
the embedding has padding rows for speed. Version 3 of the format is float32, version 5 is bfloat16.
"""

import math
from pathlib import Path

import numpy as np

from jaxgpt.errors import DataError, unreadable
from jaxgpt.files import replacing
from jaxgpt.weights.names import fitted, foreign_config, in_layout_of_torch, leaves
from jaxgpt.weights.tensors import DTYPES, StoredModel, Tensor, bytes_of

MODEL = "model.bin"
MAGIC = 20240326
DTYPE_OF_VERSION = {3: DTYPES["float32"], 5: DTYPES["bfloat16"]}
HEADER = 256  # int32 numbers
FIELDS = ("context", "vocab", "layers", "heads", "width", "padded vocabulary")
VOCAB_MULTIPLE = 128  # llm.c pads 50257 rows to 50304


def is_llmc(path: Path) -> bool:
    """Return whether the file begins as llm.c's model files do."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def open_llmc(path: Path) -> StoredModel:
    """Open the model of a file, without the padding rows of its embedding.

    Raises DataError when the file is damaged, of another version, or not llm.c's.
    """
    with path.open("rb") as file:
        raw = file.read(4 * HEADER)
    header = np.frombuffer(raw.ljust(4 * HEADER, b"\0"), "<i4")
    if len(raw) < 4 * HEADER or header[0] != MAGIC:
        raise _refused(path, "it does not begin with llm.c's header")
    if header[1] not in DTYPE_OF_VERSION:
        raise DataError(
            "not a version of llm.c's model file that we read",
            path=path,
            why=f"its version is {header[1]}",
            fix="export it with llm.c as version 3 (float32) or 5 (bfloat16)",
        )
    stored = DTYPE_OF_VERSION[int(header[1])]
    sizes = dict(zip(FIELDS, header[2:].tolist(), strict=False))
    padded = sizes.pop("padded vocabulary")
    if padded < sizes["vocab"] or np.any(header[8:]) or min(sizes.values()) < 1:
        raise _refused(path, "its header is inconsistent")
    config = foreign_config(path, **sizes)
    rows, width = padded - config.vocab, config.width
    # A block has 12 matrices of width x width and 13 vectors of width. Python's integers do not overflow.
    numbers = (padded + config.context + 2) * width + config.layers * (12 * width + 13) * width
    expected, size = 4 * HEADER + numbers * stored.itemsize, path.stat().st_size
    if size != expected:
        raise _refused(path, f"it has {size} bytes, not {expected}")
    found: dict[str, Tensor] = {}
    offset = 4 * HEADER
    for places in leaves(config).values():
        for place in places:
            shape = place.shape[::-1] if place.is_linear else place.shape
            found[place.name] = Tensor(shape, stored, _Read(path, offset, shape, stored))
            offset += math.prod(shape) * stored.itemsize
            if place.name == "wte.weight":
                offset += rows * width * stored.itemsize
    transposed = in_layout_of_torch(config, found)
    return StoredModel(config, fitted(config, transposed, path))


def _refused(path: Path, why: str) -> DataError:
    return DataError("not llm.c's model file", path=path, why=why, fix="fetch or export it again")


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
            raise unreadable(self.path, error) from error
        if read != array.nbytes:
            raise _refused(self.path, "it became shorter while it was read")
        return array


def write_llmc(model: StoredModel, path: Path) -> None:
    """Write a file for llm.c. Its embedding gets rows of zeros up to a multiple of 128.

    The model must be float32 or bfloat16. Raises StorageError when writing fails.
    """
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
