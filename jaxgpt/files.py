"""Files written whole or not at all, and their hashes."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from jaxgpt.errors import ConfigError, unwritable


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write into. After the block it is on the disk and takes the place of `path`.

    Raises StorageError where that fails. After this error, and after any error inside the block, the old file
    is still there and unchanged. A device or a pipe, such as /dev/stdout, is written into as it is.
    """
    path = path.resolve() if path.is_symlink() else path
    part = path.with_name(path.name + ".part")
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk. Raises OSError."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def refuse_occupied(path: Path) -> None:
    """Raise ConfigError unless there is nothing at `path`, or an empty folder."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(
            "something is there already",
            path=path,
            why="writing would destroy it",
            fix="name a path that does not exist yet",
        )


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes `path` after the block. After an error nothing is there.

    Raises ConfigError when something is there already, StorageError when writing fails.
    """
    refuse_occupied(path)
    part = path.with_name(path.name + ".part")
    try:
        if part.exists():  # one that was killed left it
            shutil.rmtree(part)
        part.mkdir(parents=True)
        yield part
        if path.is_dir():
            path.rmdir()  # it is empty
        part.rename(path)
    except OSError as error:
        raise unwritable(path, error, "cannot write the model") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises StorageError, which leaves the old file unchanged."""
    with replacing(path) as file:
        file.write(content)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, by their paths in it, each whole or not at all. Raises StorageError."""
    for name, content in files.items():
        write_atomically(folder / name, content)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
