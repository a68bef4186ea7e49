"""From both formats of torch.save we read the numbers that numpy saved beside them, and damage shows."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from golden.malicious import NUMBERS, in_legacy, in_zip, tensor, whole

from jaxgpt.errors import DataError, MissingError, StorageError
from jaxgpt.weights.formats.torch_pickle import Unread
from jaxgpt.weights.formats.torch_zip import open_torch, write_torch
from jaxgpt.weights.tensors import Tensor

GOLDEN = Path(__file__).parent / "golden"
SAVED = GOLDEN / "torch_save"
FORMATS = ["zip.pt", "legacy.pt"]


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """What a tree holds, by path; tensors are read, bfloat16 given as the integers of its bits."""
    if isinstance(node, Tensor):
        array = node.read()
        assert array.shape == node.shape and array.dtype == node.dtype
        return {path[1:]: array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array}
    if not isinstance(node, dict | list | tuple):
        return {path[1:]: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {place: leaf for key, value in items for place, leaf in leaves(value, f"{path}/{key}").items()}


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert type(found[path]) is type(leaf)
        if isinstance(leaf, np.ndarray):
            assert (found[path].dtype, found[path].shape) == (leaf.dtype, leaf.shape), path
            assert found[path].tobytes() == leaf.tobytes(), path
        else:
            assert repr(found[path]) == repr(leaf), path


@pytest.mark.parametrize("name", FORMATS)
def test_every_tensor_equals_what_numpy_saved(name: str) -> None:
    found = {
        path: leaf for path, leaf in leaves(open_torch(SAVED / name)).items() if isinstance(leaf, np.ndarray)
    }
    assert_equal(found, dict(np.load(SAVED / "expected.npz")))


@pytest.mark.parametrize("name", FORMATS)
def test_plain_data_comes_back_with_its_types(name: str) -> None:
    tree = open_torch(SAVED / name)
    assert repr(tree["numbers"]) == repr(
        [0, 255, 256, 65535, 65536, -1, 2**31, -(2**40), 2**63 - 1, 0.1, float("inf"), -0.0]
    )
    assert tree["words"] == ["", "é", "🙂", "model"]
    others = (None, True, False, (), [], {}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))
    assert repr(tree["others"]) == repr(others)
    assert list(tree["state"]) == [0, 70000] and list(tree["module"]) == ["weight", "bias", "mask"]


def test_what_no_model_needs_is_left_unread_and_the_rest_is_read() -> None:
    tree = open_torch(SAVED / "others.pt")
    np.testing.assert_array_equal(tree["weight"].read(), [0, 1, 2])
    assert [kind.name.split(".")[-1] for kind in tree["kinds"]] == [
        *("set", "encode", "bytearray", "complex", "Size", "float16", "Counter")
    ]
    assert tree["device"] == Unread("torch.device")
    assert tree["numbers"] == [Unread("an integer of 26 bytes"), Unread("an integer of 13 bytes")]
    assert tree["keys"] == {-1: 0, 0.5: 1, None: 2, True: 3, (1, "a"): 4}
    shared = {"lr": 0.1, "betas": [0.9, 0.95]}
    assert tree["twice"] == [shared, shared, [0.9, 0.95]]


@pytest.mark.parametrize("name", FORMATS)
def test_tied_tensors_have_one_source_and_others_have_not(name: str) -> None:
    views = open_torch(SAVED / name)["views"]
    assert views["whole"].source == views["tied"].source
    assert len({view.source for view in views.values()}) == len(views) - 1


def test_a_hugging_face_bin_holds_the_model_of_its_config() -> None:
    config = json.loads((GOLDEN / "bin/config.json").read_text())
    tree = open_torch(GOLDEN / "bin/pytorch_model.bin")
    wte, head = tree["transformer.wte.weight"], tree["lm_head.weight"]
    assert wte.shape == (config["vocab_size"], config["n_embd"]) and wte.source == head.source
    assert sum(".c_fc.weight" in name for name in tree) == config["n_layer"]
    assert all(np.isfinite(tensor.read()).all() for tensor in tree.values())


@pytest.mark.parametrize(("name", "prefix"), [("nanogpt", ""), ("nanogpt_compiled", "_orig_mod.")])
def test_a_checkpoint_of_nanogpt_holds_model_arguments_and_optimizer(name: str, prefix: str) -> None:
    tree = open_torch(GOLDEN / name / "ckpt.pt")
    arguments, model = tree["model_args"], tree["model"]
    assert arguments["bias"] is (name == "nanogpt") and tree["iter_num"] == 10
    assert model[f"{prefix}transformer.wpe.weight"].shape == (arguments["block_size"], arguments["n_embd"])
    assert tree["best_val_loss"].shape == () and 5 < tree["best_val_loss"].read() < 6
    assert tree["optimizer"]["param_groups"][1]["betas"] == (0.9, 0.95)
    assert tree["optimizer"]["state"][0]["step"].read() == 10


def test_what_is_written_is_read_back_byte_for_byte(tmp_path: Path) -> None:
    tree = open_torch(SAVED / "zip.pt")
    write_torch(tmp_path / "new.pt", tree)
    assert_equal(leaves(open_torch(tmp_path / "new.pt")), leaves(tree))
    write_torch(tmp_path / "again.pt", open_torch(tmp_path / "new.pt"))
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "new.pt").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"again.pt", "new.pt"}


def test_a_tensor_that_occurs_twice_is_written_once_and_aligned(tmp_path: Path) -> None:
    one, other = Tensor.of(np.arange(7.0)), Tensor.of(np.arange(7.0))
    write_torch(tmp_path / "new.pt", {"a": one, "b": [other, one]})
    tree, content = open_torch(tmp_path / "new.pt"), (tmp_path / "new.pt").read_bytes()
    assert tree["a"].source == tree["b"][1].source != tree["b"][0].source
    numbers = np.arange(7.0).tobytes()
    first = content.index(numbers)
    second = content.index(numbers, first + 1)
    assert numbers not in content[second + 1 :] and first % 64 == second % 64 == 0


def test_a_tensor_that_cannot_be_read_leaves_the_old_file(tmp_path: Path) -> None:
    def fail() -> np.ndarray:
        raise DataError("damaged", why="a test", fix="none")

    write_torch(tmp_path / "a.pt", {"step": 1})
    bad = Tensor((2,), np.dtype(np.float32), fail)
    with pytest.raises(DataError, match="a test"):
        write_torch(tmp_path / "a.pt", {"first": Tensor.of(np.zeros(3)), "bad": bad})
    assert open_torch(tmp_path / "a.pt") == {"step": 1} and list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


def test_opening_reads_no_storage_and_a_damaged_one_shows_when_read(tmp_path: Path) -> None:
    wanted = np.load(SAVED / "expected.npz")["views/whole"]
    content = bytearray((SAVED / "zip.pt").read_bytes())
    content[content.index(wanted.tobytes()) + 100] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    tree = open_torch(tmp_path / "a.pt")
    for name in ("whole", "row", "transposed", "last"):  # the damage is in a part that `last` does not need
        with pytest.raises(DataError, match=r"storage \d+ is damaged"):
            tree["views"][name].read()
    assert tree["dtypes"]["int8"].read()[0] == -3


def test_a_part_of_a_large_storage_is_read_and_verified(tmp_path: Path) -> None:
    numbers = np.arange(700_000, dtype=np.int32)  # more than one chunk
    shape = b"K\2K\3\x86"
    large = numbers.size.to_bytes(4, "little")
    pickle = tensor(b"J" + large.replace(large, (699_990).to_bytes(4, "little")), shape, b"K\4K\1\x86")
    pickle = whole(pickle.replace(b"FloatStorage", b"IntStorage").replace(b"K\x10tQ", b"J" + large + b"tQ"))
    content = bytearray(in_zip(pickle, ("data/0", numbers.tobytes())))
    for damaged in (False, True):
        if damaged:
            content[content.index(numbers[300:310].tobytes())] ^= 1
        (tmp_path / "a.pt").write_bytes(content)
        view = open_torch(tmp_path / "a.pt")
        if damaged:
            with pytest.raises(DataError, match="storage 0 is damaged"):
                view.read()
        else:
            assert view.read().tolist() == [[699990, 699991, 699992], [699994, 699995, 699996]]
            assert view.read()[0, 0] == 699990


def test_a_file_that_shrinks_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    for name in FORMATS:
        (tmp_path / name).write_bytes((SAVED / name).read_bytes())
        tree = open_torch(tmp_path / name)
        (tmp_path / name).write_bytes(b"short")
        with pytest.raises(DataError, match="is damaged"):
            tree["views"]["row"].read()


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path, name: str) -> None:
    content = (SAVED / name).read_bytes()
    lengths = {*range(200), *range(0, len(content), 37), *range(len(content) - 120, len(content))}
    for length in sorted(lengths):
        (tmp_path / "a.pt").write_bytes(content[:length])
        with pytest.raises(DataError):
            open_torch(tmp_path / "a.pt")


@pytest.mark.slow
def test_a_changed_byte_in_a_zip_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    content, expected = (SAVED / "zip.pt").read_bytes(), leaves(open_torch(SAVED / "zip.pt"))
    random = np.random.default_rng(0)
    refused = 0
    for place in random.choice(len(content), 600, replace=False):
        changed = bytearray(content)
        changed[place] ^= random.integers(1, 256)
        (tmp_path / "a.pt").write_bytes(changed)
        try:
            found = leaves(open_torch(tmp_path / "a.pt"))
        except DataError:
            refused += 1
            continue
        assert_equal(found, expected)
    assert 200 < refused < 600


def test_a_changed_byte_in_the_older_format_gives_nothing_worse_than_an_error(tmp_path: Path) -> None:
    """It has no checksums: other numbers are possible, another error or a crash is not."""
    content = (SAVED / "legacy.pt").read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for place in random.choice(len(content), 600, replace=False):
        changed = bytearray(content)
        changed[place] ^= random.integers(1, 256)
        (tmp_path / "a.pt").write_bytes(changed)
        try:
            leaves(open_torch(tmp_path / "a.pt"))
        except DataError:
            refused += 1
    assert 200 < refused < 600


HONEST = whole(tensor())
DATA = ("data/0", bytes(4 * NUMBERS))


def rezipped(change: Any, **settings: Any) -> bytes:
    """The honest file, with a change to each member's entry."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **settings) as archive:
        for name, content in (("archive/data.pkl", HONEST), ("archive/data/0", DATA[1])):
            change(archive, name, content)
    return file.getvalue()


