"""The models of a server: which generation answers, and the next one taking its place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import monotonic

import numpy as np
import torch

from candid.errors import CandidError
from candid.serve.changes import ItemChanges, Said, delete_item, put_item
from candid.serve.config import ServeConfig
from candid.serve.logs import tell
from candid.serve.metrics import Metrics
from candid.serve.parts import ServedParts
from candid.serve.problems import Problem, shown
from candid.serve.schemas import Id, ItemRequest, RecommendRequest
from candid.serve.served import Served

Opener = Callable[[], ServedParts]
"""Opens a run as it is now; raises CandidError."""


class Models:
    """Named models, each with the generation that answers now.

    A request keeps the generation it began with; the last one that does lets it go.

    Args:
        openers: by name; the first is the default.
        config: limits.
        changes: of items; applied to every generation.
        metrics: told of reloads.

    Raises:
        CandidError: a run cannot be opened.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        config: ServeConfig,
        changes: ItemChanges,
        metrics: Metrics,
    ) -> None:
        self._openers = dict(openers)
        self._config = config
        self._changes = changes
        self._metrics = metrics
        self._loading = threading.Lock()
        self._current: dict[str, Served] = {}
        for name in self._openers:
            self._load(name)

    @property
    def names(self) -> list[str]:
        """Names, the default first."""
        return list(self._openers)

    def get(self, name: str | None) -> Served:
        """The generation of a model that answers now; None: of the default.

        Raises:
            Problem: no such model.
        """
        if name is None:
            name = next(iter(self._openers))
        served = self._current.get(name)
        if served is None:
            known = ", ".join(self._openers)
            raise Problem("invalid", f"no model {shown(name)}; there are: {known}", "model")
        return served

    def reload(self, name: str | None) -> tuple[dict[str, int], float]:
        """Load a model, or all, again and let it answer from then on.

        Returns:
            The generation of each, and seconds.

        Raises:
            Problem: no such model, a reload is running, or a run cannot be opened: the
                generation before goes on answering.
        """
        names = self.names if name is None else [self.get(name).name]
        if not self._loading.acquire(blocking=False):
            raise Problem("reload_running", "a reload is running: wait for it", retry_after=5)
        started = monotonic()
        try:
            for each in names:
                self._reload(each)
        finally:
            self._loading.release()
        seconds = monotonic() - started
        return {each: self._current[each].number for each in names}, seconds

    def put(self, name: str | None, source_id: Id, request: ItemRequest) -> tuple[Served, str]:
        """Add or update an item; the generation, and "added" or "updated"."""
        said = Said(request.title, request.attributes)
        with self._changes.lock:
            served = self.get(name)
            outcome = put_item(served, source_id, said)
            self._record(served, source_id, said)
        return served, outcome

    def delete(self, name: str | None, source_id: Id) -> Served:
        """Delete an item."""
        with self._changes.lock:
            served = self.get(name)
            delete_item(served, source_id)
            self._record(served, source_id, None)
        return served

    def _record(self, served: Served, source_id: Id, said: Said | None) -> None:
        key = served.items.ids.key(source_id)
        assert key is not None
        self._changes.record(served.name, key, said)
        self._metrics.items.labels(served.name).set(served.parts.index.num_live)

    def _reload(self, name: str) -> None:
        try:
            self._load(name)
        except CandidError as error:
            self._metrics.reloads.labels(name, "failed").inc()
            tell("reload failed", model=name, error=type(error).__qualname__, reason=str(error))
            raise Problem("reload_failed", f"{error}; the model before goes on answering") from None
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            # A run that is being replaced may be read half old and half new.
            self._metrics.reloads.labels(name, "failed").inc()
            tell("reload failed", model=name, error=type(error).__qualname__)
            raise Problem(
                "reload_failed",
                f"the run cannot be read ({type(error).__qualname__}); the model before goes on "
                "answering",
            ) from None

    def _load(self, name: str) -> None:
        started = monotonic()
        parts = self._openers[name]()
        before = self._current.get(name)
        number = 1 if before is None else before.number + 1
        served = Served(name, number, parts, self._config)
        _warm_up(served)
        # Nothing may be said of an item between the repetition and the change of generation.
        with self._changes.lock:
            for message in self._changes.apply(served):
                tell("item change not applied", model=name, reason=message)
            self._current[name] = served
        self._metrics.generation.labels(name).set(number)
        self._metrics.items.labels(name).set(parts.index.num_live)
        self._metrics.reloads.labels(name, "done").inc()
        tell("model loaded", model=name, generation=number, seconds=round(monotonic() - started, 3))


def _warm_up(served: Served) -> None:
    """Answer once, so that the first client does not pay for what is done once."""
    parts = served.parts
    starts, stops = parts.dataset.user_offsets[:-1], parts.dataset.user_offsets[1:]
    with_history = np.flatnonzero(stops > starts)
    if not len(with_history):
        return
    [user] = served.users.names([int(with_history[0])])
    for k in (1, 10):
        request = RecommendRequest(user=user, k=min(k, served.config.max_k))
        served.answer([served.question(request)] * 4)
    with torch.inference_mode():
        served.catalog.is_live()
