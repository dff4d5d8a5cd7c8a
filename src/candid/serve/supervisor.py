"""The supervisor of a server with several worker processes behind one port.

It binds the port, starts the workers, and starts a worker again that has ended. It alone writes
item updates, and leads reloads through all workers (``worker_group``). It loads no model and needs
no torch.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Final

from candid.errors import ArtifactError, CandidError, ConfigError
from candid.serve.channel import ChannelRequest
from candid.serve.child_process import exit_reason
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError, internal_error
from candid.serve.logs import error_fields, log_event
from candid.serve.metrics import free_files, restore_folder
from candid.serve.model_check import ModelChecks
from candid.serve.model_files import ModelFiles
from candid.serve.reload_queue import Reloaded, ReloadQueue
from candid.serve.update_log import ItemUpdates
from candid.serve.worker_group import WorkerGroup
from candid.serve.worker_process import WorkerProcess

STOP_SECONDS: Final = 5.0
"""Time for a worker to end after its last request."""
LONG_LIFE: Final = 10.0
"""Seconds after which the death of a worker counts as the first one again."""
DELAYS: Final = (0.0, 0.5, 1.0, 2.0, 5.0)
"""Seconds before a worker starts again, by the number of its deaths in a row; then the last."""
MAX_FAILED_STARTS: Final = 5
"""Deaths of each worker in a row before it was ready that end a server without a ready worker."""
WATCH_SECONDS: Final = 1.0
"""Pause between two looks at whether the workers answer."""
SILENT_SECONDS: Final = 5.0
"""Seconds without a sign of any worker after which the server is not ready."""
HUNG_SECONDS: Final = 30.0
"""Seconds without a sign of a worker after which it is ended."""


class Supervisor:
    """Workers of one server, until a signal stops it.

    SIGTERM and SIGINT finish open requests and stop; a second one ends the drain. SIGHUP reloads
    all models.

    Args:
        files: of the models, by name; the first is the default.
        config: limits of each worker.
        access: keys, hosts and proxies as JSON values.
        listener: socket that listens.
        address: of the listener, for the log.
        updates: of items.
        metrics: folder of the metrics of the workers.
        report: called with the reason why no requests should be sent; None: the server is ready.
        beat: called about once per second, while this process runs.
        num_workers: processes, at least 1.
    """

    def __init__(
        self,
        files: Mapping[str, ModelFiles],
        *,
        config: ServeConfig,
        access: Mapping[str, Any],
        listener: socket.socket,
        address: str,
        updates: ItemUpdates,
        metrics: Path,
        report: Callable[[str | None], None],
        beat: Callable[[], None],
        num_workers: int,
    ) -> None:
        self._config = config
        self._listener = listener
        self._address = address
        self._metrics = metrics
        self._report = report
        self._beat = beat
        self._numbers = range(1, num_workers + 1)
        self._checks = ModelChecks(files, config=config)
        self._group = WorkerGroup(
            files, config=config, access=access, updates=updates, checks=self._checks
        )
        self._reloads = ReloadQueue(self._group.reload, list(files))
        self._deaths = dict.fromkeys(self._numbers, 0)
        self._failed_starts = dict.fromkeys(self._numbers, 0)
        self._events: queue.SimpleQueue[tuple[Callable[[Any], None], Any]] = queue.SimpleQueue()
        self._updates: queue.SimpleQueue[tuple[WorkerProcess, ChannelRequest]] = queue.SimpleQueue()
        self._is_stopping = False
        self._is_listening = False
        self._are_silent = False
        self._watched = monotonic()

    def __repr__(self) -> str:
        return f"Supervisor({self._group.workers})"

    def run(self) -> None:
        """Serve until a signal stops the process.

        Raises:
            CandidError: a worker cannot load a model at the start, or all workers end again and
                again before they are ready.
        """
        with self._signals():
            self._in_thread(self._store_updates)
            try:
                for number in self._numbers:
                    self._start(number, is_first=number == 1)
                self._watched = monotonic()
                self._watch(None)
                while not (self._is_stopping and not self._group.workers):
                    handle, value = self._events.get()
                    handle(value)
            finally:
                self._is_stopping = True
                self._checks.close()
                self._reloads.close()
                for worker in self._group.workers:
                    worker.kill()
                for worker in self._group.workers:
                    worker.process.wait()
        log_event("stopped")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def on_signal(number: int, _: FrameType | None) -> None:
            # This may be called at any place, inside another call of the queue too.
            self._events.put((self._on_signal, signal.Signals(number)))

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _in_thread(self, run: Callable[[], None]) -> None:
        threading.Thread(target=run, daemon=True).start()

    def _later(self, seconds: float, handle: Callable[[Any], None], value: Any = None) -> None:
        """Call a handler in the main loop after some seconds."""
        timer = threading.Timer(seconds, self._events.put, [(handle, value)])
        timer.daemon = True
        timer.start()

    # The life of a worker; called in the main loop

    def _start(self, number: int, *, is_first: bool) -> None:
        restore_folder(self._metrics)
        worker = self._group.add(
            lambda: WorkerProcess.start(
                number,
                listener=self._listener,
                environment={"PROMETHEUS_MULTIPROC_DIR": str(self._metrics)},
                handle=self._on_request,
            ),
            is_first=is_first,
        )
        log_event("worker started", worker=number, pid=worker.process.pid)

        def wait() -> None:
            worker.process.wait()
            self._events.put((self._on_end, worker))

        self._in_thread(wait)

    def _restart(self, number: int) -> None:
        if self._is_stopping:
            return
        try:
            self._start(number, is_first=False)
        except ConfigError as error:
            log_event("worker not started", logging.ERROR, worker=number, reason=str(error))
            self._later(DELAYS[-1], self._restart, number)

    def _on_ready(self, worker: WorkerProcess) -> None:
        log_event("worker ready", worker=worker.number, pid=worker.process.pid)
        self._failed_starts[worker.number] = 0
        if not self._is_listening and all(each.is_ready for each in self._group.workers):
            self._is_listening = True
            log_event("listening", address=self._address, workers=len(self._numbers))
        if self._is_listening and not self._is_stopping:
            self._are_silent = False
            self._report(None)

    def _watch(self, _: None) -> None:
        """End workers whose event loop does not run; called about once per second."""
        self._beat()
        self._later(WATCH_SECONDS, self._watch)
        if self._is_stopping:
            return
        now = monotonic()
        was_suspended = now - self._watched > SILENT_SECONDS
        self._watched = now
        ready = [worker for worker in self._group.workers if worker.is_ready]
        for worker in ready:
            if was_suspended:
                worker.alive = now  # Their messages have not been read meanwhile.
            elif now - worker.alive > HUNG_SECONDS:
                seconds = round(now - worker.alive)
                log_event(
                    "worker hangs", logging.ERROR, worker=worker.number, silent_seconds=seconds
                )
                worker.kill()
        are_silent = bool(ready) and all(now - each.alive > SILENT_SECONDS for each in ready)
        if self._is_listening and ready and are_silent != self._are_silent:
            self._are_silent = are_silent
            self._report("no worker answers" if are_silent else None)

    def _on_end(self, worker: WorkerProcess) -> None:
        number = worker.number
        self._group.remove(worker)
        free_files(self._metrics, worker.process.pid, keeps_counters=worker.is_ready)
        if self._is_stopping:
            return
        if not any(each.is_ready for each in self._group.workers):
            self._report("no worker is ready")
        reason = exit_reason(worker.process.returncode)
        if not worker.is_ready:
            if self._group.is_outdated(worker):
                self._restart(number)
                return
            self._failed_starts[number] += 1
        # While another worker answers, the files of the model may be put right.
        if not self._is_listening or min(self._failed_starts.values()) >= MAX_FAILED_STARTS:
            raise _start_error(worker, reason)
        if worker.is_ready and monotonic() - worker.started > LONG_LIFE:
            self._deaths[number] = 0
        delay = DELAYS[min(self._deaths[number], len(DELAYS) - 1)]
        self._deaths[number] += 1
        log_event(
            "worker ended",
            logging.ERROR,
            worker=number,
            pid=worker.process.pid,
            reason=reason if worker.failure is None else worker.failure[0],
            restart_seconds=delay,
        )
        self._later(delay, self._restart, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            if self._is_listening and not self._is_stopping:
                self._in_thread(self._reload_all)
            return
        if not self._is_stopping:
            self._is_stopping = True
            self._report("the server is shutting down")
            log_event("stopping", signal=number.name)
            self._checks.close()
            self._reloads.close()
            # The port becomes free as soon as the workers stop listening.
            self._listener.close()
            milliseconds = self._config.drain_ms + self._config.shutdown_ms
            self._later(milliseconds / 1000 + STOP_SECONDS, self._on_overdue)
        for worker in self._group.workers:
            if worker.is_ready:
                worker.terminate()
            else:
                worker.kill()

    def _on_overdue(self, _: None) -> None:
        for worker in self._group.workers:
            log_event("worker did not end in time", logging.ERROR, worker=worker.number)
            worker.kill()

    def _reload_all(self) -> None:
        try:
            self._reloads.submit(None).result()
        except RequestError as error:
            log_event("reload failed", logging.WARNING, reason=error.message)

    # Requests of workers; called in the thread of each channel

    def _on_request(self, worker: WorkerProcess, request: ChannelRequest) -> None:
        if request.method == "append":
            self._updates.put((worker, request))
        elif request.method == "reload":
            self._submit_reload(request)
        elif request.method == "sync":
            request.answer()
        elif request.method == "alive":
            worker.alive = monotonic()
            request.answer()
        elif request.method == "ready":
            worker.alive = monotonic()
            is_admitted = self._group.admit(worker, request.params["identities"])
            request.answer(is_admitted)
            if is_admitted:
                self._events.put((self._on_ready, worker))
        elif request.method == "failed":
            worker.failure = request.params["message"], request.params["exit_code"]

    def _submit_reload(self, request: ChannelRequest) -> None:
        def answer(future: Future[Reloaded]) -> None:
            error = future.exception()
            if error is None:
                request.answer(future.result())  # A pair, which JSON makes a list.
            else:
                request.fail(error if isinstance(error, RequestError) else internal_error())

        try:
            self._reloads.submit(request.params["name"]).add_done_callback(answer)
        except RequestError as error:
            request.fail(error)

    def _store_updates(self) -> None:
        """Store updates one after the other, in a thread of their own."""
        while True:
            worker, request = self._updates.get()
            try:
                self._group.store(worker, request.params)
            except RequestError as error:
                request.fail(error)
            except Exception as error:  # The thread must store the next update.
                log_event("failed", logging.ERROR, **error_fields(error))
                request.fail(internal_error())
            else:
                request.answer()


def _start_error(worker: WorkerProcess, reason: str) -> CandidError:
    """Return the error that ends the server: that of the worker, if it sent one."""
    if worker.failure is None:
        return ArtifactError(
            f"a worker ended before it was ready ({reason}): a file of a model is damaged, or the "
            "memory is not enough for all workers"
        )
    message, exit_code = worker.failure
    error = CandidError(message)
    error.exit_code = exit_code
    return error
