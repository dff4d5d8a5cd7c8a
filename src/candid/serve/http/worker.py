"""A worker process: answers requests beside others, on a socket that they share.

    python -P -m candid.serve.http.worker CHANNEL LISTENER

``CHANNEL`` and ``LISTENER`` are inherited descriptors: the socket pair to the supervisor, and the
socket that listens. The first message has the models and all settings. The worker reads messages
before it imports torch, so that no update waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from candid.errors import CandidError
from candid.serve.channel import Channel, ChannelClosedError, ChannelRequest
from candid.serve.errors import RequestError, internal_error
from candid.serve.logs import error_fields, log_event, set_up_logging
from candid.serve.update_log import ItemUpdate, SourceId, from_json
from candid.serve.worker_log import WorkerLog
from candid.temporary import remove_for

if TYPE_CHECKING:
    from candid.serve.worker_models import WorkerModels

METRICS: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Variable with the folder of the metrics of all workers, as prometheus_client reads it."""
END_SECONDS: Final = 2.0
"""Time in which a worker ends by itself after its supervisor has ended and requests are done."""


class Worker:
    """One worker, from its first message to its end.

    Args:
        channel_socket: to the supervisor.
        listener: socket that listens.
    """

    def __init__(self, channel_socket: socket.socket, listener: socket.socket) -> None:
        self._listener = listener
        self._channel = Channel(
            channel_socket, self._on_request, self._on_close, name="candid-channel"
        )
        self._first: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._reloads: queue.SimpleQueue[ChannelRequest] = queue.SimpleQueue()
        self._log: WorkerLog | None = None
        self._lock = threading.Lock()
        self._models: WorkerModels | None = None
        # Updates that arrived after their model was published and before all models were.
        self._missed: dict[tuple[str, SourceId], ItemUpdate | None] = {}
        self._server: Any = None

    def __repr__(self) -> str:
        return f"Worker({self._channel})"

    def run(self) -> None:
        """Load the models and serve until SIGTERM, or until the supervisor ends."""
        self._channel.start()
        first = self._first.get()
        set_up_logging(worker=first["number"])
        try:
            self._serve(first)
        except CandidError as error:
            with contextlib.suppress(ChannelClosedError):
                self._channel.notify("failed", message=str(error), exit_code=error.exit_code)
            log_event("worker failed", logging.ERROR, reason=str(error))
            sys.exit(error.exit_code)
        except ChannelClosedError:
            sys.exit(1)

    def _serve(self, first: Mapping[str, Any]) -> None:
        from candid.serve.config import ServeConfig
        from candid.serve.http.access import AccessRules, AllowedHosts, ApiKeys, TrustedProxies
        from candid.serve.http.process import make_server, prepare_process
        from candid.serve.http.worker_server import WorkerServer
        from candid.serve.metrics import Metrics
        from candid.serve.model_files import ModelFiles
        from candid.serve.server_status import ServerStatus
        from candid.serve.worker_models import WorkerModels

        assert self._log is not None
        config = prepare_process(ServeConfig.model_validate(first["config"]))
        access = first["access"]
        metrics = Metrics(os.environ[METRICS])
        models = WorkerModels(
            self._channel,
            {name: ModelFiles.from_json(files) for name, files in first["files"].items()},
            first["versions"],
            first["identities"],
            config=config,
            updates=self._log,
            metrics=metrics,
            counts=first["counts"],
            on_publish=self._forget_missed,
        )
        with self._lock:
            for (name, source_id), update in self._missed.items():
                models.apply_update(name, source_id, update)
            self._models = models
        threading.Thread(target=self._run_reloads, args=(models, metrics), daemon=True).start()
        server = make_server(
            WorkerServer,
            models,
            config=config,
            access=AccessRules(
                ApiKeys(tuple(access["read"]), tuple(access["admin"])),
                AllowedHosts(tuple(access["hosts"])),
                TrustedProxies(tuple(access["proxies"])),
            ),
            metrics=metrics,
            status=ServerStatus(),
        )
        server.channel = self._channel
        server.identities = models.identities
        self._server = server
        server.run(sockets=[self._listener])

    # Messages of the supervisor

    def _on_request(self, request: ChannelRequest) -> None:
        params = request.params
        if request.method == "start":
            self._log = WorkerLog(self._channel, params["updates"])
            self._first.put(params)
        elif request.method in ("apply", "stored"):
            self._on_update(request)
        else:
            self._reloads.put(request)

    def _on_update(self, request: ChannelRequest) -> None:
        assert self._log is not None
        name, source_id = request.params["model"], request.params["item"]
        update = from_json(request.params["update"])
        self._log.set(name, source_id, update)
        # Models apply their own update when the supervisor has stored it.
        if request.method == "apply":
            try:
                with self._lock:
                    if self._models is None:
                        self._missed[name, source_id] = update
                    else:
                        self._models.apply_update(name, source_id, update)
            except Exception as error:
                # The supervisor ends this worker: it may not have the update.
                log_event("failed", logging.ERROR, **error_fields(error))
                request.fail(internal_error())
                return
        request.answer()

    def _forget_missed(self, name: str) -> None:
        """Forget the missed updates of a model that takes them from the log."""
        with self._lock:
            if self._models is None:
                self._missed = {key: each for key, each in self._missed.items() if key[0] != name}

    def _run_reloads(self, models: WorkerModels, metrics: Any) -> None:
        from candid.serve.model_files import ModelFiles

        while True:
            request = self._reloads.get()
            params = request.params
            name = params["name"]
            try:
                if request.method == "prepare":
                    files = ModelFiles.from_json(params["files"])
                    models.prepare_files(name, files, params["identity"], params["number"])
                elif request.method == "publish":
                    models.publish_prepared(name, counts=params["counts"])
                elif request.method == "discard":
                    models.discard_prepared(name)
                elif request.method == "reload_failed":
                    metrics.reloads.labels(name, "failed").inc()
            except RequestError as error:
                request.fail(error)
            except Exception as error:
                log_event("failed", logging.ERROR, **error_fields(error))
                request.fail(internal_error())
            else:
                request.answer()

    def _on_close(self) -> None:
        """End: without a supervisor no update can be stored, and its port must become free."""
        if METRICS in os.environ:
            remove_for(Path(os.environ[METRICS]))  # The supervisor cannot.
        server = self._server
        if server is not None:
            log_event("the supervisor has ended", logging.ERROR)
            server.stop_soon()
            sleep(server.config.timeout_graceful_shutdown + END_SECONDS)
        os._exit(1)


def main() -> None:
    """Run the worker of the descriptors in the arguments."""
    # The supervisor handles the signals of the server; a worker ends by SIGTERM.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    # Not for the processes that this one starts.
    for sock in (channel, listener):
        sock.set_inheritable(False)
    Worker(channel, listener).run()


if __name__ == "__main__":
    main()
