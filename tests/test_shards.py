"""Token files: llm.c's layout byte for byte, one sequence over many files, every problem reported."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.errors import DataError, MissingError
from jaxgpt.text.manifest import MANIFEST_FILE, Manifest, Shard, Source, Split, token_dtype
from jaxgpt.text.shards import ShardWriter, TokenStream, open_split

IDS = np.arange(1000, 1025)


def write(folder, ids, *, split="train", dtype="uint16", shard_tokens=10):
    writer = ShardWriter(folder, split, dtype, shard_tokens=shard_tokens)
    writer.append(np.asarray(ids))
    return writer.finish()


def prepared(folder, ids=IDS):
    """A folder with the ids as training split, an empty validation split, and its manifest."""
    shards = write(folder, ids)
    manifest = Manifest(
        tokenizer="gpt2",
        tokenizer_sha256="0" * 64,
        vocab=50257,
        end_of_text=50256,
        dtype="uint16",
        val_fraction=0.0,
        shard_tokens=10,
        splits={
            "train": Split(documents=1, tokens=len(ids), shards=shards),
            "val": Split(documents=0, tokens=0, shards=()),
        },
        sources=(Source(name="a.txt", sha256="1" * 64, bytes=3, documents=1),),
    )
    manifest.save(folder)
    return manifest


@pytest.mark.parametrize(
    ("dtype", "magic", "version", "code"), [("uint16", 20240520, 1, "H"), ("uint32", 20240801, 7, "I")]
)
def test_a_shard_is_llmcs_file_byte_for_byte(tmp_path, dtype, magic, version, code):
    # karpathy/llm.c, dev/data/data_common.py: 256 int32 (magic, version, count, zeros), then the tokens.
    write(tmp_path, [7, 8, 50256], dtype=dtype)
    expected = struct.pack("<256i", magic, version, 3, *[0] * 253) + struct.pack(f"<3{code}", 7, 8, 50256)
    assert (tmp_path / "train_000000.bin").read_bytes() == expected


def test_a_file_of_llmc_is_read_as_it_is(tmp_path):
    content = struct.pack("<256i", 20240520, 1, 2, *[0] * 253) + struct.pack("<2H", 50256, 65535)
    (tmp_path / "fineweb_val_000000.bin").write_bytes(content)
    stream = TokenStream([tmp_path / "fineweb_val_000000.bin"])
    assert stream.read(0, 2).tolist() == [50256, 65535] and stream.read(0, 2).dtype == np.int32


def test_65536_ids_fit_in_sixteen_bits_and_one_more_does_not():
    assert (token_dtype(65536), token_dtype(65537)) == ("uint16", "uint32")


def test_shards_are_full_but_for_the_last(tmp_path):
    shards = write(tmp_path, IDS)
    assert [(shard.file, shard.tokens) for shard in shards] == [
        ("train_000000.bin", 10),
        ("train_000001.bin", 10),
        ("train_000002.bin", 5),
    ]
    assert not list(tmp_path.glob("*.part"))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 65535), max_size=60), st.integers(1, 25), st.data())
def test_any_span_reads_as_in_the_whole_list(tmp_path_factory, ids, shard_tokens, data):
    folder = tmp_path_factory.mktemp("shards")
    shards = write(folder, ids, shard_tokens=shard_tokens)
    stream = TokenStream([folder / shard.file for shard in shards])
    start = data.draw(st.integers(0, len(ids)))
    stop = data.draw(st.integers(start, len(ids)))
    assert len(stream) == len(ids)
    assert stream.read(start, stop).tolist() == ids[start:stop]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 15))
def test_a_resumed_writer_leaves_what_an_uninterrupted_one_does(
    tmp_path_factory, kept, written, shard_tokens
):
    kept = min(kept, written)
    ids = np.arange(50)
    once, twice = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("twice")
    whole = write(once, ids, shard_tokens=shard_tokens)
    with ShardWriter(twice, "train", "uint16", shard_tokens=shard_tokens) as first:
        first.append(ids[:written])
    second = ShardWriter(twice, "train", "uint16", shard_tokens=shard_tokens, tokens=kept)
    second.append(ids[kept:])
    assert second.finish() == whole
    assert {p.name: p.read_bytes() for p in twice.iterdir()} == {
        p.name: p.read_bytes() for p in once.iterdir()
    }


def test_a_writer_does_not_resume_over_tokens_that_are_gone(tmp_path):
    write(tmp_path, IDS)
    (tmp_path / "train_000000.bin").unlink()
    with pytest.raises(DataError, match=r"train_000000\.bin"):
        ShardWriter(tmp_path, "train", "uint16", shard_tokens=10, tokens=20)


def test_reading_outside_the_stream_is_an_error(tmp_path):
    write(tmp_path, IDS)
    stream = TokenStream([tmp_path / "train_000000.bin"])
    for start, stop in [(-1, 3), (0, 11), (5, 4)]:
        with pytest.raises(IndexError):
            stream.read(start, stop)


def test_a_manifest_comes_back_as_it_was(tmp_path):
    manifest = prepared(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert open_split(tmp_path, "train").read(0, 25).tolist() == IDS.tolist()
    assert len(open_split(tmp_path, "val")) == 0


def test_the_fingerprint_follows_the_tokens_and_not_the_names(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one, other = prepared(tmp_path / "a"), prepared(tmp_path / "b", IDS + 1)
    renamed = Manifest(
        **{**vars(one), "sources": (Source(name="b.txt", sha256="1" * 64, bytes=3, documents=1),)}
    )
    assert one.fingerprint == renamed.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.pop("vocab"), "expected the entries"),
        (lambda data: data.update(vocab="50257"), "vocab is '50257', not int"),
        (lambda data: data.update(format=2), "format is 2"),
        (lambda data: data.update(dtype="int8"), "dtype"),
        (lambda data: data["splits"].pop("val"), "splits"),
        (lambda data: data["splits"]["train"].update(tokens=3), "its shards do not add up"),
        (lambda data: data["splits"]["train"]["shards"][0].pop("sha256"), "sha256"),
    ],
)
def test_a_manifest_that_is_not_as_expected_is_refused(tmp_path, change, why):
    prepared(tmp_path)
    data = json.loads((tmp_path / MANIFEST_FILE).read_text())
    change(data)
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(data))
    with pytest.raises(DataError, match=why):
        Manifest.load(tmp_path)


def test_a_manifest_nested_without_end_is_refused(tmp_path):
    (tmp_path / MANIFEST_FILE).write_text("[" * 100_000)
    with pytest.raises(DataError, match="not a manifest"):
        Manifest.load(tmp_path)


def test_every_problem_of_every_shard_is_reported_at_once(tmp_path):
    prepared(tmp_path, np.arange(45))
    paths = sorted(tmp_path.glob("train_*.bin"))
    paths[0].write_bytes(b"short")
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    paths[2].unlink()
    paths[3].write_bytes(paths[4].read_bytes())
    with pytest.raises(DataError, match="4 of 5") as caught:
        open_split(tmp_path, "train")
    for part in (
        "000.bin): it begins with []",
        "001.bin): it has 1043 bytes",
        "002.bin): it does not",
        "5 tokens, but the manifest states 10",
    ):
        assert part in str(caught.value)


def test_an_unprepared_folder_says_what_to_run(tmp_path):
    with pytest.raises(MissingError, match="jaxgpt prepare"):
        open_split(tmp_path, "train")


def test_only_missing_files_are_a_missing_input(tmp_path):
    with pytest.raises(MissingError, match="2 of 2"):
        TokenStream([tmp_path / "a.bin", tmp_path / "b.bin"])


def test_a_shard_says_what_it_is(tmp_path):
    assert write(tmp_path, [1, 2]) == (
        Shard(
            file="train_000000.bin",
            tokens=2,
            # (printf '\x88\xd8\x34\x01\x01\0\0\0\x02\0\0\0'; head -c 1012 /dev/zero; printf '\x01\0\x02\0') |
            #   sha256sum
            sha256="80fa3888c208f229ef60ae4d3b90ff598483a4d241ee6de38378526ef3c1c9ea",
        ),
    )
