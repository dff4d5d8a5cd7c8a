"""URLs of data: their scheme, and their text without passwords."""

from __future__ import annotations

import re

SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
WEB = ("http", "https")
"""Schemes of web servers, which have no list of files."""
DATABASES = ("duckdb", "postgresql", "postgres")
"""Schemes of databases."""
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
    match = re.fullmatch(r"([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", location.partition("://")[2], re.S)
    netloc, path, query, fragment = match.groups(default="") if match else ("", "", "", "")
    user, at, host = netloc.rpartition("@")
    # Elsewhere "?" is a wildcard of a pattern, or belongs to a name.
    query = "" if scheme in WEB else PASSWORD.sub(r"\1", query)
    return f"{scheme}://{user.partition(':')[0]}{at}{host}{path}{query}{fragment}"
