"""The server's log: one JSON object a line on stderr, and nothing of what people asked.

No ids, histories, features or addresses of clients: a request is its route, status and time.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import json
import logging
import sys
import threading
import traceback
from typing import Any, TextIO

LOGGER = logging.getLogger("candid.serve")
FRAMES = 8
"""Innermost lines of a traceback that are told."""


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, event, and the facts given as ``extra["facts"]``."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record down."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= fault(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


class HeldLines(logging.Handler):
    """Writes lines to a stream a few times a second.

    A write for each would cost its request more than the answer does, as the model's thread takes
    over meanwhile.

    Args:
        stream: where to.
        seconds: that a line waits at most; warnings and worse wait for nothing.
    """

    def __init__(self, stream: TextIO, seconds: float = 0.2) -> None:
        super().__init__()
        self._stream = stream
        self._seconds = seconds
        self._held: list[str] = []
        self._timer: threading.Timer | None = None
        atexit.register(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        """Hold a line, and write all that are held when it is time; called with the lock held."""
        self._held.append(self.format(record))
        if record.levelno >= logging.WARNING:
            self.flush()
        elif self._timer is None:
            self._timer = threading.Timer(self._seconds, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Write what is held."""
        with self.lock or contextlib.nullcontext():
            held, self._held, self._timer = self._held, [], None
        if held:
            # Nobody may read any more; that is no reason to fail whoever asks.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write("\n".join(held) + "\n")
                self._stream.flush()


def tell(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Write one line."""
    LOGGER.log(level, event, extra={"facts": facts})


def fault(error: BaseException) -> dict[str, Any]:
    """Where and as what an error came up; not its message, which may quote a request."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    return {
        "error": type(error).__qualname__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }


def set_up() -> None:
    """Send the lines of this server, of its index and of uvicorn to stderr."""
    handler = HeldLines(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("candid.serve", "candid.index", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING if name == "uvicorn.error" else logging.INFO)
