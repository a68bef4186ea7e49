"""Files written whole or not at all, and their hashes."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxgpt.errors import unwritable


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write into. After the block it is flushed to the disk and takes the place of `path`.

    Raises StorageError where that fails. After this error, and after any error inside the block, the old file
    is still there and unchanged.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises StorageError, which leaves the old file unchanged."""
    with replacing(path) as file:
        file.write(content)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
