"""The prepared datasets of a study, in the folder ``data`` of the study."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from candid.atomic import atomic_folder, write_error
from candid.checksums import (
    check_entries,
    check_seal,
    file_entry,
    find_fault,
    is_verifying,
    write_sealed_json,
)
from candid.data import PreparedDataset, Role, open_dataset, prepare_folder
from candid.errors import ArtifactError, DataError, Interrupted
from candid.json_text import read_json
from candid.locks import Lock, acquire
from candid.study.config import Study
from candid.synthetic import SyntheticConfig, SyntheticData

SETTINGS: Final = "settings.json"
"""Settings of synthetic files, with a checksum of each."""
POLL_SECONDS: Final = 0.5
"""Time between two looks at a lock of another process."""


class Datasets:
    """Opens the datasets of a study; those of files and of synthetic data are prepared once.

    Args:
        study: the study file.
        out: folder of the study.
        stop: set when the work should stop.
    """

    def __init__(self, study: Study, out: Path, stop: threading.Event) -> None:
        self._study, self._out, self._stop = study, out, stop
        self._name: tuple[str, str] | None = None
        self._dataset: PreparedDataset | None = None

    def open(self, name: str, split: str) -> PreparedDataset:
        """Open a dataset with one of its splits; the last one stays open.

        Raises:
            DataError: it has no validation or no test split.
            CandidError: it cannot be prepared or opened.
            Interrupted: the work should stop.
        """
        if self._name != (name, split) or self._dataset is None:
            self._dataset = self._open(name, split)
            for role in (Role.VALIDATION, Role.TEST):
                if not self._dataset.has_role(role):
                    raise DataError(
                        f"the dataset {name}, split {split}, has no {role.name.lower()} "
                        "interactions: a study needs both splits; choose another split"
                    )
            self._name = (name, split)
        return self._dataset

    def _open(self, name: str, split: str) -> PreparedDataset:
        prepared = self._study.datasets[name].prepared
        if prepared is not None:
            return open_dataset(prepared)
        folder = self._out / "data"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        files, target = folder / f"{name}-files", folder / f"{name}-{split}"
        with waiting_lock(folder / f".{name}.lock", self._stop):
            synthetic = self._study.synthetic(name)
            if synthetic is not None:
                _write_synthetic(synthetic, files)
            config = self._study.data_config(name, split, files)
            assert config is not None
            return prepare_folder(config, target).dataset


@contextmanager
def waiting_lock(path: Path, stop: threading.Event) -> Iterator[Lock]:
    """Hold a lock for a block, after the process that holds it now.

    Raises:
        Interrupted: ``stop`` was set while waiting.
        ArtifactError: the operating system refuses.
    """
    while True:
        try:
            lock = acquire(path)
            break
        except BlockingIOError:
            if stop.wait(POLL_SECONDS):
                raise Interrupted("stopped; run the same command to continue") from None
        except OSError as error:
            raise write_error(path, error) from error
    with lock:
        yield lock


def _write_synthetic(config: SyntheticConfig, folder: Path) -> None:
    """Write the files of a synthetic dataset, unless the folder has those of these settings."""
    if _has_synthetic(config, folder):
        return
    with atomic_folder(folder) as temporary:
        SyntheticData(config).write(temporary)
        files = {path.name: file_entry(path) for path in sorted(temporary.iterdir())}
        settings = config.model_dump(mode="json")
        write_sealed_json(temporary / SETTINGS, {"settings": settings, "files": files})


def _has_synthetic(config: SyntheticConfig, folder: Path) -> bool:
    """Whether a folder has the files of a synthetic dataset as they were written.

    Folders of earlier versions have the settings alone.
    """
    try:
        if (folder / SETTINGS).read_text(encoding="utf-8") == config.model_dump_json():
            return True
        stored = read_synthetic_manifest(folder)
    except (OSError, ValueError, ArtifactError):
        return False
    return stored["settings"] == config.model_dump(mode="json") and not any(
        find_fault(folder / name, entry, compare=is_verifying())
        for name, entry in stored["files"].items()
    )


def read_synthetic_manifest(folder: Path) -> dict[str, Any]:
    """Read ``settings.json`` of synthetic files, and compare it with its checksum.

    Raises:
        ArtifactError: damaged.
        OSError: missing, or the operating system refuses.
    """
    path = folder / SETTINGS
    advice = "the study writes the folder again"
    try:
        stored: dict[str, Any] = read_json(path)
        stored["settings"]
        check_entries(stored["files"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path} is damaged; {advice}") from None
    check_seal(path, stored, advice)
    return stored
