"""The models of a server: the version in use of each, and reloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import monotonic

import numpy as np
import torch

from candid.errors import CandidError
from candid.serve.bundle import ServingBundle
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError, short_repr
from candid.serve.item_updates import ItemUpdate, ItemUpdates, delete_item, put_item
from candid.serve.logs import log_event
from candid.serve.metrics import Metrics
from candid.serve.model_version import ModelVersion
from candid.serve.requests import Id, ItemRequest, RecommendRequest

Opener = Callable[[], ServingBundle]
"""Function that opens a run in its current state; raises CandidError."""


class Models:
    """Models by name, each with the version in use.

    A request keeps the version that prepared it; an old version is freed after its last request.

    Args:
        openers: by name; the first is the default.
        config: limits.
        updates: item updates, applied to every version.
        metrics: of the server.

    Raises:
        CandidError: a run cannot be opened.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        *,
        config: ServeConfig,
        updates: ItemUpdates,
        metrics: Metrics,
    ) -> None:
        self._openers = dict(openers)
        self._config = config
        self._updates = updates
        self._metrics = metrics
        self._reload_lock = threading.Lock()
        self._versions: dict[str, ModelVersion] = {}
        for name in self._openers:
            self._load(name)

    def __repr__(self) -> str:
        return f"Models({list(self._versions.values())})"

    @property
    def names(self) -> list[str]:
        """Names, the default first."""
        return list(self._openers)

    def get(self, name: str | None) -> ModelVersion:
        """Return the version in use of a model; None: of the default model.

        Raises:
            RequestError: there is no such model.
        """
        if name is None:
            name = next(iter(self._openers))
        version = self._versions.get(name)
        if version is None:
            known = ", ".join(self._openers)
            raise RequestError("invalid", f"no model {short_repr(name)}; known: {known}", "model")
        return version

    def reload(self, name: str | None) -> tuple[dict[str, int], float]:
        """Load one model, or all, again; the new version then answers.

        Returns:
            The version number of each model, and the seconds taken.

        Raises:
            RequestError: there is no such model, another reload is running, or a run cannot be
                opened; then the current version keeps serving.
        """
        names = self.names if name is None else [self.get(name).name]
        if not self._reload_lock.acquire(blocking=False):
            raise RequestError(
                "reload_running",
                "another reload is running; wait until it has finished",
                retry_after=5,
            )
        started = monotonic()
        try:
            for each in names:
                self._reload(each)
        finally:
            self._reload_lock.release()
        seconds = monotonic() - started
        return {each: self._versions[each].number for each in names}, seconds

    def put_item(
        self, name: str | None, source_id: Id, request: ItemRequest
    ) -> tuple[ModelVersion, str]:
        """Add or update an item; return the model version and "added" or "updated"."""
        update = ItemUpdate(request.title, request.attributes)
        with self._updates.lock:
            version = self.get(name)
            outcome = put_item(version, source_id, update)
            self._record(version, source_id, update)
        return version, outcome

    def delete_item(self, name: str | None, source_id: Id) -> ModelVersion:
        """Delete an item; return the model version."""
        with self._updates.lock:
            version = self.get(name)
            delete_item(version, source_id)
            self._record(version, source_id, None)
        return version

    def _record(self, version: ModelVersion, source_id: Id, update: ItemUpdate | None) -> None:
        key = version.items.ids.to_source_id(source_id)
        assert key is not None
        self._updates.record(version.name, key, update)
        self._metrics.items.labels(version.name).set(version.bundle.index.num_live)

    def _reload(self, name: str) -> None:
        try:
            self._load(name)
        except CandidError as error:
            self._metrics.reloads.labels(name, "failed").inc()
            log_event(
                "reload failed", model=name, error=type(error).__qualname__, reason=str(error)
            )
            raise RequestError(
                "reload_failed", f"{error}; the current model keeps serving"
            ) from None
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            # While a run is replaced, a reader may find old and new files together.
            self._metrics.reloads.labels(name, "failed").inc()
            log_event("reload failed", model=name, error=type(error).__qualname__)
            raise RequestError(
                "reload_failed",
                f"the run cannot be read ({type(error).__qualname__}); the current model keeps "
                "serving",
            ) from None

    def _load(self, name: str) -> None:
        started = monotonic()
        bundle = self._openers[name]()
        before = self._versions.get(name)
        number = 1 if before is None else before.number + 1
        version = ModelVersion(bundle, name=name, number=number, config=self._config)
        _warm_up(version)
        # No update may arrive between the application of all updates and the switch.
        with self._updates.lock:
            for message in self._updates.apply(version):
                log_event("item update not applied", model=name, reason=message)
            self._versions[name] = version
        self._metrics.model_version.labels(name).set(number)
        self._metrics.items.labels(name).set(bundle.index.num_live)
        self._metrics.reloads.labels(name, "done").inc()
        seconds = round(monotonic() - started, 3)
        log_event("model loaded", model=name, version=number, seconds=seconds)


def _warm_up(version: ModelVersion) -> None:
    """Answer some queries, so that one-time work does not delay the first request."""
    offsets = version.bundle.dataset.user_offsets
    with_history = np.flatnonzero(np.diff(offsets) > 0)
    if not len(with_history):
        return
    [user] = version.users.source_ids([int(with_history[0])])
    for k in (1, 10):
        request = RecommendRequest(user=user, k=min(k, version.config.max_k))
        version.answer([version.prepare(request)] * 4)
    with torch.inference_mode():
        version.search.live_mask()
