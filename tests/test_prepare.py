"""Prepared tokens are those of the whole texts, whatever the cuts, the workers and the interruptions."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain

import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.errors import BusyError, ConfigError, DataError, MissingError, StorageError
from jaxgpt.text import prepare as module
from jaxgpt.text.corpus import builtin_documents
from jaxgpt.text.documents import choose_validation, cut_blocks, find_border, group_blocks
from jaxgpt.text.manifest import MANIFEST_FILE, Manifest
from jaxgpt.text.prepare import JOURNAL_FILE, encode_blocks, prepare
from jaxgpt.text.shards import ShardWriter, open_split
from jaxgpt.text.text_files import Block
from jaxgpt.text.tokenizer import TOKENIZER_FILE
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.verbs.prepare import PrepareArgs, run

GPT2 = load_tokenizer("gpt2")
END = GPT2.end_of_text
PROSE = builtin_documents()["with"] + builtin_documents()["if"]
TRICKY = (
    st.text(st.sampled_from(" \n\t\r\xa0\x85\u3000\u2028\x1c\x00'aéß1²٣.,!😀\u0301sl"), max_size=80)
    | st.text()
)


@pytest.fixture
def small(monkeypatch):
    """Batches are small and each has a journal entry, so that a short text goes through everything."""
    monkeypatch.setattr(module, "BATCH", 100)
    monkeypatch.setattr(module, "JOURNAL_EVERY", 1)


@pytest.fixture
def prose(tmp_path):
    (tmp_path / "prose.txt").write_text(PROSE)
    return str(tmp_path / "prose.txt")


def tokens(folder, split):
    stream = open_split(folder, split)
    return stream.read(0, len(stream)).tolist()


def contents(folder):
    """Every file of a prepared folder but the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@settings(deadline=None, max_examples=300)
@given(TRICKY, st.integers(1, 20))
def test_text_cut_at_borders_encodes_as_the_whole(text, size):
    blocks = list(cut_blocks([Block(text, True)], size))
    assert "".join(block.text for block in blocks) == text
    assert list(chain.from_iterable(GPT2.encode(block.text) for block in blocks)) == GPT2.encode(text)
    assert [block.ends for block in blocks] == [False] * (len(blocks) - 1) + [True]


@settings(deadline=None)
@given(TRICKY)
def test_every_border_is_one(text):
    border = -1
    while (border := find_border(text, border + 1)) is not None:
        assert GPT2.encode(text[:border]) + GPT2.encode(text[border:]) == GPT2.encode(text)


@settings(deadline=None)
@given(st.lists(TRICKY, min_size=1), st.integers(1, 20))
def test_where_a_text_is_cut_does_not_depend_on_how_it_is_read(pieces, size):
    streamed = [Block(piece, False) for piece in pieces[:-1]] + [Block(pieces[-1], True)]
    assert list(cut_blocks(streamed, size)) == list(cut_blocks([Block("".join(pieces), True)], size))


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 60))
def test_grouped_blocks_are_the_same_blocks(sizes, size):
    blocks = [Block("x" * length, True) for length in sizes]
    groups = list(group_blocks(blocks, size))
    assert list(chain.from_iterable(groups)) == blocks
    assert all(sum(len(block.text) for block in group) >= size for group in groups[:-1])


@given(st.lists(st.integers(1, 1000), min_size=2), st.floats(0.01, 0.99))
def test_validation_is_about_the_fraction_and_neither_part_is_empty(sizes, fraction):
    chosen = choose_validation(sizes, fraction)
    assert 0 < len(chosen) < len(sizes)
    assert abs(sum(sizes[i] for i in chosen) - fraction * sum(sizes)) <= max(sizes)


def test_of_a_hundred_equal_documents_every_tenth_is_for_validation():
    assert choose_validation([7] * 100, 0.1) == set(range(4, 100, 10))
    assert choose_validation([7] * 100, 0) == set()


def test_a_single_document_is_cut_once_and_ends_once(small, prose, tmp_path):
    manifest = prepare([prose], tmp_path / "out")
    train, val = tokens(tmp_path / "out", "train"), tokens(tmp_path / "out", "val")
    assert train + val == [*GPT2.encode(PROSE), END]
    cut = len(GPT2.decode(train))
    assert 0.9 * len(PROSE) <= cut <= 0.9 * len(PROSE) + 100 and PROSE[cut].isspace()
    assert (manifest.splits["train"].documents, manifest.splits["val"].documents) == (1, 1)


