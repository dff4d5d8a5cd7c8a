"""The server process: signals, sockets, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import torch
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from candid.errors import ConfigError
from candid.serve.app import Service, make_app
from candid.serve.changes import ItemChanges
from candid.serve.config import ServeConfig
from candid.serve.gate import Gate, Keys
from candid.serve.logs import set_up, tell
from candid.serve.metrics import Metrics
from candid.serve.models import Models, Opener
from candid.serve.problems import Problem

SWITCH_SECONDS = 0.001
"""How long one thread may keep the others from running: of Python's 5 ms, a request that should
take 5 would wait all."""
BACKLOG = 2048


def serve(
    openers: Mapping[str, Opener],
    *,
    config: ServeConfig,
    keys: Keys,
    host: str,
    port: int,
    changes: Path | None = None,
) -> None:
    """Answer until a signal says stop; SIGHUP loads all models again.

    Args:
        openers: models by name, the first being the default.
        config: limits.
        keys: who may ask, and who may change.
        host: to listen on.
        port: to listen on; 0: any free one.
        changes: file that keeps changes of items; None: none.

    Raises:
        CandidError: a model cannot be opened, or the address not be listened on.
    """
    sock = _listening(host, port)
    set_up()
    # Until the server handles it, a reload asked for has nothing to do yet.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)
    threads = config.threads or max(1, _cores() // 2)
    torch.set_num_threads(threads)
    config = config.model_copy(update={"threads": threads})
    with contextlib.closing(sock):
        metrics = Metrics()
        models = Models(openers, config, ItemChanges(changes), metrics)
        service = Service(models, config, metrics)
        gate = Gate(make_app(service), config=config, keys=keys, metrics=metrics)
        server = _Server(
            uvicorn.Config(
                gate,
                http=_Protocol,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="on",
                timeout_keep_alive=75,
                timeout_graceful_shutdown=round(config.shutdown_ms / 1000) or 1,
            ),
            service,
        )
        server.run(sockets=[sock])
    tell("stopped")


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, which says in our form too that a request is none."""

    def send_400_response(self, msg: str) -> None:
        problem = Problem("bad_request", "this is no request of HTTP/1.1")
        body = problem.body()
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's server, with a reload on SIGHUP, a drain before the end, and a quiet exit."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if sockets and self.started:
            host, port = sockets[0].getsockname()[:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            tell("listening", address=address)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; unlike uvicorn, not once more after an orderly end."""
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in handled}
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    def _stop(self, number: signal.Signals) -> None:
        if self._service.is_draining:
            self.handle_exit(number, None)  # Asked twice: do not wait.
            return
        self._service.is_draining = True
        tell("stopping", signal=number.name)
        drain = self._service.config.drain_ms / 1000
        asyncio.get_running_loop().call_later(drain, self.handle_exit, signal.SIGTERM, None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True

    def _reload(self) -> None:
        async def reload() -> None:
            try:
                await self._service.reload(None)
            except Problem as problem:
                tell("reload failed", logging.WARNING, reason=problem.message)

        task = asyncio.get_running_loop().create_task(reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _listening(host: str, port: int) -> socket.socket:
    """A bound socket, before anything is loaded: an address in use is told at once."""
    sock = None
    try:
        [family, kind, protocol, _, address] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        if sock is not None:
            sock.close()
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; name another --host or --port"
        ) from None
    return sock
