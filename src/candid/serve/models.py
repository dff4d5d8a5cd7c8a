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
from candid.serve.item_updates import (
    PreparedUpdate,
    apply_updates,
    changed_updates,
    prepare_delete,
    prepare_put,
)
from candid.serve.logs import log_event
from candid.serve.metrics import Metrics
from candid.serve.model_version import ModelVersion
from candid.serve.requests import Id, ItemRequest, RecommendRequest
from candid.serve.update_log import ItemUpdate, SourceId, UpdateLog

Opener = Callable[[], ServingBundle]
"""Function that opens a run in its current state; raises CandidError."""


class Models:
    """Models by name, each with the version in use.

    A request keeps the version that prepared it; an old version is freed after its last request.

    Args:
        openers: by name; the first is the default.
        config: limits.
        updates: log of item updates, applied to every version.
        metrics: of the server.

    Raises:
        CandidError: a run cannot be opened.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        *,
        config: ServeConfig,
        updates: UpdateLog,
        metrics: Metrics,
    ) -> None:
        self._openers = dict(openers)
        self._config = config
        self._updates = updates
        self._metrics = metrics
        self._reload_lock = threading.Lock()
        self._request_lock = threading.Lock()  # held from the check of an update to its end
        self._apply_lock = threading.Lock()  # held while a version is changed or published
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
        """Add or update an item; return the model version and "added" or "updated".

        Raises:
            RequestError: the item is refused, or the update could not be stored; then nothing has
                changed.
        """
        update = ItemUpdate(request.title, request.attributes)
        with self._request_lock:
            prepared = prepare_put(self.get(name), source_id, update)
            return self._store_and_apply(prepared), prepared.outcome

    def delete_item(self, name: str | None, source_id: Id) -> ModelVersion:
        """Delete an item; return the model version. Raises like ``put_item``."""
        with self._request_lock:
            return self._store_and_apply(prepare_delete(self.get(name), source_id))

    def apply_update(self, name: str, source_id: SourceId, update: ItemUpdate | None) -> None:
        """Apply an update that is already in the log, such as that of another process.

        An update that the version in use refuses is logged.

        Raises:
            RequestError: there is no such model.
        """
        with self._apply_lock:
            version = self.get(name)
            self._apply_updates(version, {source_id: update})
            self._metrics.items.labels(version.name).set(version.bundle.index.num_live)

    def _store_and_apply(self, prepared: PreparedUpdate) -> ModelVersion:
        name, source_id, update = prepared.version.name, prepared.source_id, prepared.update
        # The apply lock is free meanwhile: a log may have to apply updates of other processes.
        self._updates.append(name, source_id, update)
        with self._apply_lock:
            version = self.get(name)
            latest = self._updates.get(name, source_id)
            if version is prepared.version and latest == update:
                prepared.apply()
            else:
                # The version was published meanwhile, or another process updated the item.
                self._apply_updates(version, {source_id: latest})
            self._metrics.items.labels(name).set(version.bundle.index.num_live)
        return version

    def _apply_updates(
        self, version: ModelVersion, updates: Mapping[SourceId, ItemUpdate | None]
    ) -> None:
        for message in apply_updates(version, updates):
            log_event("item update not applied", model=version.name, reason=message)

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
        updates = self._updates.latest(name)
        self._apply_updates(version, updates)
        with self._apply_lock:
            # Updates that were stored meanwhile; none may arrive between them and the switch.
            self._apply_updates(version, changed_updates(updates, self._updates.latest(name)))
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