def test_documents_are_split_whole_each_with_its_end(tmp_path):
    texts = list(builtin_documents().values())
    manifest = prepare(["builtin"], tmp_path / "out")
    chosen = choose_validation([len(text) for text in texts], 0.1)
    for split, inside in (("train", False), ("val", True)):
        part = [text for i, text in enumerate(texts) if (i in chosen) == inside]
        assert tokens(tmp_path / "out", split) == [
            token for text in part for token in (*GPT2.encode(text), END)
        ]
        assert manifest.splits[split].documents == len(part)
    sizes = {name: split.tokens for name, split in manifest.splits.items()}
    assert 0.08 < sizes["val"] / sum(sizes.values()) < 0.12


def test_without_validation_everything_is_for_training(prose, tmp_path):
    prepare([prose], tmp_path / "out", val_fraction=0)
    assert tokens(tmp_path / "out", "train") == [*GPT2.encode(PROSE), END]
    assert tokens(tmp_path / "out", "val") == []


def test_end_of_text_in_the_text_stays_text(tmp_path):
    (tmp_path / "a.txt").write_text("a<|endoftext|>b")
    prepare([str(tmp_path / "a.txt")], tmp_path / "out", val_fraction=0)
    assert tokens(tmp_path / "out", "train").count(END) == 1


@pytest.mark.parametrize(("tokenizer", "dtype"), [("gpt2", "uint16"), ("bytes", "uint16")])
def test_the_folder_holds_the_tokenizer_it_was_made_with(prose, tmp_path, tokenizer, dtype):
    manifest = prepare([prose], tmp_path / "out", tokenizer=tokenizer)
    assert (
        load_tokenizer(tmp_path / "out").sha256
        == manifest.tokenizer_sha256
        == load_tokenizer(tokenizer).sha256
    )
    assert (manifest.dtype, manifest.vocab) == (dtype, load_tokenizer(tokenizer).vocab)
    assert sorted(contents(tmp_path / "out")) == [
        MANIFEST_FILE,
        TOKENIZER_FILE,
        "train_000000.bin",
        "val_000000.bin",
    ]


def test_the_bytes_do_not_depend_on_the_number_of_workers(prose, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1000)
    folders = [tmp_path / str(workers) for workers in (1, 2, 7)]
    for workers, folder in zip((1, 2, 7), folders, strict=True):
        prepare([prose, "builtin"], folder, workers=workers, shard_tokens=30_000)
    assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])


@pytest.mark.parametrize("at", [0, 1, 5, 20])
def test_an_interrupted_run_goes_on_to_the_same_bytes(small, prose, tmp_path, monkeypatch, at):
    prepare([prose], tmp_path / "whole", shard_tokens=700)
    appended, encoded = [], []
    append = ShardWriter.append

    def interrupt(self, ids):
        appended.append(1)
        if len(appended) > at:
            raise KeyboardInterrupt
        append(self, ids)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "append", interrupt)
        prepare([prose], tmp_path / "out", shard_tokens=700)
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()
    monkeypatch.setattr(module, "encode_blocks", lambda *args: encoded.append(1) or encode_blocks(*args))
    prepare([prose], tmp_path / "out", shard_tokens=700)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    total = sum(
        len(list(group_blocks(cut_blocks([Block(t, True)], 100), 100))) for t in halves(tmp_path / "whole")
    )
    assert len(encoded) == total - at, "what was done is not done again"


def halves(folder):
    return [GPT2.decode(tokens(folder, split)).removesuffix("<|endoftext|>") for split in ("train", "val")]


