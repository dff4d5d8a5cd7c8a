"""URLs of data: their scheme, and their text without passwords."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
WEB = ("http", "https")
"""Schemes of web servers, which have no list of files."""
PASSWORD = re.compile(r"(password=)[^&]*")


def scheme_of(location: str) -> str | None:
    """Return the scheme of a URL, or None for a path."""
    match = SCHEME.match(location)
    return match[1] if match else None


def without_secrets(location: str) -> str:
    """Return a URL without its password, and one of a web server without its query.

    The query of a presigned URL is a password, too.
    """
    scheme = scheme_of(location)
    if scheme is None:
        return location
    parts = urlsplit(location)
    user, at, host = parts.netloc.rpartition("@")
    netloc = user.partition(":")[0] + at + host
    # Elsewhere "?" is a wildcard of a pattern, or belongs to a name.
    query = "" if scheme in WEB else PASSWORD.sub(r"\1", parts.query)
    return urlunsplit(parts._replace(netloc=netloc, query=query))
