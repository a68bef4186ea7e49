"""Our writer against the library's reader, our reader against the library's writer, and headers that lie."""

import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxgpt.errors import DataError, StorageError
from jaxgpt.weights.formats.safetensors_file import open_safetensors, write_safetensors
from jaxgpt.weights.tensors import Tensor

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "a": np.array([1.5, -0.0, np.inf], np.float16),
    "empty": np.zeros((0, 4), np.float32),
}


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    write_safetensors(
        tmp_path / "x", {name: Tensor.of(array) for name, array in ARRAYS.items()}, {"format": "pt"}
    )
    found = load_file(tmp_path / "x")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    with safe_open(tmp_path / "x", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}
    arrays["bf"] = np.array([1, 2.5], ml_dtypes.bfloat16)
    save_file(arrays, tmp_path / "x")
    for name, tensor in open_safetensors(tmp_path / "x").items():
        array = tensor.read()
        assert (
            (array.shape, array.dtype)
            == (tensor.shape, tensor.dtype)
            == (arrays[name].shape, arrays[name].dtype)
        )
        np.testing.assert_array_equal(array, arrays[name])


def header(table: str, data: bytes = bytes(16)) -> bytes:
    return len(table).to_bytes(8, "little") + table.encode() + data


GOOD = '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        (2**63).to_bytes(8, "little") + b"{}",
        header("[" * 10_000),
        header("{" + GOOD + ", " + GOOD.replace("0, 8", "8, 16") + "}"),
        header("{" + GOOD + "}", bytes(7)),
        header("{" + GOOD.replace("[2]", "[4611686018427387904, 4]") + "}"),
        header("{" + GOOD.replace("0, 8", "8, 0") + "}"),
        len(("{" + GOOD + "}").encode("utf-16-le")).to_bytes(8, "little")
        + ("{" + GOOD + "}").encode("utf-16-le")
        + bytes(8),
    ],
    ids=["empty", "noise", "length", "nested", "twice", "short", "overflow", "backwards", "utf-16"],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="not a safetensors file"):
        open_safetensors(tmp_path / "x")


@pytest.mark.parametrize("field", ["dtype", "shape", "data_offsets", None])
def test_a_field_of_another_kind_is_refused(tmp_path: Path, field: str | None) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    numbers = [
        None,
        True,
        -1,
        2.0,
        1e300,
        2**64,
        10**4000,
        [2.0],
        [-1],
        [2**64],
        [True],
        [None],
        [0, 8.0],
        [0, 2**64],
    ]
    for value in [*numbers, "", "F33", "2", ["2"], [[]], {}, {"a": 1}]:
        table = {"a": entry | {field: value} if field else value}
        (tmp_path / "x").write_bytes(header(json.dumps(table)))
        with pytest.raises(DataError, match="not a safetensors file"):
            open_safetensors(tmp_path / "x")


def test_a_key_twice_inside_an_entry_is_refused(tmp_path: Path) -> None:
    entry = GOOD.replace('"shape": [2]', '"shape": [1, 2], "shape": [2]')
    (tmp_path / "x").write_bytes(header("{" + entry + "}", bytes(8)))
    with pytest.raises(DataError, match="key twice"):
        open_safetensors(tmp_path / "x")


def test_writing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    size = 1 << 20

    def draw() -> np.ndarray:
        return np.ones(size, np.float32)

    tensors = {str(n): Tensor((size,), np.dtype(np.float32), draw) for n in range(8)}
    tracemalloc.start()
    write_safetensors(tmp_path / "x", tensors, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "x").stat().st_size > 8 * 4 * size and peak < 2.5 * 4 * size


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    def fail() -> np.ndarray:
        raise OSError("no space")

    with pytest.raises(StorageError, match="no space"):
        write_safetensors(tmp_path / "x", {"a": Tensor((1,), np.dtype(np.float32), fail)}, {})
    assert (tmp_path / "x").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_order_is_that_of_the_header(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", {name: Tensor.of(array) for name, array in ARRAYS.items()}, {})
    content = (tmp_path / "x").read_bytes()
    table = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert [name for name in table if name != "__metadata__"] == ["b", "empty", "a"]
    assert int.from_bytes(content[:8], "little") % 8 == 0
