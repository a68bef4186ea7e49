"""Text comes from the built-in corpus, from files of every kind, and from a server on this machine."""

import gzip
import hashlib
import http.server
import io
import json
import os
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest

from jaxgpt.errors import BusyError, DataError, MissingError, StorageError
from jaxgpt.text import corpus, text_files
from jaxgpt.text.corpus import Text, builtin_documents, open_texts
from jaxgpt.text.download import DOWNLOADS, Download, cache_folder, fetch
from jaxgpt.text.prepare import prepare
from jaxgpt.text.shards import ShardWriter
from jaxgpt.text.tokenizer_files import load_tokenizer

BODY = bytes(range(256)) * 400
SHA256 = hashlib.sha256(BODY).hexdigest()


def documents(text):
    """The whole documents of a text."""
    found, held = [], ""
    for block in text.blocks():
        held += block.text
        if block.ends:
            found.append(held)
            held = ""
    assert held == "", "the last document ends"
    return found


def test_the_builtin_corpus_is_the_standard_librarys_reference_in_order():
    from pydoc_data.topics import topics

    (text,) = open_texts(["builtin"], spool=None)
    assert list(builtin_documents()) == sorted(topics)
    assert documents(text) == [topics[name] for name in sorted(topics)]
    assert 'The "with" statement' in topics["with"]
    digest, count = text.digest()
    assert count == len("".join(documents(text)).encode()) > 400_000 and len(digest) == 64


def test_a_python_without_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(MissingError, match="no built-in corpus"):
        builtin_documents()


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
def test_a_text_file_is_one_document_to_the_letter(tmp_path, monkeypatch, block):
    monkeypatch.setattr(text_files, "BLOCK", block)
    content = "\ufeffzwei Wörter\r\n😀\n"
    (tmp_path / "a.md").write_bytes(content.encode())
    assert documents(Text("a", tmp_path / "a.md")) == [content]


def test_json_lines_are_a_document_each_and_gzip_is_read_too(tmp_path):
    lines = "".join(
        json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(["one\n", "zwö"])
    ).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress("ä".encode()))
    texts = open_texts([str(tmp_path)], spool=None)
    assert [documents(text) for text in texts] == [["one\n", "zwö"], ["one\n", "zwö"], ["ä"]]


@pytest.mark.parametrize("window", [3, 1000])
@pytest.mark.parametrize("before", [True, False])
def test_gpt2_token_files_give_their_documents_back(tmp_path, monkeypatch, window, before):
    monkeypatch.setattr(text_files, "BLOCK", window)
    tokenizer, texts = load_tokenizer("gpt2"), ["Hello world", "😀 grüße 日本", "x"]
    end = [tokenizer.end_of_text]
    parts = [[*end, *tokenizer.encode(text)] if before else [*tokenizer.encode(text), *end] for text in texts]
    ids = [token for part in parts for token in part]
    writer = ShardWriter(tmp_path, "fineweb", "uint16", shard_tokens=1000)
    writer.append(np.array(ids))
    writer.finish()
    assert documents(Text("f", tmp_path / "fineweb_000000.bin")) == texts


def test_a_folder_is_its_files_in_order_without_hidden_ones(tmp_path):
    for name in ("b.txt", "a/z.txt", ".hidden", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [documents(text)[0] for text in open_texts([str(tmp_path)], spool=None)] == ["a/z.txt", "b.txt"]


def test_standard_input_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("wörter".encode())))
    (text,) = open_texts(["-"], spool=tmp_path / "spool")
    assert documents(text) == ["wörter"]


def test_a_pipe_is_read_once_and_kept(tmp_path):
    """By its name, whose suffix says what it holds; `<(zcat a.gz)` of a shell is one without."""
    os.mkfifo(tmp_path / "a.jsonl")
    line = json.dumps({"text": "wörter"}).encode()
    writer = threading.Thread(target=(tmp_path / "a.jsonl").write_bytes, args=(line,))
    writer.start()
    (text,) = open_texts([str(tmp_path / "a.jsonl")], spool=tmp_path / "spool")
    writer.join()
    assert text.name == str(tmp_path / "a.jsonl")
    assert [documents(text) for _ in range(2)] == [["wörter"], ["wörter"]]