def test_a_killed_process_is_resumed_to_the_same_bytes(prose, tmp_path):
    script = (
        "import sys, time; from jaxgpt.text import prepare as m; m.BATCH, m.JOURNAL_EVERY = 100, 3;"
        "append = m.ShardWriter.append;"
        "m.ShardWriter.append = lambda self, ids: (append(self, ids), time.sleep(0.02));"
        "m.prepare([sys.argv[1]], sys.argv[2], shard_tokens=700)"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", 100)
        prepare([prose], tmp_path / "whole", shard_tokens=700)
        with subprocess.Popen([sys.executable, "-c", script, prose, str(tmp_path / "out")]) as process:
            journal = tmp_path / "out" / JOURNAL_FILE
            while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 8):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        prepare([prose], tmp_path / "out", shard_tokens=700)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_folder_is_left_alone(prose, tmp_path):
    first = prepare([prose], tmp_path / "out")
    before = {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.name != ".lock"
    }
    assert prepare([prose], tmp_path / "out") == first
    after = {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.name != ".lock"
    }
    assert before == after


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "why"),
    [({"val_fraction": 0.2}, "val_fraction"), ({"tokenizer": "bytes"}, "tokenizer"), ({}, "texts")],
)
def test_other_data_is_not_overwritten(small, prose, tmp_path, monkeypatch, finished, change, why):
    if finished:
        prepare([prose], tmp_path / "out")
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(ShardWriter, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            prepare([prose], tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match=f"made with other .*{why}"):
        prepare([prose if change else "builtin"], tmp_path / "out", **change)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: b"",
        lambda lines: b"{\n",
        lambda lines: b"[1, 2]\n",
        lambda lines: b"[" * 100_000 + b"\n",
        lambda lines: lines + b"[1, 2]\n",
        lambda lines: lines + b"3\n",
    ],
)
def test_a_damaged_record_of_what_is_done_is_refused(small, prose, tmp_path, monkeypatch, damage):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare([prose], tmp_path / "out")
    journal = tmp_path / "out" / JOURNAL_FILE
    journal.write_bytes(damage(journal.read_bytes()))
    with pytest.raises(DataError, match=r"cannot resume .*progress\.jsonl\): the record .* is damaged"):
        prepare([prose], tmp_path / "out")


def test_a_folder_of_something_else_is_refused(prose, tmp_path):
    with pytest.raises(ConfigError, match=r"holds prose\.txt"):
        prepare([prose], tmp_path)


def test_an_output_inside_its_input_is_refused(prose, tmp_path):
    with pytest.raises(ConfigError, match="inside the input"):
        prepare([str(tmp_path)], tmp_path / "out")


def test_two_writers_at_once_are_refused(prose, tmp_path):
    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / ".lock"), pytest.raises(BusyError):
        prepare([prose], tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"val_fraction": 1.0}, "--val-fraction = 1.0: it must be at least 0 and less than 1"),
        ({"val_fraction": -0.1}, "--val-fraction = -0.1"),
        ({"shard_tokens": 0}, "--shard-tokens = 0: it must be from 1 to"),
        ({"workers": 0}, "--workers = 0: it must be greater than 0"),
        ({"texts": []}, "no TEXT: nothing was named"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_flag_before_anything_is_made(
    prose, tmp_path, settings, said
):
    with pytest.raises(ConfigError, match=said):
        prepare(**{"texts": [prose], "out": tmp_path / "out"} | settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "why"), [(b"ab\xff", "offset 2"), (b"", "no text"), (b"a", "only one character")]
)
def test_a_text_that_cannot_be_used_is_refused(tmp_path, content, why):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=why):
        prepare([str(tmp_path / "a.txt")], tmp_path / "out")


