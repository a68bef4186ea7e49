"""Programs that JAX has compiled are kept on disk, so that the next start does not compile them again.

JAX has such a cache, and leaves it off. Imports no JAX: what is set here must be set before.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path

from jaxgpt.text.download import cache_folder

LARGEST = 2 * 2**30  # bytes; JAX deletes what was not used for longest
UNFINISHED = 60.0  # seconds after which nobody writes an entry any more
SWITCHES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")  # JAX's own: who sets them decides


def keep_compiled_programs(environment: MutableMapping[str, str] = os.environ) -> Path | None:
    """Have JAX keep what it compiles in the cache folder. Returns where, or None where it is not done.

    That is where JAX is imported already, where a variable of JAX says something else
    (JAX_ENABLE_COMPILATION_CACHE=0 turns it off), and where the folder cannot be written.
    """
    if "jax" in sys.modules or any(name in environment for name in SWITCHES):
        return None
    folder = cache_folder() / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    environment.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(LARGEST))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if not _has_accelerator(environment):
        # XLA compares a program from the cache with the processor, and prints an error about its own tuning
        # flags, which no processor has (openxla/xla#44565). Level 3 leaves that out, and fatal errors in.
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return folder


def _processor() -> str:
    """A name for this kind of processor: a program that was compiled for another one may not run on it."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
        return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()[:16]
    return f"{platform.machine()}-{hashlib.sha256(platform.processor().encode()).hexdigest()[:16]}"


def _has_accelerator(environment: MutableMapping[str, str]) -> bool:
    """Whether JAX may find something else than the processor."""
    if environment.get("JAX_PLATFORMS") == "cpu":
        return False
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def _remove_unfinished(folder: Path) -> None:
    """Delete entries whose writing was cut off. They have no time of use, and JAX then writes no others."""
    for entry in folder.glob("*-cache"):
        used = entry.with_name(f"{entry.name.removesuffix('-cache')}-atime")
        if not used.exists() and time.time() - entry.stat().st_mtime > UNFINISHED:
            entry.unlink(missing_ok=True)
