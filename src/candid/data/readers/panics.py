"""Panics of Polars without their own messages: the error is one sentence of candid."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

SIGNS: Final = (b"panicked at", b"PanicException")
"""Parts of the messages that Rust and its bridge to Python print about a panic."""
_LOCK = threading.Lock()


@contextmanager
def without_panic_messages() -> Iterator[None]:
    """Hold back what is written to stderr inside the block, and drop it after a panic.

    Rust prints a panic to file descriptor 2 before Python sees the exception, some threads each
    their own. Other output is written when the block ends. With ``CANDID_DEBUG`` nothing is held
    back. The redirection is of the whole process; a second thread inside a block changes nothing.
    """
    if os.environ.get("CANDID_DEBUG") or not _LOCK.acquire(blocking=False):
        yield
        return
    try:
        with tempfile.TemporaryFile() as held:
            saved = _redirect(held.fileno())
            try:
                yield
            finally:
                if saved is not None:
                    _restore(saved)
                    held.seek(0)
                    output = held.read()
                    if output and not any(sign in output for sign in SIGNS):
                        with suppress(OSError):
                            os.write(2, output)
    finally:
        _LOCK.release()


def _redirect(descriptor: int) -> int | None:
    """Point stderr at a file; return a copy of the earlier descriptor, None without stderr."""
    try:
        _flush()
        saved = os.dup(2)
    except OSError:
        return None
    os.dup2(descriptor, 2)
    return saved


def _restore(saved: int) -> None:
    _flush()
    os.dup2(saved, 2)
    os.close(saved)


def _flush() -> None:
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
