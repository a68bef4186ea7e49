"""Hugging Face safetensors, one file or sharded with an index, tensor by tensor."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxgpt.errors import DataError, MissingError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises MissingError when one is not there."""
    files = [folder / SINGLE]
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            files = [folder / name for name in sorted(set(index["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(
                "not an index of safetensors", path=folder / INDEX, why=repr(error), fix="fetch the folder again"
            ) from error
    missing = [str(path.name) for path in files if not path.is_file()]
    if missing:
        raise MissingError(
            "no weights", path=folder, why=f"{', '.join(missing)} not found", fix="name a folder with safetensors"
        )
    return files


def read_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of all tensors, in their stored dtypes. Raises DataError for a damaged file."""
    for path in tensor_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise DataError("not a safetensors file", path=path, why=str(error), fix="fetch it again") from error
