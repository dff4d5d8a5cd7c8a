"""The earlier run that a warm start begins with, or that is measured on another dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from candid.config import RunConfig
from candid.errors import ConfigError
from candid.runs.folder import config_of, read_manifest
from candid.runs.trained_ids import TrainedIds, read_trained_ids


@dataclass(frozen=True)
class EarlierRun:
    """The run that a warm start begins with.

    Attributes:
        folder: of the run.
        config: its config.
        manifest: content of its ``run.json``.
        ids: source ids of its items and users.
    """

    folder: Path
    config: RunConfig
    manifest: dict[str, Any]
    ids: TrainedIds


def open_earlier_run(folder: Path | str) -> EarlierRun:
    """Open the run that a warm start begins with, without its model.

    Raises:
        ArtifactError: not a run, one of an older version, or its ids are missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    config = config_of(folder, manifest)
    ids = read_trained_ids(folder, manifest, config.batches)
    return EarlierRun(folder, config, manifest, ids)


def difference_error(
    earlier: EarlierRun,
    config: RunConfig,
    reason: str,
    sections: tuple[str, ...] = ("model", "features", "batches"),
) -> ConfigError:
    """Return the error of two models, with the first key of their recipes that differs."""
    for section in sections:
        before = dict(_keys(getattr(earlier.config, section).model_dump(mode="json"), section))
        now = dict(_keys(getattr(config, section).model_dump(mode="json"), section))
        for key in [*now, *before]:
            if before.get(key) != now.get(key):
                return ConfigError(
                    f"{key} is {before.get(key)!r} in {earlier.folder} (init) and "
                    f"{now.get(key)!r} here ({reason}): use the recipe of that run, or train "
                    "without init"
                )
    return ConfigError(
        f"the weights of {earlier.folder} (init) do not fit this dataset: {reason}; train without "
        "init"
    )


def _keys(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", value
