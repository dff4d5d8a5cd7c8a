"""The server process: socket, signals, reload, drain and shutdown, on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

import torch
import uvicorn

from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.http.access import AccessRules
from candid.serve.http.app import make_app
from candid.serve.http.connections import Connections, with_connection_limit
from candid.serve.http.listening import bind, log_keys, num_cores, url_of
from candid.serve.http.middleware import RequestMiddleware
from candid.serve.http.probes import ProbeProcess
from candid.serve.http.protocol import uvicorn_config
from candid.serve.logs import log_event, set_up_logging
from candid.serve.metrics import Metrics
from candid.serve.model_check import ModelChecks
from candid.serve.model_files import ModelFiles
from candid.serve.models import Models
from candid.serve.server_status import ServerStatus
from candid.serve.service import Service
from candid.serve.update_log import ItemUpdates

SWITCH_SECONDS: Final = 0.001
"""Longest time that one thread keeps the interpreter lock; with Python's 5 ms a request of a few
milliseconds would mostly wait for it."""
ServerT = TypeVar("ServerT", bound="Server")


def run_server(
    files: Mapping[str, ModelFiles],
    *,
    config: ServeConfig,
    access: AccessRules,
    host: str,
    port: int,
    item_updates: Path | str | None = None,
    probe_port: int | None = None,
) -> None:
    """Serve until a signal stops the process; SIGHUP reloads all models.

    Args:
        files: of the models, by name; the first is the default.
        config: limits.
        access: keys of clients, allowed host names and trusted proxies.
        host: address to listen on.
        port: port to listen on; 0: any free one.
        item_updates: file that stores item updates; None: updates end with the server.
        probe_port: port for probes, which a process of its own answers; 0: any free one. None:
            probes are answered on ``port`` only.

    Raises:
        CandidError: a model cannot be opened, or the address is not available.
    """
    sock = bind(host, port, "--port")
    status, metrics = ServerStatus(), Metrics()
    probes = None
    if probe_port is not None:
        probes = ProbeProcess(bind(host, probe_port, "--probe-port"), status, metrics.to_text)
    set_up_logging()
    # Until uvicorn handles the signal, models are still being loaded.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threads = config.threads or max(1, num_cores() // 2)
    config = prepare_process(config.model_copy(update={"threads": threads}))
    log_keys(access, host)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(sock))
        if probes is not None:
            probes.start()
            stack.callback(probes.stop)
            log_event("probes listening", address=url_of(probes.address))
        updates = stack.enter_context(contextlib.closing(ItemUpdates(item_updates)))
        updates.log_unserved(files)
        checks = ModelChecks(files, config=config)
        models = Models(files, config=config, updates=updates, metrics=metrics, checks=checks)
        server = make_server(
            Server, models, config=config, access=access, metrics=metrics, status=status
        )
        server.run(sockets=[sock])
    log_event("stopped")


def prepare_process(config: ServeConfig) -> ServeConfig:
    """Set the threads and the limits of this process; return the config that they leave.

    The objects that exist now, most of them of imported libraries, are left out of garbage
    collection, which would stop the server for longer than a request may take. Models are loaded
    later, and those that are replaced are collected.

    Raises:
        ConfigError: ``max_connections`` needs more descriptors than the process may open.
    """
    assert config.threads is not None
    sys.setswitchinterval(SWITCH_SECONDS)
    torch.set_num_threads(config.threads)
    gc.freeze()
    return with_connection_limit(config)


def make_server(
    server_class: type[ServerT],
    models: Models,
    *,
    config: ServeConfig,
    access: AccessRules,
    metrics: Metrics,
    status: ServerStatus,
) -> ServerT:
    """Return a server of models, to be run on an open port; it keeps ``status`` up to date."""
    service = Service(models, config=config, metrics=metrics)
    connections = Connections(config, metrics)
    app = RequestMiddleware(
        make_app(service),
        config=config,
        access=access,
        metrics=metrics,
        check_capacity=service.check_capacity,
    )
    return server_class(
        uvicorn_config(
            app,
            connections,
            lifespan="on",
            timeout_keep_alive=round(config.keep_alive_ms / 1000) or 1,
            timeout_graceful_shutdown=round(config.shutdown_ms / 1000) or 1,
        ),
        service,
        connections,
        status,
    )


class Server(uvicorn.Server):
    """uvicorn's server, with reload on SIGHUP and a drain before the shutdown."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        connections: Connections,
        status: ServerStatus,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._connections = connections
        self._status = status
        self._tasks: set[asyncio.Task[None]] = set()

    async def on_tick(self, counter: int) -> bool:
        """Close connections that are late; uvicorn calls this ten times per second."""
        self._status.beat()
        self._connections.sweep()
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and listen."""
        await super().startup(sockets=sockets)
        if sockets and self.started:
            self._status.beat()  # A server that hangs from here on is not alive after the bound.
            self._status.not_ready = None
            self._service.metrics.workers.set(1)
            log_event("listening", address=url_of(sockets[0].getsockname()))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; uvicorn would raise them again after the shutdown."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in signals}
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    def _stop(self, number: signal.Signals) -> None:
        if self._service.is_draining:
            self.handle_exit(number, None)  # The second signal ends the drain.
            return
        self._service.is_draining = True
        self._status.not_ready = "the server is shutting down"
        log_event("stopping", signal=number.name)
        self._service.stop_reloads()
        drain = self._service.config.drain_ms / 1000
        asyncio.get_running_loop().call_later(drain, self.handle_exit, signal.SIGTERM, None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish open requests and stop."""
        self.should_exit = True

    def _reload(self) -> None:
        async def reload() -> None:
            try:
                await self._service.reload(None)
            except RequestError as error:
                log_event("reload failed", logging.WARNING, reason=error.message)

        task = asyncio.get_running_loop().create_task(reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