def test_a_pipe_that_nobody_writes_to_and_an_endless_device_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "WAIT", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MissingError, match=r"nobody writes to the pipe \(.*pipe\)"):
        open_texts([str(tmp_path / "pipe")], spool=tmp_path / "spool")
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(DataError, match=f"{device}.*it is a device"):
            open_texts([device], spool=tmp_path / "spool")
    assert not (tmp_path / "spool").exists()


def test_a_writer_may_take_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "WAIT", 0.1)
    os.mkfifo(tmp_path / "pipe")

    def write():
        with (tmp_path / "pipe").open("wb") as file:
            time.sleep(0.3)
            file.write(b"late")

    writer = threading.Thread(target=write)
    writer.start()
    (text,) = open_texts([str(tmp_path / "pipe")], spool=tmp_path / "spool")
    writer.join()
    assert documents(text) == ["late"]


def test_lines_that_hold_no_text_are_passed_over_and_counted(tmp_path):
    lines = [b'\xef\xbb\xbf{"text": "one"}', b"", b'{"text": ""}', b" \t\r", b'{"text": "two"}', b""]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    counts = Counter()
    assert [block.text for block in Text("a", tmp_path / "a.jsonl").blocks(counts)] == ["one", "two"]
    assert counts == {"byte order mark": 1, "blank line": 2, "empty text": 1}


