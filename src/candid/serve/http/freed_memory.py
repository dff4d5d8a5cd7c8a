"""Memory that requests have freed, given back to the system."""

from __future__ import annotations

import ctypes
import platform
import threading
import time
from typing import Final

TRIM_SECONDS: Final = 5.0
"""Seconds between two calls of ``malloc_trim``, each of which takes a few milliseconds."""


def give_back_freed_memory(seconds: float = TRIM_SECONDS) -> None:
    """Start a thread that gives freed memory back to the system as long as the process lives.

    glibc keeps freed blocks below the last one in use, so that the memory of a process follows the
    largest requests that ever came together. Other C libraries: nothing.

    Args:
        seconds: between two times.
    """
    if platform.libc_ver()[0] == "glibc":
        threading.Thread(
            target=_trim_forever, args=(seconds,), name="freed-memory", daemon=True
        ).start()


def _trim_forever(seconds: float) -> None:
    # ctypes releases the interpreter lock for the call.
    trim = ctypes.CDLL(None).malloc_trim
    while True:
        time.sleep(seconds)
        trim(0)
