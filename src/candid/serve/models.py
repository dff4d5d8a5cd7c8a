"""The models of a server: the version in use of each, and reloads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic

from candid.checksums import verification
from candid.errors import ArtifactError, CandidError
from candid.serve.bundle import ServingBundle
from candid.serve.check_process import unexpected
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError, short_repr
from candid.serve.item_updates import (
    PreparedUpdate,
    apply_updates,
    changed_updates,
    prepare_delete,
    prepare_put,
)
from candid.serve.logs import error_fields, log_event
from candid.serve.metrics import Metrics
from candid.serve.model_check import ModelChecks
from candid.serve.model_files import ModelFiles
from candid.serve.model_version import ModelVersion
from candid.serve.requests import Id, ItemRequest
from candid.serve.update_log import ItemUpdate, SourceId, UpdateLog
from candid.serve.version_check import check_version, identity_of

Opener = Callable[[], ServingBundle]
"""Function that opens a run in its current state; raises CandidError."""


@dataclass(frozen=True)
class PreparedModel:
    """A version that may be published.

    Attributes:
        version: loaded and checked, with the item updates of that time.
        updates: that it has.
    """

    version: ModelVersion
    updates: Mapping[SourceId, ItemUpdate | None]


class Models:
    """Models by name, each with the version in use.

    A request keeps the version that prepared it; an old version is freed after its last request.

    Args:
        openers: by name; the first is the default.
        config: limits.
        updates: log of item updates, applied to every version.
        metrics: of the server.
        checks: check a model in a process of its own before a reload loads it; None: a reload
            opens and checks it in this process, which a crash of a native library ends. The first
            load is always direct: a crash there is a failed start.
        first_versions: number of the first version of each model; None: 1.

    Raises:
        CandidError: a run cannot be opened, or its answers are not finite.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        *,
        config: ServeConfig,
        updates: UpdateLog,
        metrics: Metrics,
        checks: ModelChecks | None = None,
        first_versions: Mapping[str, int] | None = None,
    ) -> None:
        self._openers = dict(openers)
        self._config = config
        self._updates = updates
        self._metrics = metrics
        self._checks = checks
        self._first_versions = dict(first_versions or {})
        self._reload_lock = threading.Lock()
        self._request_lock = threading.Lock()  # held from the check of an update to its end
        self._apply_lock = threading.Lock()  # held while a version is changed or published
        self._versions: dict[str, ModelVersion] = {}
        for name in self._openers:
            self._load(name)
            self._metrics.reloads.labels(name, "failed")  # Shown as 0 before the first failure.

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

        A model is opened, verified and warmed in a process of its own, then loaded here and
        checked again, then published. If one of several fails, the others are reloaded still.

        Returns:
            The version number of each model, and the seconds taken.

        Raises:
            RequestError: there is no such model, another reload is running, or a run cannot be
                opened or served; then its current version keeps serving.
        """
        names = self.names if name is None else [self.get(name).name]
        if not self._reload_lock.acquire(blocking=False):
            raise RequestError(
                "reload_running",
                "another reload is running; wait until it has finished",
                retry_after=5,
            )
        started = monotonic()
        reasons = {}
        try:
            for each in names:
                reason = self._reload(each)
                if reason is not None:
                    reasons[each] = reason
        finally:
            self._reload_lock.release()
        if reasons:
            several = len(self._openers) > 1
            text = "; ".join(f"model {n}: {r}" if several else r for n, r in reasons.items())
            raise RequestError("reload_failed", f"{text}; the current model keeps serving")
        seconds = monotonic() - started
        return {each: self._versions[each].number for each in names}, seconds

    def prepare(
        self,
        name: str,
        identity: str | None = None,
        *,
        files: ModelFiles | None = None,
        number: int | None = None,
    ) -> PreparedModel:
        """Load the next version of a model and check its answers; ``publish`` puts it into use.

        Args:
            name: of the model.
            identity: of the files that ``ModelChecks.check`` has checked; None: they are not
                checked, so all weights and vectors are read here.
            files: to open; None: those of the model as they are now.
            number: of the version; None: the next one.

        Raises:
            CandidError: the run cannot be opened, its answers are not finite, or its files are
                not those of ``identity``.
        """
        # The identity stands for the checksums: of weights, and of files that have not changed.
        with verification(identity is None):
            bundle = self._openers[name]() if files is None else files()
        if files is None and self._checks is not None:
            files = self._checks.files(name)
        if number is None:
            before = self._versions.get(name)
            number = self._first_versions.get(name, 1) if before is None else before.number + 1
        version = ModelVersion(bundle, name=name, number=number, config=self._config)
        check_version(version, thorough=identity is None)
        if identity is not None and files is not None:
            loaded = identity_of(bundle, files)
            if loaded != identity:
                raise ArtifactError(
                    "the files of the model changed between its check and its load; reload again "
                    "when they are complete"
                )
        updates = self._updates.latest(name)
        self._apply_updates(version, updates)
        return PreparedModel(version, updates)

    def publish(self, prepared: PreparedModel, *, counts: bool = True) -> None:
        """Put a prepared version into use; it gets the updates that were stored meanwhile.

        Args:
            prepared: result of ``prepare``.
            counts: whether the metrics count a reload.
        """
        version = prepared.version
        name = version.name
        with self._apply_lock:
            # No update may arrive between them and the switch.
            latest = self._updates.latest(name)
            self._apply_updates(version, changed_updates(prepared.updates, latest))
            self._versions[name] = version
        self._metrics.model_version.labels(name).set(version.number)
        self._metrics.items.labels(name).set(version.bundle.index.num_live)
        self._metrics.reloads.labels(name, "done").inc(int(counts))

    def close(self) -> None:
        """End the check of a running reload, which then fails."""
        if self._checks is not None:
            self._checks.close()

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
        refused = apply_updates(version, updates)
        if refused:
            # One line: a model of other attributes may refuse all updates.
            log_event(
                "item updates not applied",
                logging.WARNING,
                model=version.name,
                items=len(refused),
                reason=refused[0],
            )

    def _reload(self, name: str) -> str | None:
        """Reload one model; return the reason if that fails."""
        fields = {}
        try:
            self._load(name, None if self._checks is None else self._checks.check(name))
            return None
        except CandidError as error:
            reason = str(error)
            fields = {"error": type(error).__qualname__}
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # Panics of Rust libraries derive from BaseException.
            # While a run is replaced, a reader may find old and new files together.
            reason = unexpected(error)
            fields = error_fields(error)
        self._metrics.reloads.labels(name, "failed").inc()
        log_event("reload failed", logging.WARNING, model=name, reason=reason, **fields)
        return reason

    def _load(self, name: str, identity: str | None = None) -> None:
        started = monotonic()
        prepared = self.prepare(name, identity)
        self.publish(prepared)
        seconds = round(monotonic() - started, 3)
        log_event("model loaded", model=name, version=prepared.version.number, seconds=seconds)