def overlapping() -> bytes:
    """The directory has both names for the same header."""
    content = bytearray(in_zip(HONEST, ("data/0", HONEST)))
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = bytes(4)
    return bytes(content)


def with_size(size: int) -> bytes:
    """The directory and the header claim another size for the storage."""
    content = bytearray(in_zip(HONEST, DATA))
    local, central = content.rindex(b"PK\x03\x04"), content.rindex(b"PK\x01\x02")
    for at in (local + 18, local + 22, central + 20, central + 24):
        content[at : at + 4] = size.to_bytes(4, "little")
    return bytes(content)


def patched(signature: bytes, offset: int, value: bytes, content: bytes = b"") -> bytes:
    """A file, the honest one if none is given, with a field of the last record of a kind overwritten."""
    changed = bytearray(content or in_zip(HONEST, DATA))
    at = changed.rindex(signature) + offset
    changed[at : at + len(value)] = value
    return bytes(changed)


ZIPS = {
    "compressed": (
        lambda: rezipped(lambda a, n, c: a.writestr(n, c, zipfile.ZIP_DEFLATED)),
        "compressed or encrypted",
    ),
    "encrypted": (
        lambda: patched(b"PK\1\2", 8, b"\1", patched(b"PK\3\4", 6, b"\1")),
        "compressed or encrypted",
    ),
    "other name inside": (lambda: patched(b"PK\3\4", 30, b"b"), "another name or kind in its header"),
    "other checksum inside": (lambda: patched(b"PK\3\4", 14, b"\1\2"), "another size or checksum"),
    "other size inside": (lambda: patched(b"PK\3\4", 18, b"\1\2"), "another size or checksum"),
    "no header": (lambda: patched(b"PK\3\4", 0, b"PK\3\5"), "has no header"),
    "overlap": (overlapping, "overlaps another"),
    "member larger than the file": (lambda: with_size(1 << 30), "ends outside the file"),
    "member larger by one": (lambda: with_size(4 * NUMBERS + 1), "ends outside the file"),
    "prefix": (lambda: b"PK\3\4" + in_zip(HONEST, DATA), "does not begin the file"),
    "suffix": (lambda: in_zip(HONEST, DATA) + b"x", "cut short"),
    "comment": (
        lambda: rezipped(lambda a, n, c: (a.writestr(n, c), setattr(a, "comment", b"x"))),
        "cut short",
    ),
    "large directory": (lambda: patched(b"PK\5\6", 12, b"\0\0\0\x7f"), r"zip directory has 2130706432 bytes"),
    "directory elsewhere": (lambda: patched(b"PK\5\6", 16, b"\xff"), "zip directory: |begin the file"),
    "two folders": (
        lambda: in_zip(HONEST, DATA).replace(b"archive/data/0", b"brchive/data/0"),
        "not in one folder",
    ),
    "no folder": (lambda: in_zip(HONEST, DATA).replace(b"archive/", b"archive-"), "not in one folder"),
    "no tree": (lambda: in_zip(HONEST, DATA).replace(b"data.pkl", b"data.pkm"), r"no data\.pkl"),
    "unknown member": (lambda: in_zip(HONEST, DATA, ("code/evil.py", b"")), r"member code/evil\.py"),
    "storage in a folder": (lambda: in_zip(HONEST, DATA, ("data/0/1", b"")), "member data/0/1"),
    "storage nobody uses": (
        lambda: in_zip(HONEST, DATA, ("data/1", b"")),
        "its storage 1 is used by no tensor",
    ),
    "short storage": (lambda: in_zip(HONEST, ("data/0", bytes(60))), "has 60 bytes, not 64"),
    "long storage": (lambda: in_zip(HONEST, ("data/0", bytes(68))), "has 68 bytes, not 64"),
    "older, of another version": (
        lambda: in_legacy(HONEST).replace(b"M\xe9\3.", b"M\xe8\3."),
        "version or byte order",
    ),
    "older, big-endian": (lambda: in_legacy(HONEST).replace(b"\x88s.", b"\x89s."), "version or byte order"),
    "big-endian": (lambda: in_zip(HONEST, DATA, ("byteorder", b"big")), "byte order is not little"),
    "something behind the pickle": (lambda: in_zip(HONEST + b"N.", DATA), "something follows its pickle"),
    "pickle without end": (
        lambda: in_zip(b"\x80\x02" + b"N" * (1 << 24), DATA),
        "data.pkl has 16777218 bytes",
    ),
    "no members": (lambda: b"PK\5\6" + bytes(18), "neither a zip nor"),
    "nothing": (lambda: b"", "neither a zip nor"),
    "another pickle": (lambda: whole(b"}"), "not with torch's magic number"),
    "text": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "neither a zip nor"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_container_that_torch_would_not_write_is_refused(tmp_path: Path, name: str) -> None:
    content, why = ZIPS[name]
    (tmp_path / "a.pt").write_bytes(content())
    with pytest.raises(DataError, match=why):
        open_torch(tmp_path / "a.pt")


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(
        in_zip(HONEST, DATA, ("data/1", DATA[1])).replace(b"archive/data/1", b"archive/data/0")
    )
    with pytest.raises(DataError, match="data/0 twice"):
        open_torch(tmp_path / "a.pt")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no such file"):
        open_torch(tmp_path / "no.pt")
    with pytest.raises(StorageError, match="cannot read"):
        open_torch(tmp_path)
