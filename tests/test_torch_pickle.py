"""No pickle makes us run code, take endless memory or read outside the file. Each is refused by name."""

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden.malicious import NUMBERS, PICKLES, in_legacy, in_zip, name, storage, tensor, text, whole

from jaxgpt.errors import DataError
from jaxgpt.weights.formats.torch_pickle import Unread
from jaxgpt.weights.formats.torch_zip import open_torch
from jaxgpt.weights.tensors import Tensor

CONTAINERS = {"zip": in_zip, "legacy": in_legacy}


def opened(tmp_path: Path, content: bytes) -> object:
    (tmp_path / "file.pt").write_bytes(content)
    return open_torch(tmp_path / "file.pt")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", PICKLES)
def test_what_torch_never_writes_is_refused_by_name(tmp_path: Path, name: str, container: str) -> None:
    pickle, why = PICKLES[name]
    with pytest.raises(DataError, match=why) as caught:
        opened(tmp_path, CONTAINERS[container](pickle))
    assert "file.pt" in str(caught.value) and len(str(caught.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_containers_around_an_honest_pickle_are_read(tmp_path: Path, container: str) -> None:
    tree = opened(tmp_path, CONTAINERS[container](whole(b"}" + text("a") + tensor() + b"s")))
    assert isinstance(tree, dict) and tree.keys() == {"a"}
    np.testing.assert_array_equal(tree["a"].read(), np.zeros(NUMBERS, np.float32))


WATCH = """
import encodings.cp437, os, pathlib, pickle, sys  # the first is how zip writes names
from jaxgpt.errors import DataError
from jaxgpt.weights.formats.torch_pickle import Unread
from jaxgpt.weights.formats.torch_zip import open_torch
honest, *files = map(pathlib.Path, sys.argv[1:])
open_torch(honest / "zip.pt"), open_torch(honest / "legacy.pt")
seen = []
FORBIDDEN = (
    "exec", "compile", "import", "os.", "subprocess.", "pickle.", "socket.", "ctypes.", "shutil.", "marshal."
)
def watch(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event.startswith(FORBIDDEN) or writes:
        seen.append((event, str(arguments)[:80]))
sys.addaudithook(watch)
refused = 0
for file in files:
    try:
        open_torch(file)
    except DataError:
        refused += 1
found = list(seen)
pickle.loads(b"cos\\ngetpid\\n)R.")  # what a watched unpickling looks like
print(refused, found, bool(seen))
"""


def test_nothing_is_imported_executed_or_written_meanwhile(tmp_path: Path) -> None:
    files = []
    for container, around in CONTAINERS.items():
        for number, (pickle, _) in enumerate(PICKLES.values()):
            files.append(tmp_path / f"{number}.{container}")
            files[-1].write_bytes(around(pickle))
    command = [sys.executable, "-c", WATCH, Path(__file__).parent / "golden/torch_save", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, f"{len(files)} [] True"), done.stderr


def test_a_tensor_and_a_container_may_be_used_again(tmp_path: Path) -> None:
    again = b"(" + tensor() + b"q\0h\0" + b"]q\1(K\1K\2eh\1" + text("a") + b"q\2h\2t"
    first, second, *rest = opened(tmp_path, in_zip(whole(again)))  # type: ignore[misc]
    assert isinstance(first, Tensor) and first is second and rest == [[1, 2], [1, 2], "a", "a"]


@pytest.mark.parametrize(
    ("pickle", "expected"),
    [
        (name("_codecs", "encode") + text("\xff") + text("latin1") + b"\x86R", Unread("_codecs.encode")),
        (name("__builtin__", "set") + b"](K\1K\2e\x85R", Unread("__builtin__.set")),
        (name("collections", "Counter") + b"}" + text("a") + b"K\1s\x85R", Unread("collections.Counter")),
        (name("torch", "Size") + b"(K\2K\3t\x85R", Unread("torch.Size")),
        (name("torch", "device") + text("cuda") + b"K\0\x86R", Unread("torch.device")),
        (name("torch", "bfloat16"), Unread("torch.bfloat16")),
        (name("torch", "float8_e4m3fn"), Unread("torch.float8_e4m3fn")),
        (b"\x8a\x0b" + b"\x01" * 11, Unread("an integer of 11 bytes")),
        (b"}J\xff\xff\xff\xffK\1s", {-1: 1}),
        (
            b"}(\x88K\1G" + struct.pack(">d", 0.5) + b"K\2NK\3K\7" + text("a") + b"\x86K\4u",
            {True: 1, 0.5: 2, None: 3, (7, "a"): 4},
        ),
    ],
)
def test_what_no_model_needs_and_torchs_safe_loader_reads_is_left_unread(
    tmp_path: Path, pickle: bytes, expected: object
) -> None:
    table = opened(tmp_path, in_zip(whole(b"}" + text("a") + tensor() + b"s" + text("b") + pickle + b"s")))
    assert isinstance(table, dict) and table["b"] == expected and isinstance(table["a"], Tensor)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((2, 3), (3, 1), 4, [[4, 5, 6], [7, 8, 9]]),
        ((3, 2), (1, 3), 4, [[4, 7], [5, 8], [6, 9]]),
        ((2, 2), (8, 5), 1, [[1, 6], [9, 14]]),
        ((1, 3), (2**62, 1), 13, [[13, 14, 15]]),  # the stride of one row means nothing
        ((1, 3), (2**62, 2), 1, [[1, 3, 5]]),
        ((), (), 15, 15),
        ((0, 3), (3, 1), 16, np.zeros((0, 3))),
    ],
)
def test_a_view_is_the_elements_that_its_strides_name(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, expected: object
) -> None:
    def written(sizes: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + size.to_bytes(8, "little") for size in sizes) + b"t"

    pickle = whole(tensor(b"K" + bytes([offset]), written(shape), written(strides)))
    tree = opened(tmp_path, in_zip(pickle, ("data/0", np.arange(NUMBERS, dtype="<f4").tobytes())))
    assert isinstance(tree, Tensor) and tree.shape == shape and tree.dtype == np.float32
    array = tree.read()
    assert array.shape == shape and array.flags.writeable
    np.testing.assert_array_equal(array, np.asarray(expected, np.float32))


def test_a_byte_that_is_no_truth_value_is_refused_when_read(tmp_path: Path) -> None:
    pickle = whole(tensor(of=storage("BoolStorage")))
    honest = opened(tmp_path, in_zip(pickle, ("data/0", bytes(NUMBERS - 1) + b"\1")))
    assert honest.read().sum() == 1  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="other bytes than truth values"):
        opened(tmp_path, in_zip(pickle, ("data/0", bytes(NUMBERS - 1) + b"\2"))).read()  # type: ignore[attr-defined]
