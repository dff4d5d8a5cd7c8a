"""The server's log: one JSON object a line on stderr, and nothing of what people asked.

No ids, histories, features or addresses of clients: a request is its route, status and time.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
import traceback
from typing import Any

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
    """Send the lines of this server and of uvicorn to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("candid.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if name == "candid.serve" else logging.WARNING)
