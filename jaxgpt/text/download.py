"""Named downloads and their cache: a download is resumed if the server allows it, and checked by its hash."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from jaxgpt.display import Progress
from jaxgpt.errors import BusyError, DataError, MissingError, StorageError, unwritable
from jaxgpt.files import file_sha256, write_atomically

if TYPE_CHECKING:
    import requests

TIMEOUT = 30.0  # seconds without a byte
PIECE = 1 << 16  # bytes written at a time; an unfinished piece is asked for again


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file on the web. Without a published `sha256`, that of the first fetch is recorded and compared."""

    address: str
    file: str
    sha256: str | None = None


# Where each address and hash comes from:
# - tiny-shakespeare: address and hash, tensorflow/datasets,
#   tensorflow_datasets/datasets/tiny_shakespeare/checksums.tsv
# - the-verdict: address, rasbt/LLMs-from-scratch, ch05/01_main-chapter-code/gpt_train.py; no published hash
# - fineweb: dataset and file, KellerJordan/modded-nanogpt, data/cached_fineweb10B.py; no published hash
DOWNLOADS = {
    "tiny-shakespeare": Download(
        address="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        file="tiny-shakespeare.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "the-verdict": Download(
        address="https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/"
        "the-verdict.txt",
        file="the-verdict.txt",
    ),
    "fineweb": Download(
        address="https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/main/fineweb_train_000001.bin",
        file="fineweb_train_000001.bin",
    ),
}


def cache_folder() -> Path:
    """Return the folder for downloads: `jaxgpt` in $XDG_CACHE_HOME, or else in ~/.cache.

    Source: XDG Base Directory Specification.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxgpt"


def fetch(download: Download, *, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the path of the downloaded file, fetching it if it is not in the cache.

    Raises MissingError when the file cannot be reached, with its address and the place to put it by hand;
    StorageError when the download breaks off, and then the next call resumes it; DataError when its hash is
    wrong; BusyError while another process fetches it.
    """
    folder = cache_folder() if folder is None else folder
    path = folder / download.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(path.name + ".lock"), timeout=0):
            if not path.exists():
                part = _receive(download, path, progress)
                _check(download, part, path)
                part.replace(path)
                _etag(path).unlink(missing_ok=True)
            else:
                _check(download, path, path)
    except filelock.Timeout as error:
        raise BusyError(
            "cannot download",
            path=path,
            why="another process is downloading it",
            fix="wait for that process and try again",
        ) from error
    except OSError as error:
        raise unwritable(path, error, "cannot store the download") from error
    return path


def _check(download: Download, content: Path, path: Path) -> None:
    """Compare the hash of `content` with the published or recorded one; if there is none, record it."""
    found, record = file_sha256(content), path.with_name(path.name + ".sha256")
    expected = download.sha256 or (record.read_text().split()[0] if record.exists() else None)
    if expected is None:
        write_atomically(record, f"{found}  {path.name}\n".encode())
    elif found != expected:
        if content != path:
            content.unlink()
        why = f"its sha256 is {found}, not {expected}"
        raise DataError(
            "wrong content", path=path, why=why, fix=f"delete it and compare with {download.address}"
        )


def _receive(download: Download, path: Path, progress: Progress | None) -> Path:
    """Fetch into NAME.part, after what is already there if the server says that it is the same file."""
    import requests

    part = _part(path)
    had = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if had and _etag(path).exists():
        headers |= {"Range": f"bytes={had}-", "If-Range": _etag(path).read_text()}
    elif had and download.sha256:
        headers |= {"Range": f"bytes={had}-"}
    try:
        with requests.get(download.address, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # no byte follows what is there, so that is not the file
                part.unlink()
                return _receive(download, path, progress)
            response.raise_for_status()
            _store(response, path, had, progress)
    except requests.RequestException as error:
        raise MissingError(
            "cannot download",
            path=download.address,
            why=str(error),
            fix=f"check the connection, or put the file at {path} by hand",
        ) from error
    return part


def _store(response: "requests.Response", path: Path, had: int, progress: Progress | None) -> None:
    """Write the body after the first `had` bytes if the server resumes there, or else from the start."""
    import requests

    if not response.headers.get("Content-Range", "").startswith(f"bytes {had}-"):
        had = 0
    tag = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):  # a weak tag does not promise the same bytes
        write_atomically(_etag(path), tag.encode())
    else:
        _etag(path).unlink(missing_ok=True)
    length = response.headers.get("Content-Length")
    done, total, why = had, had + int(length) if length else None, "the connection closed"
    with _part(path).open("r+b" if had else "wb") as file:
        file.seek(had)
        try:
            for piece in response.iter_content(PIECE):
                done += file.write(piece)
                if progress:
                    progress(f"downloading {path.name}", done, total)
        except requests.RequestException as error:
            why = str(error)
            total = total or done + 1
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done != total:
        why = f"{done} of {total} bytes came: {why}"
        raise StorageError("download cut off", path=path, why=why, fix="run again to resume it")


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _etag(path: Path) -> Path:
    return path.with_name(path.name + ".etag")
