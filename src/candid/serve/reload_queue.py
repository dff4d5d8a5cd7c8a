"""The queue of reloads: one runs, one waits, and equal requests wait for the same reload."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from candid.serve.errors import RequestError

Reloaded = tuple[dict[str, int], float]
"""The version number of each model, and the seconds taken."""
Reload = Callable[[str | None], Reloaded]


class ReloadQueue:
    """Runs reloads one after the other, in a thread of its own.

    A request that arrives during a reload waits for the next one, since the running one may have
    read the files before they changed. Requests for the same model share that next reload and its
    result; a waiting reload of all models serves requests for one model too. Another request than
    the waiting one is refused.

    Args:
        reload: reloads one model, or all for None.
        names: of all models.
    """

    def __init__(self, reload: Reload, names: Sequence[str] = ()) -> None:
        self._reload = reload
        self._names = tuple(names)
        self._lock = threading.Lock()
        self._is_running = False
        self._waiting: tuple[str | None, Future[Reloaded]] | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"ReloadQueue(is_running={self._is_running}, waiting={self._waiting is not None})"

    def submit(self, name: str | None) -> Future[Reloaded]:
        """Return the result of a reload that begins after this call.

        Several requests may share it, so a caller must not cancel it.

        Args:
            name: of the model; None: all models.

        Raises:
            RequestError: a reload of another model is waiting, or the server is shutting down.
        """
        if name is None and len(self._names) == 1:
            [name] = self._names  # All models are this one.
        with self._lock:
            if self._is_closed:
                raise RequestError("not_ready", "the server is shutting down", retry_after=1)
            if not self._is_running:
                self._is_running = True
                future: Future[Reloaded] = Future()
                # Not of a pool: Python waits for the threads of pools when it exits.
                thread = threading.Thread(
                    target=self._run, args=(name, future), name="candid-reload", daemon=True
                )
                thread.start()
                return future
            if self._waiting is None:
                self._waiting = (name, Future())
            if self._waiting[0] not in (name, None):
                raise RequestError(
                    "reload_running",
                    "a reload is running and one of another model is waiting; try again later",
                    retry_after=5,
                )
            return self._waiting[1]

    def close(self) -> None:
        """Refuse the waiting reload and later ones; the running one is not waited for."""
        with self._lock:
            self._is_closed = True
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            error = RequestError("not_ready", "the server is shutting down", retry_after=1)
            waiting[1].set_exception(error)

    def _run(self, name: str | None, future: Future[Reloaded]) -> None:
        while True:
            try:
                result = self._reload(name)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            with self._lock:
                if self._waiting is None:
                    self._is_running = False
                    return
                (name, future), self._waiting = self._waiting, None
