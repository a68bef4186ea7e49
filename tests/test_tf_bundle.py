"""TensorFlow's checkpoints and bundles made here from the format's description are read, and damage shows."""

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxgpt.errors import DataError, MissingError, StorageError
from jaxgpt.weights.formats.openai import open_openai
from jaxgpt.weights.formats.tf_bundle import open_bundle
from jaxgpt.weights.tensors import Tensor

GOLDEN = Path(__file__).parent / "golden" / "openai_tf"
FLOAT, DOUBLE, INT32, STRING, INT64, BFLOAT16, HALF = 1, 2, 3, 7, 9, 14, 19  # types.proto
CODES = {np.float32: FLOAT, np.float64: DOUBLE, np.float16: HALF, ml_dtypes.bfloat16: BFLOAT16}
MAGIC = bytes.fromhex("57fb808b247547db")


# A writer: checksums, protobuf's messages, LevelDB's tables, TensorFlow's bundles.


def crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRC_TABLE = [crc_of_byte(byte) for byte in range(256)]


def crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked(content: bytes) -> int:
    crc = crc32c(content)
    return ((crc >> 15) + (crc << 17) + 0xA282EAD8) % (1 << 32)


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Of integers as varints, and of bytes; as protobuf does, without integers that are 0."""
    parts = [
        varint(number << 3) + varint(value)
        if isinstance(value, int)
        else varint(number << 3 | 2) + varint(len(value)) + value
        for number, value in fields
        if value != 0
    ]
    return b"".join(parts)


HEADER = message((1, 1), (3, message((1, 1))))


def entry(
    numbers: bytes,
    dims: Iterable[int],
    dtype: int = FLOAT,
    *,
    shard: int = 0,
    offset: int = 0,
    size: int = -1,
    more: bytes = b"",
    more_of_shape: bytes = b"",
) -> bytes:
    shape = message(*((2, message((1, dim))) for dim in dims)) + more_of_shape
    place = ((3, shard), (4, offset), (5, len(numbers) if size < 0 else size))
    return message((1, dtype), (2, shape), *place) + b"\x35" + masked(numbers).to_bytes(4, "little") + more


def shared_by(one: bytes, other: bytes) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def entries_of(pairs: Iterable[tuple[bytes, bytes]], every: int) -> tuple[bytes, list[int]]:
    """The content of a block, and the places in it of the keys that are written whole.

    Each `every`-th key is written whole. The others lack the start that they share with the key before.
    """
    content, restarts, before = b"", [0], b""
    for number, (key, value) in enumerate(pairs):
        shared = shared_by(before, key) if number % every else 0
        if number and not number % every:
            restarts.append(len(content))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content, restarts


def block(pairs: Iterable[tuple[bytes, bytes]], *, every: int = 16, compression: int = 0) -> bytes:
    content, restarts = entries_of(pairs, every)
    return sealed(content + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts)), compression)


def sealed(content: bytes, compression: int = 0) -> bytes:
    content += bytes([compression])
    return content + masked(content).to_bytes(4, "little")


def handle(offset: int, size: int) -> bytes:
    return varint(offset) + varint(size)


def table(
    *blocks: bytes,
    last_keys: Iterable[bytes] = (b"\xff", b"\xff\xff"),
    metaindex: bytes | None = None,
    index: bytes | None = None,
    footer: bytes = b"",
) -> bytes:
    """A file of these data blocks, a metaindex (empty unless it is given) and an index of the data blocks."""
    metaindex = block([]) if metaindex is None else metaindex
    starts = [sum(map(len, blocks[:number])) for number in range(len(blocks) + 1)]
    if index is None:
        handles = [handle(start, len(part) - 5) for start, part in zip(starts, blocks, strict=False)]
        index = block(zip(last_keys, handles, strict=False), every=1)
    ends = handle(starts[-1], len(metaindex) - 5) + handle(starts[-1] + len(metaindex), len(index) - 5)
    return b"".join(blocks) + metaindex + index + (footer or ends).ljust(40, b"\0") + MAGIC


def write_bundle(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    shards: int = 1,
    alignment: int = 1,
    a_block: int = 1000,
    every: int = 16,
) -> None:
    """Write a checkpoint in which the variables take turns with the data files; `a_block` is in variables."""
    header = message((1, shards), (3, message((1, 1))))
    data, pairs = [b""] * shards, [(b"", header)]
    for number, (name, array) in enumerate(sorted(arrays.items())):
        shard = number % shards
        data[shard] += bytes(-len(data[shard]) % alignment)
        code, offset = CODES[array.dtype.type], len(data[shard])
        pairs.append((name.encode(), entry(array.tobytes(), array.shape, code, shard=shard, offset=offset)))
        data[shard] += array.tobytes()
    parts = [pairs[first : first + a_block] for first in range(0, len(pairs), a_block)]
    blocks = [block(part, every=every) for part in parts]
    (folder / "model.ckpt.index").write_bytes(table(*blocks, last_keys=[part[-1][0] for part in parts]))
    for shard, content in enumerate(data):
        (folder / f"model.ckpt.data-{shard:05}-of-{shards:05}").write_bytes(content)


# What is read.


def bits(tensors: Mapping[str, Tensor]) -> dict[str, tuple]:
    return {name: (tensor.shape, tensor.dtype, tensor.read().tobytes()) for name, tensor in tensors.items()}


@pytest.mark.parametrize(("name", "mlp"), [("plain", 192), ("odd", 40)])
def test_tensorflows_own_file_is_openais_variables_one_behind_another(name: str, mlp: int) -> None:
    sizes = json.loads((GOLDEN / name / "hparams.json").read_text())
    width = sizes["n_embd"]
    shapes = {
        "wte": (sizes["n_vocab"], width),
        "wpe": (sizes["n_ctx"], width),
        "ln_f/g": (width,),
        "ln_f/b": (width,),
    }
    matrices = {
        "attn/c_attn": (width, 3 * width),
        "attn/c_proj": (width, width),
        "mlp/c_fc": (width, mlp),
        "mlp/c_proj": (mlp, width),
    }
    for layer in range(sizes["n_layer"]):
        shapes |= {f"h{layer}/{norm}/{part}": (width,) for norm in ("ln_1", "ln_2") for part in "gb"}
        shapes |= {f"h{layer}/{matrix}/w": (1, *shape) for matrix, shape in matrices.items()}
        shapes |= {f"h{layer}/{matrix}/b": shape[1:] for matrix, shape in matrices.items()}
    found = open_bundle(GOLDEN / name / "model.ckpt.index")
    assert {n: tensor.shape for n, tensor in found.items()} == {
        f"model/{n}": shape for n, shape in shapes.items()
    }
    assert {tensor.dtype for tensor in found.values()} == {np.dtype(np.float32)}
    data = (GOLDEN / name / "model.ckpt.data-00000-of-00001").read_bytes()
    assert b"".join(found[n].read().tobytes() for n in sorted(found)) == data


def test_the_checksum_here_is_that_of_rfc_3720() -> None:
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("a_block", [1, 3, 1000])
@pytest.mark.parametrize("every", [1, 4, 1000])
@pytest.mark.parametrize(("shards", "alignment"), [(1, 1), (2, 64), (11, 1)])
def test_a_bundle_as_described_reads_back(
    tmp_path: Path, a_block: int, every: int, shards: int, alignment: int
) -> None:
    random = np.random.default_rng(0)
    arrays = {f"model/h{n}/ln_{n % 2}/é": random.normal(size=(n, 3)).astype(np.float32) for n in range(12)}
    for kind in CODES:
        arrays[f"model/{kind.__name__}"] = random.normal(size=(2, 1, 5)).astype(kind)
        arrays[f"model/{kind.__name__}/one"] = np.array(random.normal(), kind)
    write_bundle(tmp_path, arrays, shards=shards, alignment=alignment, a_block=a_block, every=every)
    found = bits(open_bundle(tmp_path / "model.ckpt.index"))
    assert found == {name: (array.shape, array.dtype, array.tobytes()) for name, array in arrays.items()}


def test_a_variable_of_several_chunks_is_read_and_verified_to_its_end(tmp_path: Path) -> None:
    large = np.random.default_rng(0).normal(size=(300, 1100)).astype(np.float32)
    write_bundle(tmp_path, {"a": np.float32([1]), "large": large})
    tensor = open_bundle(tmp_path / "model.ckpt.index")["large"]
    np.testing.assert_array_equal(tensor.read(), large)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match="large is damaged"):
        tensor.read()


def test_variables_that_are_no_floats_are_named_but_not_read(tmp_path: Path) -> None:
    graph, step, weight = b"\x0b\0\0\0\0a graph", bytes(8), np.float32([7]).tobytes()
    pairs = [
        (b"", HEADER),
        (b"_CHECKPOINTABLE_OBJECT_GRAPH", entry(graph, [], STRING)),
        (b"global_step", entry(step, [], INT64, offset=len(graph))),
        (b"weight", entry(weight, [1], offset=len(graph + step))),
    ]
    (tmp_path / "a.index").write_bytes(table(block(pairs)))
    (tmp_path / "a.data-00000-of-00001").write_bytes(graph + step + weight)
    found = open_bundle(tmp_path / "a.index")
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "_CHECKPOINTABLE_OBJECT_GRAPH": np.void,
        "global_step": np.void,
        "weight": np.float32,
    }
    assert found["weight"].read() == 7
    for name in ("_CHECKPOINTABLE_OBJECT_GRAPH", "global_step"):
        with pytest.raises(DataError, match=f"{name} is not of floats"):
            found[name].read()


def test_opening_reads_no_numbers_and_a_damaged_variable_shows_when_read(tmp_path: Path) -> None:
    arrays = {name: np.arange(5, dtype=np.float32) for name in "abc"}
    write_bundle(tmp_path, arrays)
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[39] ^= 1  # the last byte of b
    data.write_bytes(content)
    found = open_bundle(tmp_path / "model.ckpt.index")
    assert found["a"].read().tolist() == found["c"].read().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"data-00000-of-00001\): b is damaged"):
        found["b"].read()


def test_a_file_that_shrinks_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    part = entry(B[:8], [4], offset=24, size=16)  # the checksum alone would be that of what is left
    (tmp_path / "a.index").write_bytes(of(*HONEST[:2], (b"b", part)))
    (tmp_path / "a.data-00000-of-00001").write_bytes(A + B)
    found = open_bundle(tmp_path / "a.index")
    (tmp_path / "a.data-00000-of-00001").write_bytes(A + B[:8])
    with pytest.raises(DataError, match="b is damaged"):
        found["b"].read()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no weights \(.*model\.ckpt\.index\)"):
        open_bundle(tmp_path / "model.ckpt.index")
    write_bundle(tmp_path, {name: np.float32([1]) for name in "abc"}, shards=3)
    (tmp_path / "model.ckpt.data-00001-of-00003").unlink()
    with pytest.raises(MissingError, match=r"no weights \(.*model\.ckpt\.data-00001-of-00003\)"):
        open_bundle(tmp_path / "model.ckpt.index")


def test_what_cannot_be_opened_is_an_error_of_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        open_bundle(tmp_path)
    write_bundle(tmp_path, {"a": np.float32([1])})
    found = open_bundle(tmp_path / "model.ckpt.index")
    (tmp_path / "model.ckpt.data-00000-of-00001").unlink()
    with pytest.raises(StorageError, match=r"data-00000-of-00001\): .*No such file"):
        found["a"].read()


# What is refused. Two variables: a, of 24 bytes, and b, of 16.

A, B = np.arange(6, dtype=np.float32).tobytes(), np.arange(4, dtype=np.float32).tobytes()
ENTRY_A = entry(A, [2, 3])
HONEST = [(b"", HEADER), (b"a", ENTRY_A), (b"b", entry(B, [4], offset=24))]


def of(*pairs: tuple[bytes, bytes]) -> bytes:
    return table(block(pairs))


def with_header(*fields: tuple[int, int | bytes]) -> bytes:
    return of((b"", message(*fields)), *HONEST[1:])


def with_b(dims: Iterable[int] = (4,), dtype: int = FLOAT, **changes: int | bytes) -> bytes:
    return of(*HONEST[:2], (b"b", entry(B, dims, dtype, **{"offset": 24} | changes)))


def with_a(value: bytes) -> bytes:
    return of(HONEST[0], (b"a", value), HONEST[2])


def with_block(content: bytes, restarts: int = 1) -> bytes:
    return table(sealed(content + bytes(4) + restarts.to_bytes(4, "little")))


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


BLOCK = block(HONEST)
PAST, ELSEWHERE = 1 << 40, (1 << 64) - 1
DAMAGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bit of a block": (lambda: flipped(of(*HONEST), 9), "a block of its table is damaged"),
    "a bit of a block's checksum": (
        lambda: flipped(of(*HONEST), len(BLOCK) - 1),
        "a block of its table is damaged",
    ),
    "a bit of the metaindex": (lambda: flipped(of(*HONEST), len(BLOCK)), "a block of its table is damaged"),
    "a bit of the magic number": (
        lambda: flipped(of(*HONEST), -1 + len(of(*HONEST))),
        "does not end as a table does",
    ),
    "cut short": (lambda: of(*HONEST)[:-1], "does not end as a table does"),
    "only an end": (lambda: MAGIC, "does not end as a table does"),
    "nothing": (lambda: b"", "does not end as a table does"),
    "text": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "does not end as a table does",
    ),
    "too large": (lambda: bytes((1 << 20) + 1), "it has more than 1048576 bytes"),
    "snappy": (lambda: table(block(HONEST, compression=1)), "its table is compressed: snappy"),
    "another compression": (lambda: table(block(HONEST, compression=2)), "its table is compressed: type 2"),
    "no room for a footer's numbers": (
        lambda: table(BLOCK, footer=b"\xff" * 40),
        "a number has more than 10 bytes",
    ),
    "block outside": (
        lambda: table(BLOCK, footer=handle(PAST, 8) * 2),
        "a block of its table lies outside it",
    ),
    "block beyond any file": (
        lambda: table(BLOCK, footer=handle(ELSEWHERE, ELSEWHERE) * 2),
        "lies outside it",
    ),
    "block in the footer": (
        lambda: table(BLOCK, footer=handle(len(of(*HONEST)) - 52, 8) * 2),
        "a block of its table lies outside it",
    ),
    "empty block": (lambda: table(sealed(b"")), "more restarts than room"),
    "block of less than a number": (lambda: table(sealed(b"\0\0\0")), "more restarts than room"),
    "more restarts than room": (lambda: with_block(b"", restarts=2), "more restarts than room"),
    "endless restarts": (lambda: with_block(b"", restarts=(1 << 32) - 1), "more restarts than room"),
    "a filter": (lambda: table(BLOCK, metaindex=BLOCK), "its table has more than data blocks"),
    "a block that occurs twice": (
        lambda: table(
            BLOCK, index=block([(b"0", handle(0, len(BLOCK) - 5)), (b"1", handle(0, len(BLOCK) - 5))])
        ),
        "the data blocks of its table are out of order",
    ),
    "blocks that overlap": (
        lambda: table(
            BLOCK, index=block([(b"0", handle(0, len(BLOCK) - 5)), (b"1", handle(len(BLOCK) - 1, 8))])
        ),
        "the data blocks of its table are out of order",
    ),
    "more in the index": (
        lambda: table(BLOCK, index=block([(b"0", handle(0, len(BLOCK) - 5) + b"\0")])),
        "the data blocks of its table are out of order",
    ),
    "no header": (lambda: of(*HONEST[1:]), "does not begin with a bundle's header"),
    "no entries": (lambda: of(), "does not begin with a bundle's header"),
    "keys out of order": (
        lambda: of(HONEST[0], HONEST[2], HONEST[1]),
        "b'a' is there twice, or out of order",
    ),
    "key twice": (lambda: of(*HONEST, HONEST[2]), "b'b' is there twice, or out of order"),
    "header twice": (lambda: of(HONEST[0], *HONEST), "b'' is there twice, or out of order"),
    "key twice in two blocks": (
        lambda: table(BLOCK, block(HONEST[2:])),
        "b'b' is there twice, or out of order",
    ),
    "key longer than any": (lambda: of(*HONEST, (b"c" * 1025, ENTRY_A)), "its table has an impossible key"),
    "key that shares what there is not": (lambda: with_block(b"\1\1\0a"), "its table has an impossible key"),
    "key that never ends": (lambda: with_block(b"\0\x7f\0a"), "ends outside what holds it"),
    "value that never ends": (lambda: with_block(b"\0\1\x7fa"), "ends outside what holds it"),
    "entry cut short": (lambda: with_block(b"\0\1"), "ends outside what holds it"),
    "name of no text": (
        lambda: of(*HONEST, (b"c\xff", entry(b"", [0], offset=40))),
        "'utf-8' codec can't decode",
    ),
    "big-endian": (lambda: with_header((1, 1), (2, 1)), "its byte order is not little"),
    "a later version": (
        lambda: with_header((1, 1), (3, message((1, 2), (2, 2)))),
        "a format later than version 1",
    ),
    "no data files": (lambda: with_header((1, 0)), "states 0 data files"),
    "too many data files": (lambda: with_header((1, 100_000)), "states 100000 data files"),
    "less than no data files": (
        lambda: with_header((1, (1 << 64) - 1)),
        "states 18446744073709551615 data files",
    ),
    "overlap": (lambda: with_b(offset=20), "b overlaps another variable"),
    "overlap by a byte": (lambda: with_b(offset=23), "b overlaps another variable"),
    "the same place": (lambda: with_b(offset=0), "a overlaps another variable"),
    "outside": (lambda: with_b(offset=25), "b ends at byte 41 of 40"),
    "far outside": (lambda: with_b(offset=(1 << 63) - 1), "b ends at byte 9223372036854775823 of 40"),
    "nothing, far outside": (
        lambda: with_b((0,), size=0, offset=1 << 65),
        "b ends at byte 36893488147419103232 of 40",
    ),
    "longer than the file": (lambda: with_b((5,), size=20), "b ends at byte 44 of 40"),
    "another size than its shape's": (
        lambda: with_b((3,)),
        r"b has 16 bytes, not those of shape \[3\] and dtype 1",
    ),
    "another size than its dtype's": (lambda: with_b(dtype=DOUBLE), "not those of shape .* and dtype 2"),
    "integers of another size": (lambda: with_b(dtype=INT64), "not those of shape .* and dtype 9"),
    "no dtype": (lambda: with_b(dtype=0), "not those of shape .* and dtype 0"),
    "a shape whose product overflows": (lambda: with_b((1 << 62, 4), size=0), "b has an impossible shape"),
    "an empty one that does too": (lambda: with_b((1 << 62, 4, 0), size=0), "b has an impossible shape"),
    "a negative size": (lambda: with_b(((1 << 64) - 4,)), "b has an impossible shape"),
    "more axes than we read": (lambda: with_b((4,) + 8 * (1,)), "b has an impossible shape"),
    "axes without end": (lambda: with_b(100_000 * (1,)), "b has an impossible shape"),
    "unknown rank": (lambda: with_b((), more_of_shape=message((3, 1))), "b has an impossible shape"),
    "unknown data file": (lambda: with_b(shard=1), "b is in data file 1 of 1"),
    "partitioned": (lambda: with_b(more=message((7, message((1, b""))))), "partitioned variables: b'b'"),
    "an unknown field": (
        lambda: with_b(more=message((9, 1))),
        "unknown field 9 of wire type 0 beside dtype, shape, ",
    ),
    "an unknown field of a header": (
        lambda: with_header((1, 1), (4, b"")),
        "unknown field 4 .* beside num_shards",
    ),
    "a field of another type": (
        lambda: with_a(varint(4 << 3 | 5) + bytes(4)),
        "unknown field 4 of wire type 5",
    ),
    "a field twice": (lambda: with_b(more=message((5, 16))), "field size is there twice"),
    "a field that never ends": (lambda: with_a(b"\x12\x7f\x12\0"), "ends outside what holds it"),
    "a number that never ends": (
        lambda: with_a(b"\x20" + b"\x80" * 10 + b"\1"),
        "a number has more than 10 bytes",
    ),
    "a number cut short": (lambda: with_a(b"\x08\x80"), "ends outside what holds it"),
}


def test_what_the_damage_is_done_to_is_sound(tmp_path: Path) -> None:
    (tmp_path / "a.data-00000-of-00001").write_bytes(A + B)
    for content in (
        of(*HONEST),
        with_b(),
        with_a(ENTRY_A),
        with_header((1, 1)),
        table(block(HONEST), block([])),
    ):
        (tmp_path / "a.index").write_bytes(content)
        assert {n: t.read().ravel().tolist() for n, t in open_bundle(tmp_path / "a.index").items()} == {
            "a": [0, 1, 2, 3, 4, 5],
            "b": [0, 1, 2, 3],
        }


@pytest.mark.parametrize("name", DAMAGE)
def test_a_bundle_that_tensorflow_would_not_write_is_refused(tmp_path: Path, name: str) -> None:
    content, why = DAMAGE[name]
    (tmp_path / "a.data-00000-of-00001").write_bytes(A + B)
    (tmp_path / "a.index").write_bytes(content())
    with pytest.raises(DataError, match=rf"not a TensorFlow checkpoint we read \(.*\): .*{why}"):
        open_bundle(tmp_path / "a.index")


@pytest.mark.parametrize("name", ["index", "data-00000-of-00001"])
def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path, name: str) -> None:
    for file in ("index", "data-00000-of-00001"):
        (tmp_path / f"a.{file}").write_bytes((GOLDEN / "odd" / f"model.ckpt.{file}").read_bytes())
    content = (tmp_path / f"a.{name}").read_bytes()
    for length in {*range(0, len(content), 37), *range(min(len(content), 700)), len(content) - 1}:
        (tmp_path / f"a.{name}").write_bytes(content[:length])
        with pytest.raises(DataError):
            open_bundle(tmp_path / "a.index")


def test_a_changed_byte_is_refused_or_lies_where_nothing_is_said(tmp_path: Path) -> None:
    content, data = (
        (GOLDEN / "odd" / f"model.ckpt.{name}").read_bytes() for name in ("index", "data-00000-of-00001")
    )
    (tmp_path / "a.data-00000-of-00001").write_bytes(data)
    padding = range(len(content) - 48 + 6, len(content) - 8)  # of the footer: its four numbers take 6 bytes
    for place in range(len(content)):
        (tmp_path / "a.index").write_bytes(flipped(content, place))
        if place in padding:
            assert b"".join(tensor.raw() for tensor in open_bundle(tmp_path / "a.index").values()) == data
            continue
        with pytest.raises(DataError):
            open_bundle(tmp_path / "a.index")


def test_openais_model_is_that_of_its_bundle_and_a_turned_matrix_is_noticed(tmp_path: Path) -> None:
    name = "model/h0/attn/c_attn/w"
    arrays = {n: tensor.read() for n, tensor in open_bundle(GOLDEN / "odd" / "model.ckpt.index").items()}
    (tmp_path / "hparams.json").write_bytes((GOLDEN / "odd" / "hparams.json").read_bytes())
    write_bundle(tmp_path, arrays, shards=2, a_block=5)
    assert bits(open_openai(tmp_path).tensors) == bits(open_openai(GOLDEN / "odd").tensors)
    write_bundle(tmp_path, arrays | {name: arrays[name].reshape(1, 72, 24)}, shards=2)
    with pytest.raises(DataError, match=r"h\.0\.attn\.c_attn\.weight is \[72, 24\], not \[24, 72\]"):
        open_openai(tmp_path)
