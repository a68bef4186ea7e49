"""What was compiled for plans before, in the person's cache folder, under a hash of all that decides it."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxgpt.config import TrainConfig
from jaxgpt.config.reading import PACKAGE
from jaxgpt.errors import StorageError
from jaxgpt.files import write_atomically
from jaxgpt.text.download import cache_folder
from jaxgpt.training.topology import Topology

PACKAGES = ("jax", "jaxlib", "flax", "optax", "libtpu")
VARIABLES = ("JAX_", "XLA_", "LIBTPU_")  # the names of those that a compiler or JAX reads begin so


def place_of(recipe: TrainConfig, topology: Topology, environment: Mapping[str, str]) -> Path:
    """Where the figures of a recipe's program are kept, for this slice and these variables.

    The name is a hash of them, of the versions of what compiles, and of jaxgpt's own sources.
    """
    decides = {
        "recipe": dataclasses.asdict(recipe),
        "topology": str(topology),
        "environment": {n: value for n, value in sorted(environment.items()) if n.startswith(VARIABLES)},
        "versions": [_version(package) for package in PACKAGES],
        "machine": [platform.python_version(), platform.machine()],
        "sources": _sources(),
    }
    name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "plans" / f"{name}.json"


def kept(path: Path) -> dict[str, Any] | None:
    """The figures that are kept there. None where there are none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() & {"memory", "refused"} else None


def keep(path: Path, figures: Mapping[str, Any]) -> None:
    """Keep figures there. Where that cannot be written, they are compiled again next time."""
    with contextlib.suppress(StorageError):
        write_atomically(path, json.dumps(figures).encode())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _sources() -> str:
    """A hash of jaxgpt's own sources: what they compile changes with them, and not with its version alone."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()