def test_names_that_are_nothing_are_all_reported():
    with pytest.raises(MissingError, match=r"no text nowhere\.txt, shakespear: .*builtin, tiny-shakespeare"):
        open_texts(["builtin", "nowhere.txt", "shakespear"], spool=None)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", b"good \xff bad", "offset 5 "),
        ("a.txt", "aä".encode()[:-1], "offset 1 "),
        ("a.txt", "ab".encode("utf-16"), "offset 0 "),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "offset 24 "),
        ("a.jsonl", b'{"text": "a"}\n\n{}', "line 3 "),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "\xff"}', "offset 28 "),
        ("a.txt", b"\xef\xbb\xbf\xff", "offset 3 "),
        ("a.jsonl", b'{"content": "a"}\n', "line 1 "),
        ("a.jsonl", b'{"text": ""}\n\n', "holds no text"),
        ("a.jsonl", b'{"text": 5}\n', "line 1 "),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1 .*surrogate"),
        ("a.jsonl", b'{"text": "a"}\n' + b"[" * 100_000, "line 2 .*Recursion"),
        ("a.txt", b"", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.txt.gz", gzip.compress(b"text", mtime=0)[:-9], "damaged gzip"),
        ("a.txt.gz", b"text", "damaged gzip"),
        ("a.bin", b"text", "not a token file"),
        ("a.txt", b"%PDF-1.7 ...", "it is a PDF document"),
        ("a.txt", b"\x89PNG\r\n\x1a\n", "it is a PNG picture"),
        ("a.jsonl", b"PK\x03\x04", "it is a zip archive"),
        (
            "a.txt.gz",
            gzip.compress(b"ustar" + bytes(500), mtime=0),
            "a binary file: the byte at offset 5 is zero",
        ),
        ("a.txt", gzip.compress(b"text", mtime=0), "compressed with gzip, though its name"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_bad_input_is_refused_with_its_place(tmp_path, monkeypatch, name, content, why, block):
    monkeypatch.setattr(text_files, "BLOCK", block)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=why):
        documents(Text(name, tmp_path / name))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no files"):
        open_texts([str(tmp_path)], spool=None)


def test_what_prepare_wrote_is_no_text_where_its_manifest_is_gone(tmp_path):
    """Its files of tokens would be read as GPT-2's, whatever tokenizer made them."""
    (tmp_path / "a.txt").write_text("one and two " * 99)
    prepare([str(tmp_path / "a.txt")], tmp_path / "data", tokenizer="bytes")
    (tmp_path / "data" / "manifest.json").unlink()
    with pytest.raises(DataError, match="it holds tokens that `jaxgpt prepare` wrote"):
        open_texts([str(tmp_path / "data")], spool=None)


class Server(http.server.ThreadingHTTPServer):
    """A server of BODY that keeps the Range header of every request in `asked`.

    At most `cut` bytes of an answer are sent, and `tag` is the ETag of the answer.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.cut, self.tag, self.asked = BODY, None, '"v1"', []


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if self.path != "/file":
            self.send_error(404)
            return
        same = self.headers.get("If-Range") in (None, server.tag)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and same else 0
        if start >= len(server.body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        if server.tag:
            self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        self.wfile.write(server.body[start:][: server.cut])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def wanted(server, *, sha256=None, path="file"):
    return Download(address=f"http://127.0.0.1:{server.server_port}/{path}", file="data.txt", sha256=sha256)


def test_a_download_is_cached_and_asked_for_once(server, tmp_path):
    for _ in range(2):
        assert fetch(wanted(server, sha256=SHA256), folder=tmp_path).read_bytes() == BODY
    assert server.asked == [None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.txt", "data.txt.lock"]


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server, tmp_path):
    with pytest.raises(DataError, match="not 0000"):
        fetch(wanted(server, sha256="0" * 64), folder=tmp_path)
    assert not (tmp_path / "data.txt").exists() and not (tmp_path / "data.txt.part").exists()


def test_without_a_published_hash_the_first_one_is_recorded_and_compared(server, tmp_path):
    path = fetch(wanted(server), folder=tmp_path)
    assert (tmp_path / "data.txt.sha256").read_text() == f"{SHA256}  data.txt\n"
    path.write_bytes(BODY + b"!")
    with pytest.raises(DataError, match=f"not {SHA256}"):
        fetch(wanted(server), folder=tmp_path)
    path.unlink()
    server.body = BODY[::-1]
    with pytest.raises(DataError, match=f"not {SHA256}"):
        fetch(wanted(server), folder=tmp_path)


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_download_cut_off_is_resumed_where_it_was(server, tmp_path, sha256):
    server.cut = 70_000
    with pytest.raises(StorageError, match="65536 of 102400 bytes"):
        fetch(wanted(server, sha256=sha256), folder=tmp_path)
    assert not (tmp_path / "data.txt").exists()
    server.cut = None
    assert fetch(wanted(server, sha256=sha256), folder=tmp_path).read_bytes() == BODY
    assert server.asked == [None, "bytes=65536-"]


@pytest.mark.parametrize(("first", "second"), [('"v1"', '"v2"'), (None, None), ('W/"v1"', 'W/"v1"')])
def test_a_download_that_may_have_changed_starts_again(server, tmp_path, first, second):
    server.cut, server.tag, server.body = 70_000, first, BODY[::-1]
    with pytest.raises(StorageError):
        fetch(wanted(server), folder=tmp_path)
    server.cut, server.tag, server.body = None, second, BODY
    assert fetch(wanted(server), folder=tmp_path).read_bytes() == BODY


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "data.txt.part").write_bytes(BODY + b"too long")
    assert fetch(wanted(server, sha256=SHA256), folder=tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("offline", [True, False])
def test_what_cannot_be_had_names_the_address_and_where_to_put_it(server, tmp_path, offline):
    download = wanted(server, path="nothing")
    if offline:
        download = Download(address="http://127.0.0.1:1/file", file="data.txt")
    with pytest.raises(MissingError) as caught:
        fetch(download, folder=tmp_path)
    assert download.address in str(caught.value) and f"put the file at {tmp_path / 'data.txt'}" in str(
        caught.value
    )


def test_a_file_put_there_by_hand_is_taken(tmp_path):
    (tmp_path / "data.txt").write_bytes(BODY)
    download = Download(address="http://127.0.0.1:1/file", file="data.txt", sha256=SHA256)
    assert fetch(download, folder=tmp_path).read_bytes() == BODY


def test_a_second_download_at_the_same_time_is_refused(tmp_path):
    import filelock

    download = Download(address="http://127.0.0.1:1/file", file="data.txt")
    with filelock.FileLock(tmp_path / "data.txt.lock"), pytest.raises(BusyError):
        fetch(download, folder=tmp_path)


def test_the_cache_is_where_the_xdg_specification_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "jaxgpt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home/.cache/jaxgpt"


def test_a_corpus_name_fetches_its_download(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    server.body = b"First Citizen"
    monkeypatch.setitem(DOWNLOADS, "tiny-shakespeare", wanted(server))
    seen = []
    (text,) = open_texts(["tiny-shakespeare"], spool=None, progress=lambda *args: seen.append(args))
    assert documents(text) == ["First Citizen"]
    assert seen == [("downloading data.txt", 13, 13)]
