"""Complete answers as bytes, for connections that no application answers."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from candid.serve.errors import RequestError
from candid.serve.http.errors import body_of, headers_of, status_of

HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)
"""Headers of every response, unless a route sets its own."""


def raw_answer(status: int, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return an answer after which the connection is closed.

    Args:
        status: HTTP status.
        headers: beside the length and ``HEADERS``.
        body: content.
    """
    all_headers = {**headers, "content-length": len(body), "connection": "close"}
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode(),
        *(f"{name}: {value}".encode() for name, value in all_headers.items()),
        *(b"%s: %s" % header for header in HEADERS),
    ]
    return b"\r\n".join([*lines, b"", body])


def error_answer(error: RequestError) -> bytes:
    """Return the answer with the common body of an error."""
    return raw_answer(status_of(error), headers_of(error), body_of(error))
