"""The port of a server: an address in use is refused before models are loaded."""

import socket

import pytest

from candid.errors import ConfigError
from candid.serve.http.listening import bind


def test_second_server_that_still_loads_its_models_does_not_get_the_port():
    with bind("127.0.0.1", 0, "--port") as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use.*--probe-port"):
            bind("127.0.0.1", port, "--probe-port")


def test_connections_wait_until_the_server_accepts_them():
    with (
        bind("127.0.0.1", 0, "--port") as sock,
        socket.create_connection(sock.getsockname(), timeout=5),
    ):
        sock.accept()[0].close()
