"""The workers of a server as one: item updates and reloads that reach all of them.

An update is stored, then applied by every worker, then acknowledged. A reload is checked once,
prepared by all workers, and published by all; if one of them fails, all keep the current version.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import replace
from time import monotonic
from typing import Any, Final

from candid.errors import ArtifactError, CandidError
from candid.serve.channel import ChannelClosedError
from candid.serve.check_process import unexpected
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.logs import error_fields, log_event
from candid.serve.model_check import ModelChecks
from candid.serve.model_files import ModelFiles
from candid.serve.reload_queue import Reloaded
from candid.serve.update_log import ItemUpdates, from_json, to_json
from candid.serve.worker_log import files_changed
from candid.serve.worker_process import WorkerProcess

ACK_SECONDS: Final = 30.0
"""Time for a worker to apply an update or to publish a version; then it is ended."""


class WorkerGroup:
    """The running workers, and what all of them serve.

    Args:
        files: of the models, by name; the first is the default.
        config: limits of each worker.
        access: keys, hosts and proxies as JSON values.
        updates: of items; ``store`` writes to it.
        checks: of the models.

    Attributes:
        workers: that run, ready or not.
    """

    def __init__(
        self,
        files: Mapping[str, ModelFiles],
        *,
        config: ServeConfig,
        access: Mapping[str, Any],
        updates: ItemUpdates,
        checks: ModelChecks,
    ) -> None:
        self.workers: list[WorkerProcess] = []
        self._files = dict(files)
        self._config = config
        self._access = access
        self._updates = updates
        self._checks = checks
        # Held while updates, workers or versions change: a new worker misses none of them.
        self._lock = threading.Lock()
        self._versions = dict.fromkeys(files, 1)
        # A link may move before the next reload: a restarted worker loads what the others serve.
        self._served = {name: _resolved(each) for name, each in files.items()}
        # Of the files of these versions: a folder may be replaced before a worker starts again.
        self._identities: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"WorkerGroup({self.workers})"

    def add(self, start: Callable[[], WorkerProcess], *, is_first: bool) -> WorkerProcess:
        """Start a worker and send it the models, settings and updates.

        Args:
            start: starts the process.
            is_first: whether the metrics count its load of the models.

        Raises:
            ConfigError: the process cannot be started.
        """
        worker = start()
        with self._lock:
            worker.versions = dict(self._versions)
            self.workers.append(worker)
            worker.notify(
                "start",
                number=worker.number,
                files={name: files.to_json() for name, files in self._served.items()},
                versions=worker.versions,
                identities=self._identities,
                config=self._config.model_dump(mode="json"),
                access=self._access,
                updates=[
                    [name, source_id, to_json(update)]
                    for name in self._files
                    for source_id, update in self._updates.latest(name).items()
                ],
                counts=is_first,
            )
        return worker

    def remove(self, worker: WorkerProcess) -> None:
        """Forget a worker that has ended."""
        with self._lock:
            self.workers.remove(worker)
        worker.channel.close()

    def admit(self, worker: WorkerProcess, identities: Mapping[str, str]) -> bool:
        """Mark a worker as ready: from here on updates and reloads wait for it.

        Args:
            worker: that has loaded its models.
            identities: of the files that it has loaded, by name.

        Returns:
            False if it has loaded a version that was replaced meanwhile, or other files than the
            other workers; ``failure`` of the worker then has the reason.
        """
        with self._lock:
            if worker.versions != self._versions:
                return False
            for name, identity in identities.items():
                if self._identities.setdefault(name, identity) != identity:
                    worker.failure = files_changed(name), ArtifactError.exit_code
                    return False
            worker.is_ready = True
            return True

    def is_outdated(self, worker: WorkerProcess) -> bool:
        """Whether a worker was started with versions that have been replaced since."""
        with self._lock:
            return worker.versions != self._versions

    def store(self, sender: WorkerProcess, params: Mapping[str, Any]) -> None:
        """Store an update of a worker; return when all others have applied it.

        Args:
            sender: applies the update itself when this has returned.
            params: ``model``, ``item`` and ``update``.

        Raises:
            RequestError: it cannot be stored; then nothing has changed.
        """
        futures: list[tuple[WorkerProcess, Future[Any]]] = []
        with self._lock:
            self._updates.append(params["model"], params["item"], from_json(params["update"]))
            for worker in self.workers:
                if worker is sender:
                    worker.notify("stored", **params)
                elif worker.is_ready:
                    futures.append((worker, worker.channel.begin("apply", **params)))
                else:
                    worker.notify("apply", **params)  # It applies this before it is ready.
        _await_all(futures)

    def reload(self, name: str | None) -> Reloaded:
        """Reload one model, or all, in all workers.

        Raises:
            RequestError: a run cannot be opened or served; then its current version keeps serving,
                and the other models are reloaded still.
        """
        started = monotonic()
        names = list(self._files) if name is None else [name]
        reasons = {}
        for each in names:
            try:
                self._reload(each)
            except Exception as error:
                is_expected = isinstance(error, CandidError)
                reason = str(error) if is_expected else unexpected(error)
                fields = {} if is_expected else error_fields(error)
                log_event("reload failed", logging.WARNING, model=each, reason=reason, **fields)
                reasons[each] = reason
                for worker in self._ready()[:1]:
                    worker.notify("reload_failed", name=each)
        if reasons:
            several = len(self._files) > 1
            text = "; ".join(f"model {n}: {r}" if several else r for n, r in reasons.items())
            raise RequestError("reload_failed", f"{text}; the current model keeps serving")
        return {each: self._versions[each] for each in names}, monotonic() - started

    def _reload(self, name: str) -> None:
        started = monotonic()
        files = _resolved(self._files[name])
        identity = self._checks.check(name)
        number = self._versions[name] + 1
        prepared = self._prepare(name, files, identity, number)
        futures: list[tuple[WorkerProcess, Future[Any]]] = []
        with self._lock:
            self._versions[name] = number
            self._identities[name] = identity
            self._served[name] = files
            for worker in self.workers:
                if worker in prepared:
                    counts = worker is prepared[0]
                    begun = worker.channel.begin("publish", name=name, counts=counts)
                    futures.append((worker, begun))
                elif worker.is_ready:
                    worker.kill()  # It became ready meanwhile, with the version before.
        _await_all(futures)
        seconds = round(monotonic() - started, 3)
        log_event("model loaded", model=name, version=number, seconds=seconds, workers=len(futures))

    def _prepare(
        self, name: str, files: ModelFiles, identity: str, number: int
    ) -> list[WorkerProcess]:
        """Let all workers load a version; return those that have it.

        A worker that ends meanwhile is left out: it starts again with what is published.

        Raises:
            CandidError: one of them cannot load it; then all have freed it.
        """
        params = {"name": name, "files": files.to_json(), "identity": identity, "number": number}
        workers = self._ready()
        calls = [worker.channel.begin("prepare", **params) for worker in workers]
        wait_for(calls, self._config.reload_timeout_ms / 1000)
        prepared, reasons = list[WorkerProcess](), list[str]()
        for worker, call in zip(workers, calls, strict=True):
            if not call.done():
                reasons.append("a worker did not load the model in time; raise reload_timeout_ms")
            elif (error := call.exception()) is None:
                prepared.append(worker)
            elif not isinstance(error, ChannelClosedError):
                reasons.append(str(error))
        if reasons or not prepared:
            for worker in workers:
                worker.notify("discard", name=name)
            raise ArtifactError(reasons[0] if reasons else "no worker is ready")
        return prepared

    def _ready(self) -> list[WorkerProcess]:
        with self._lock:
            return [worker for worker in self.workers if worker.is_ready]


def _resolved(files: ModelFiles) -> ModelFiles:
    """Return the folders without links."""
    index = None if files.index is None else files.index.resolve()
    data = None if files.data is None else files.data.resolve()
    return replace(files, run=files.run.resolve(), index=index, data=data)


def _await_all(futures: list[tuple[WorkerProcess, Future[Any]]]) -> None:
    """Wait until all workers have answered or ended; end those that do neither."""
    end = monotonic() + ACK_SECONDS
    for worker, future in futures:
        try:
            future.result(max(0.0, end - monotonic()))
        except ChannelClosedError:
            continue  # It starts again with the stored updates and the published versions.
        except Exception as error:
            # It does not answer, or has not done what it should: its state is unknown.
            reason = type(error).__qualname__
            log_event("worker does not follow", logging.ERROR, worker=worker.number, error=reason)
            worker.kill()
