"""Log of the server: one JSON object per line on stderr, without personal data.

A request is logged as route, status and time: no ids, histories, attributes or client addresses.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import json
import logging
import select
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, TextIO

LOGGER: Final = logging.getLogger("candid.serve")
MAX_FRAMES: Final = 8
"""Innermost lines of a traceback that are logged."""
FLUSH_SECONDS: Final = 0.2


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, event, and the fields in ``extra["fields"]``.

    Args:
        worker: number of the process, a field of every line; None: there is one process.
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if self._worker is not None:
            line["worker"] = self._worker
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line |= error_fields(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


class BufferedHandler(logging.Handler):
    """Log handler that writes to a stream a few times per second.

    One write per line would cost a request more than its answer: the thread of the model takes
    over during the system call.

    Args:
        stream: to write to.
        seconds: longest time that a line is buffered; warnings and errors are written at once.
    """

    def __init__(self, stream: TextIO, *, seconds: float = FLUSH_SECONDS) -> None:
        super().__init__()
        self._stream = stream
        self._seconds = seconds
        self._lines: list[str] = []
        # A thread that writes holds no other lock, so that others can log meanwhile.
        self._ready: deque[list[str]] = deque()
        self._write_lock = threading.Lock()
        self._timer: threading.Timer | None = None
        atexit.register(self.flush)

    def __repr__(self) -> str:
        return f"BufferedHandler(seconds={self._seconds})"

    def emit(self, record: logging.LogRecord) -> None:
        """Buffer a line; ``logging`` holds the lock during the call."""
        self._lines.append(self.format(record))
        if record.levelno >= logging.WARNING:
            self.flush()
        elif self._timer is None:
            self._timer = threading.Timer(self._seconds, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Write the buffered lines."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines, self._timer = self._lines, [], None
            if lines:
                self._ready.append(lines)
        with self._write_lock:
            while self._ready:
                # The reader of the log may have closed it: requests must not fail for that.
                with contextlib.suppress(OSError, ValueError):
                    for part in _parts(self._ready.popleft()):
                        self._stream.write(part)
                        self._stream.flush()


def _parts(lines: list[str]) -> Iterator[str]:
    """Join lines to parts of at most ``PIPE_BUF`` bytes, which several processes write whole."""
    part, size = list[str](), 0
    for line in lines:
        length = len(line.encode("utf-8", "replace")) + 1
        if part and size + length > select.PIPE_BUF:
            yield "\n".join(part) + "\n"
            part, size = [], 0
        part.append(line)
        size += length
    yield "\n".join(part) + "\n"


def flush_log() -> None:
    """Write the lines that are buffered, such as before the message of an error."""
    for handler in LOGGER.handlers:
        handler.flush()


def log_event(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write one log line."""
    LOGGER.log(level, event, extra={"fields": fields})


def error_fields(error: BaseException) -> dict[str, Any]:
    """Return type and place of an error, without its message, which may quote a request."""
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    return {
        "error": type(error).__qualname__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }


def set_up_logging(worker: int | None = None) -> None:
    """Send the log lines of the server, of the index and of uvicorn to stderr.

    Args:
        worker: number of the process, a field of every line; None: there is one process.
    """
    handler = BufferedHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker))
    for name in ("candid.serve", "candid.index", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.WARNING if name == "uvicorn.error" else logging.INFO)
