"""Free memory goes back to the system."""

import os
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.memory import return_free_memory
from jaxgpt.training import state
from jaxgpt.training.state import StepPrograms


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def has_glibc() -> bool:
    return "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {}) and Path("/proc/self/statm").exists()


@pytest.mark.skipif(not has_glibc(), reason="needs Linux with glibc")
def test_what_is_free_goes_back_to_the_system() -> None:
    pieces = [np.ones(8_000) for _ in range(2_000)]  # of 64 kB, which glibc does not map one by one
    last = np.ones(8_000)  # behind them, so that they are not at the end of what glibc holds
    del pieces
    held = resident()
    return_free_memory()
    assert held - resident() > 50_000_000 and last.all()


def test_other_c_libraries_are_left_alone() -> None:
    called = list[int]()
    return_free_memory(lambda _: SimpleNamespace(malloc_trim=called.append))
    assert called == [0]
    return_free_memory(lambda _: SimpleNamespace())


def test_what_compiling_has_used_goes_back_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    events = list[str]()
    jitted = SimpleNamespace(
        lower=lambda *_: SimpleNamespace(
            compile=lambda: events.append("compiled") or (lambda *_: events.append("step"))
        )
    )
    monkeypatch.setattr(state, "return_free_memory", lambda: events.append("returned"))
    programs = StepPrograms(jitted)
    for _ in range(2):
        programs(None, jnp.zeros(3))
    assert events == ["compiled", "returned", "step", "step"]
