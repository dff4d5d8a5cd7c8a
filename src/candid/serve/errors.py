"""The error of one request, without any HTTP."""

from __future__ import annotations

from typing import Final

from candid.errors import CandidError

MAX_MESSAGE: Final = 200
"""Characters of a message that may come from the request."""
MAX_VALUE: Final = 60
"""Characters of one value of the request in a message."""


class RequestError(CandidError):
    """A request that cannot be answered: it is wrong, or the server has no capacity for it now.

    Args:
        code: a key of ``candid.serve.http.errors.STATUS``, which maps it to an HTTP status.
        message: one sentence.
        field: path of the wrong field, such as ``queries.3.k``; None: no single field is wrong.
        retry_after: seconds to wait before a retry; None: a retry cannot help.
    """

    def __init__(
        self, code: str, message: str, field: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after

    def __repr__(self) -> str:
        return f"RequestError({self.code!r}, {self.message!r}, field={self.field!r})"

    def within(self, prefix: str) -> RequestError:
        """Return the same error with ``prefix`` in front of its field."""
        field = prefix if self.field is None else f"{prefix}.{self.field}"
        return RequestError(self.code, self.message, field, self.retry_after)


def internal_error() -> RequestError:
    """Return the error for a failure of the server itself; details go to the log only."""
    return RequestError("internal", "the server failed; the log of the server has the details")


def truncate(text: str, length: int = MAX_MESSAGE) -> str:
    """Cut a text to ``length`` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def short_repr(value: object) -> str:
    """Return the repr of a value from a request, cut to fit into a message."""
    return truncate(repr(value), MAX_VALUE)
