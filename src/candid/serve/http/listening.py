"""Start of a server: the port, the cores and the log lines about missing keys. Needs no torch."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any, Final

from candid.errors import ConfigError
from candid.serve.http.access import AccessRules, is_loopback
from candid.serve.logs import log_event

BACKLOG: Final = 2048
"""Connections that wait to be accepted."""


def bind(host: str, port: int, option: str) -> socket.socket:
    """Listen before models are loaded, so that an address in use fails at once.

    Connections wait until the server accepts them. Without ``listen``, two servers could bind the
    same port, and the second one would fail after it has loaded its models.

    Args:
        host: address to listen on.
        port: port to listen on; 0: any free one.
        option: that names the port, for messages.

    Raises:
        ConfigError: the address is not available.
    """
    sock = None
    try:
        [family, kind, protocol, _, address] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        if sock is not None:
            sock.close()
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; choose another --host or {option}"
        ) from None
    return sock


def url_of(name: tuple[Any, ...]) -> str:
    """Return the URL of the address of a socket."""
    host, port = name[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def log_keys(access: AccessRules, host: str) -> None:
    """Log which requests need no key; a warning where other machines can send them."""
    if not access.keys.read:
        level = logging.INFO if is_loopback(host) else logging.WARNING
        log_event("no API key set", level, effect="every client may query")
    if not access.keys.admin:
        log_event("no admin key set", effect="item updates and reloads are refused")


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
