"""Where measurements are written: always to metrics.jsonl, and to TensorBoard too when asked for.

Floats are written so that they read back exactly. `jaxgpt.log` reads the rows.
"""

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxgpt.errors import ConfigError, StorageError
from jaxgpt.files import write_atomically
from jaxgpt.log import read_rows


class Sink(Protocol):
    """A place for measurements. A measurement is a finite number or a text."""

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record what was measured at `step`."""

    def close(self) -> None:
        """Finish writing."""


class MetricsLog:
    """The metrics file of a run. Rows are appended, and each is in the file when `write` returns.

    Opening it removes the end of a write that was interrupted, and nothing else. Raises DataError when a line
    is not a row, and StorageError when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        read_rows(path)  # raises where a line is no row
        try:
            with path.open("ab") as file:
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a row. Numbers may be NumPy or JAX scalars. Raises ValueError where one is not finite."""
        assert "step" not in metrics, "the step is an argument of its own"
        row = {"step": step, **{key: _plain(key, value) for key, value in metrics.items()}}
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order they were written."""
        return read_rows(self._path)

    def cut_back(self, step: int) -> None:
        """Remove the rows of later steps, all at once. A run resumed at `step` writes them again."""
        rows = self.rows()
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) == len(rows):
            return
        write_atomically(self._path, b"".join(json.dumps(row).encode() + b"\n" for row in kept))

    def close(self) -> None:
        """Do nothing: every row is in the file already."""

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            "metrics were not written",
            path=self._path,
            why=str(error.strerror),
            fix="free some disk space, or name another directory",
        )


def check_tensorboard() -> None:
    """Raise ConfigError where tensorboardX is not installed: before a run begins, not as it first writes."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "tensorboard = true",
            why="tensorboardX is not installed",
            fix="pip install 'jaxgpt[tensorboard]', or leave out --tensorboard",
        )


class TensorBoardSink:
    """Writes TensorBoard event files into `folder`, with tensorboardX (see `check_tensorboard`).

    With `resumed_at`, TensorBoard no longer shows what an earlier process recorded after that step.
    """

    def __init__(self, folder: Path, *, resumed_at: int | None = None) -> None:
        import tensorboardX

        purge_step = None if resumed_at is None else resumed_at + 1
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record numbers as TensorBoard scalars, and texts as TensorBoard texts."""
        for key, value in metrics.items():
            if isinstance(value, str):
                self._writer.add_text(key, value, step)
            else:
                self._writer.add_scalar(key, _plain(key, value), step)

    def close(self) -> None:
        """Write out what is still in memory."""
        self._writer.close()


def _plain(key: str, value: Any) -> Any:
    """The measurement as a Python number or text. Raises ValueError where it is not finite."""
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, float) and not math.isfinite(plain):
        raise ValueError(f"{key} = {plain} is not finite, and the log holds finite numbers only")
    return plain
