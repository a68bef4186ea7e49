"""Memory that is free but still held goes back to the system."""

import contextlib
import ctypes
from collections.abc import Callable


def return_free_memory(library: Callable[[None], ctypes.CDLL] = ctypes.CDLL) -> None:
    """Have the C library give back what it holds for later, where it is glibc. Others are left alone.

    To compile a step of GPT-2 takes half a gigabyte, in pieces that glibc keeps for itself afterwards.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, or another C library
        library(None).malloc_trim(0)
