"""The models of a worker, whose reloads the supervisor leads through all workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from candid.errors import ArtifactError, CandidError
from candid.serve.bundle import ServingBundle
from candid.serve.channel import Channel, ChannelClosedError
from candid.serve.check_process import unexpected
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.logs import error_fields, log_event
from candid.serve.metrics import Metrics
from candid.serve.model_files import ModelFiles
from candid.serve.models import Models, PreparedModel
from candid.serve.version_check import identity_of
from candid.serve.worker_log import WorkerLog, files_changed, shutting_down


class WorkerModels(Models):
    """The models of a worker: the supervisor checks a reload and leads it through all workers.

    Args:
        channel: to the supervisor.
        files: of the models, by name.
        versions: number of the version of each model.
        identities: of the files of these versions, as other workers have loaded them, by name; a
            model that none has loaded yet is left out.
        config: limits.
        updates: log of item updates.
        metrics: of the server.
        counts: whether the metrics count the first load of each model.
        on_publish: called with the name of a model before a version of it gets the updates that
            are in the log.

    Attributes:
        identities: of the files that were loaded, by name.

    Raises:
        CandidError: a run cannot be opened, its answers are not finite, or its files are not those
            of ``identities``.
    """

    def __init__(
        self,
        channel: Channel,
        files: Mapping[str, ModelFiles],
        versions: Mapping[str, int],
        identities: Mapping[str, str],
        *,
        config: ServeConfig,
        updates: WorkerLog,
        metrics: Metrics,
        counts: bool,
        on_publish: Callable[[str], None],
    ) -> None:
        self._channel = channel
        self._on_publish = on_publish
        self._counts = counts
        self._prepared: dict[str, PreparedModel] = {}
        self.identities = dict(identities)
        super().__init__(
            {name: partial(self._open, name, each) for name, each in files.items()},
            config=config,
            updates=updates,
            metrics=metrics,
            first_versions=versions,
        )

    def _open(self, name: str, files: ModelFiles) -> ServingBundle:
        """Open the first version of a model; it must be the one that other workers serve."""
        bundle = files()
        loaded = identity_of(bundle, files)
        if self.identities.setdefault(name, loaded) != loaded:
            raise ArtifactError(files_changed(name))
        return bundle

    def reload(self, name: str | None) -> tuple[dict[str, int], float]:
        """Reload one model, or all, in all workers.

        Returns:
            The version number of each model, and the seconds taken.

        Raises:
            RequestError: there is no such model, a reload of another model waits, or a run cannot
                be opened or served; then its current version keeps serving.
        """
        name = None if name is None else self.get(name).name
        try:
            versions, seconds = self._channel.call("reload", name=name)
        except ChannelClosedError:
            raise shutting_down() from None
        return versions, seconds

    def prepare_files(self, name: str, files: ModelFiles, identity: str, number: int) -> None:
        """Load a version, for ``publish_prepared``; raises RequestError with the reason."""
        try:
            self._prepared[name] = self.prepare(name, identity, files=files, number=number)
        except CandidError as error:
            raise RequestError("reload_failed", str(error)) from None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # Panics of Rust libraries are not an Exception.
            log_event("reload failed", model=name, **error_fields(error))
            raise RequestError("reload_failed", unexpected(error)) from None

    def publish(self, prepared: PreparedModel, *, counts: bool | None = None) -> None:
        """Put a prepared version into use; ``counts``: whether the metrics count it."""
        self._on_publish(prepared.version.name)
        super().publish(prepared, counts=self._counts if counts is None else counts)

    def publish_prepared(self, name: str, *, counts: bool) -> None:
        """Put the version of ``prepare_files`` into use; ``counts``: also count the reload."""
        self.publish(self._prepared.pop(name), counts=counts)

    def discard_prepared(self, name: str) -> None:
        """Free the version of ``prepare_files``."""
        self._prepared.pop(name, None)
