"""Large arrays lie in huge pages: on a CPU with Linux, training steps then take a tenth to a third less time.

The temporary arrays of a step are up to gigabytes, which XLA takes from the C library and gives back when the
step ends. Linux clears them and hands them out page by page, at the first touch of each: of 4 KiB, that is a
million pages a step. glibc asks for pages of 2 MiB where glibc.malloc.hugetlb is 1, but it reads that only
when a process begins. So a command begins a second time, which takes a hundredth of a second.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SWITCH = "JAXGPT_HUGE_PAGES"  # 0 leaves memory as it is; 1 says that huge pages have been asked for
OLDEST = (2, 35)  # the first glibc that knows the setting
TUNABLE = "glibc.malloc.hugetlb"


def begin_with_huge_pages(setting: Path = SETTING) -> None:
    """Begin this process again with memory in huge pages, where that is to be had and was not asked for.

    It returns where the process goes on as it is. Call it first: what was done before is done again.
    """
    environment = with_huge_pages(os.environ, setting)
    if environment is not None and sys.executable:
        with contextlib.suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def with_huge_pages(environment: Mapping[str, str], setting: Path = SETTING) -> dict[str, str] | None:
    """The environment of a process whose memory is to lie in huge pages.

    None means that there is nothing to ask for: SWITCH or TUNABLE is set already, Linux gives huge pages to
    nobody or to everybody, or the C library is not a glibc that can ask.
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    if SWITCH in environment or TUNABLE in tunables or not _can_ask():
        return None
    try:
        if "[madvise]" not in setting.read_text(encoding="ascii"):
            return None
    except (OSError, ValueError):  # no Linux, or one without huge pages
        return None
    asked = ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))
    return {**environment, "GLIBC_TUNABLES": asked, SWITCH: "1"}


def _can_ask() -> bool:
    """Whether the C library is a glibc that is new enough."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= OLDEST
    except (AttributeError, ValueError, OSError):  # another system, or another C library
        return False