def test_all_files_that_cannot_be_used_are_named_or_left_out(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    bad = {"b.txt": b"", "c.png": b"\x89PNG", "d.txt": b"some \xff text", "f.jsonl": b'{"text": "a"}\nx'}
    for name, content in ({"a.txt": b"first", "e.txt": b"second"} | bad).items():
        (folder / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        prepare([str(folder)], tmp_path / "out", tokenizer="bytes")
    message = str(refused.value)
    assert "cannot use 4 of 6 texts" in message and message.endswith(
        "with `jaxgpt prepare --skip-unreadable`"
    )
    assert all(f"({folder / name})" in message for name in bad)
    assert "a.txt" not in message and not (tmp_path / "out" / "manifest.json").exists()
    told = []
    manifest = prepare(
        [str(folder)], tmp_path / "out", tokenizer="bytes", skip_unreadable=True, tell=told.append
    )
    assert [source.name for source in manifest.sources] == [f"{folder}/a.txt", f"{folder}/e.txt"]
    assert tokens(tmp_path / "out", "train") + tokens(tmp_path / "out", "val") == [
        token for text in (b"second", b"first") for token in (*text, 256)
    ]
    left_out = [line for line in told if line.startswith("left out: ")]
    assert len(left_out) == 4 and all(f"({folder / name})" in "".join(left_out) for name in bad)
    for name in ("a.txt", "e.txt"):
        (folder / name).unlink()
    with pytest.raises(DataError, match="cannot use 4 of 4 texts"):
        prepare([str(folder)], tmp_path / "none", tokenizer="bytes", skip_unreadable=True)


def test_a_validation_split_that_is_far_from_the_fraction_or_tiny_is_said(tmp_path):
    """Two books cannot be divided nine to one; one text can, and ten of a length are."""

    def told(sizes):
        names = [str(tmp_path / f"{len(sizes)}-{number}.txt") for number in range(len(sizes))]
        for name, size in zip(names, sizes, strict=True):
            with open(name, "w") as file:
                file.write("ab " * (size // 3))
        said = []
        prepare(names, tmp_path / f"out-{len(sizes)}", tokenizer="bytes", tell=said.append)
        return said

    (share,) = told([38_000, 12_000])
    assert share.startswith(
        "the validation split has 24% of the text instead of 10%, because the 2 documents"
    )
    assert told([50_000]) == [] == told([20_000] * 10)
    (few,) = told([600] * 3)[1:]
    assert few.startswith("the split val has only 601 tokens")


def test_what_lines_of_json_leave_out_is_said(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one two"}\n\n{"text": ""}\n\n{"text": "three"}\n')
    said = []
    prepare(
        [str(tmp_path / "a.jsonl")], tmp_path / "out", tokenizer="bytes", val_fraction=0, tell=said.append
    )
    assert said[0] == f"{tmp_path / 'a.jsonl'}: left out 2 blank lines, 1 empty text"


def test_a_missing_text_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"nowhere\.txt"):
        prepare(["nowhere.txt"], tmp_path / "out")


def test_a_text_that_changes_while_it_is_read_is_noticed(prose, tmp_path, monkeypatch):
    def touch(*args):
        os.utime(prose, (1, 1))
        return encode_blocks(*args)

    monkeypatch.setattr(module, "encode_blocks", touch)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare([prose], tmp_path / "out")


def test_a_full_disk_is_a_storage_error_and_leaves_something_to_resume(small, prose, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        prepare([prose], tmp_path / "out")
    prepare([prose], tmp_path / "out")
    assert tokens(tmp_path / "out", "train") + tokens(tmp_path / "out", "val") == [*GPT2.encode(PROSE), END]


def test_standard_input_is_prepared_and_its_copy_removed(tmp_path, monkeypatch):
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROSE.encode())))
        manifest = prepare(["-"], tmp_path / "out", val_fraction=0)
    assert tokens(tmp_path / "out", "train") == [*GPT2.encode(PROSE), END]
    assert manifest.sources[0].name == "-" and not (tmp_path / "out" / ".spool").exists()


def test_our_token_files_are_texts_again(prose, tmp_path):
    prepare([prose], tmp_path / "one", val_fraction=0)
    prepare([str(tmp_path / "one" / "train_000000.bin")], tmp_path / "two", val_fraction=0)
    assert tokens(tmp_path / "one", "train") == tokens(tmp_path / "two", "train")


def test_the_verb_says_what_was_made_and_then_that_nothing_changed(prose, tmp_path, capsys):
    args = PrepareArgs(texts=(prose,), out=tmp_path / "out")
    for word in (": prepared:", ": it was prepared already and is unchanged:"):
        run(args)
        captured = capsys.readouterr()
        train = Manifest.load(tmp_path / "out").splits["train"].tokens
        assert captured.out == "" and word in captured.err and f"{train:,} training" in captured.err
        assert f"next: jaxgpt pretrain small --data.path {tmp_path / 'out'}" in captured.err


def test_the_verbs_arguments_are_cheap_to_import():
    code = (
        "import sys, json, jaxgpt.verbs.prepare, jaxgpt.verbs.tokenizer; print(json.dumps(list(sys.modules)))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert not {"jax", "tiktoken", "tokenizers", "requests", "rich.progress"} & set(loaded)
