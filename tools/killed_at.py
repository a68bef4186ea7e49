"""The command line of jaxgpt, killed before one of its own file operations; for tools/soak_operations.py.

    python tools/killed_at.py RUN LOG KIND NUMBER pretrain nano ...

Before each file operation in the directory RUN, its kind is written into the file LOG. Before operation
NUMBER of a KIND, counted from 1, the process sends itself SIGKILL. A kind is the name of an operation, and a
path in which each number is N. What C++ code does, such as writing the arrays of a checkpoint, is not seen.
"""

import os
import re
import signal
import sys
from collections import Counter
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    """Counts the file operations in a directory."""

    def __init__(self, folder: str, log: str, kind: str, number: int) -> None:
        self._folder, self._kind, self._number = os.path.abspath(folder), kind, number
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._counts = Counter[str]()
        self._fsync = os.fsync

    def begin(self) -> None:
        """Watch this process from here on."""
        os.fsync = self.synced
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an operation that Python announces."""
        if event == "open" and args[0] is not None:
            path, mode, flags = args
            if flags & WRITES or set(mode or "") & set("wax+"):
                self.note(event, path)
        elif event in ("os.mkdir", "os.rename", "os.link"):
            self.note(event, args[0], args[2])
        elif event in ("os.remove", "os.rmdir"):
            self.note(event, args[0], args[1])
        elif event == "os.truncate":
            self.note(event, args[0])

    def synced(self, fd: Any) -> None:
        """Note what is synced, of which Python announces nothing, and sync it."""
        self.note("os.fsync", fd if isinstance(fd, int) else fd.fileno())
        self._fsync(fd)

    def note(self, operation: str, path: Any, folder: int = -1) -> None:
        """Count an operation, and end the process if it is the one that is wanted."""
        opened = path if isinstance(path, int) else folder
        place = os.readlink(f"/proc/self/fd/{opened}") if opened >= 0 else os.getcwd()
        if not isinstance(path, int):
            place = os.path.join(place, os.fsdecode(path))
        if os.path.commonpath([self._folder, place]) != self._folder:
            return
        kind = f"{operation} {re.sub('[0-9a-f]{16,}|[0-9]+', 'N', os.path.relpath(place, self._folder))}"
        os.write(self._log, f"{kind}\n".encode())
        self._counts[kind] += 1
        if kind == self._kind and self._counts[kind] == self._number:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, log, kind, number = (sys.argv.pop(1) for _ in range(4))
    Watch(folder, log, kind, int(number)).begin()
    from jaxgpt.cli import main

    main()
