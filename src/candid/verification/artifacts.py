"""Artifacts: how each is found by its manifest, and the checks of its files."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from candid.checksums import SEAL
from candid.data import dataset_files
from candid.errors import ArtifactError
from candid.export import EXPORT, FORMATS, read_export
from candid.index import snapshot_files
from candid.runs import folder as run_folder
from candid.runs import trained_ids
from candid.runs.baseline_folder import ARRAYS, ITEMS, read_baseline_manifest
from candid.runs.features import FEATURES, read_states
from candid.study import read_records, read_users
from candid.study.datasets import SETTINGS, read_synthetic_manifest
from candid.study.folder import LOCKS, STUDY, read_study_manifest
from candid.study.records import RECORDS
from candid.study.user_values import USERS
from candid.training import BEST, LAST, PREVIOUS, RUN, SHARDS
from candid.training.shard_files import MANIFEST, SHARED, read_shard_manifest
from candid.tuning.loop import FOLDERS
from candid.tuning.trials import RECIPE, TRIALS, check_recipe, read_history
from candid.verification.files import MISSING, Check, checkpoint, fault_of, listed, read_or_none

CHECKPOINT: Final = ".safetensors"
CHECKPOINTS: Final = (BEST, LAST, PREVIOUS)
SIGN: Final = b"candid"
SEALED: Final = f'"{SEAL}"'.encode()


@dataclass(frozen=True)
class ArtifactKind:
    """How an artifact is found by its manifest.

    Attributes:
        checks: of the files of the folder.
        siblings: names of files and folders beside the manifest. With one of them a manifest that
            is not JSON is a damaged one.
        has_own_siblings: whether all siblings together are of candid: then a manifest that is other
            JSON is damaged, and one that is not there is missing.
        signs: groups of words; a file that has all words of a group is a manifest of candid.
        may_be_shards: whether a checkpoint of sharded tables has a manifest of the same name.
    """

    checks: Callable[[Path], Iterator[tuple[Path, Check]]]
    siblings: Sequence[str] = ()
    has_own_siblings: bool = True
    signs: Sequence[Sequence[bytes]] = ((SIGN,), (SEALED,))
    may_be_shards: bool = False


def _dataset_or_shards(folder: Path) -> Iterator[tuple[Path, Check]]:
    """Yield the checks of a dataset, or of a checkpoint of sharded tables."""
    read = read_shard_manifest if has_shards(os.listdir(folder)) else dataset_files.read_manifest
    return listed(
        folder / dataset_files.MANIFEST,
        lambda: read(folder),
        lambda manifest: manifest["files"].items(),
    )


def has_shards(names: Collection[str]) -> bool:
    """Whether the files of a folder are those of a checkpoint of sharded tables."""
    return SHARED in names or any(fnmatch.fnmatch(name, "rank-*.safetensors") for name in names)


def _index(folder: Path) -> Iterator[tuple[Path, Check]]:
    return listed(
        folder / snapshot_files.MANIFEST,
        lambda: snapshot_files.read_manifest(folder),
        lambda manifest: ((entry["name"], entry) for entry in manifest["files"].values()),
    )


def _export(folder: Path) -> Iterator[tuple[Path, Check]]:
    return listed(
        folder / EXPORT,
        lambda: read_export(folder),
        lambda manifest: manifest["files"].items(),
    )


def _baseline(folder: Path) -> Iterator[tuple[Path, Check]]:
    return listed(
        folder / run_folder.BASELINE,
        lambda: read_baseline_manifest(folder),
        lambda manifest: manifest["files"].items(),
    )


def _search(folder: Path) -> Iterator[tuple[Path, Check]]:
    path = folder / TRIALS
    yield path, lambda: fault_of(path, lambda: read_history(folder))
    recipe = folder / RECIPE
    yield recipe, lambda: fault_of(recipe, lambda: check_recipe(folder))


def _run(folder: Path) -> Iterator[tuple[Path, Check]]:
    path = folder / run_folder.MANIFEST
    yield from listed(
        path,
        lambda: run_folder.read_manifest(folder),
        lambda manifest: manifest.get("files", {}).items(),
    )
    manifest = read_or_none(lambda: run_folder.read_manifest(folder))
    if manifest is not None and manifest.get("features") is not None:
        fingerprint, features = manifest["features"], folder / FEATURES
        yield features, lambda: fault_of(features, lambda: read_states(folder, fingerprint))
    result = None if manifest is None else manifest.get("result")
    needed = set[str]() if result is None else {LAST, *result.get("checkpoints", ())}
    if manifest is not None and run_folder.has_best(manifest):
        needed.add(BEST)
    models = {f"{SHARDS}/{path.name}" for path in (folder / SHARDS).glob(f"*{CHECKPOINT}")}
    for name in [*CHECKPOINTS, *sorted(models | needed - set(CHECKPOINTS))]:
        if _exists(folder / name):
            run = None if manifest is None else manifest.get(RUN)
            yield folder / name, checkpoint(folder / name, run)
        elif name in needed:
            yield folder / name, lambda: MISSING
    if result is not None:
        # Only a training that was cut leaves one, and its run has no result.
        for path in sorted((folder / SHARDS).glob("step-*")):
            if path.is_dir() and not _exists(path / MANIFEST):
                yield path / MANIFEST, lambda: MISSING


def _exists(path: Path) -> bool:
    """Whether there is a file, also one of which the system gives no more than its name."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # Its check has the reason.
    return True


def _study(folder: Path) -> Iterator[tuple[Path, Check]]:
    path = folder / STUDY
    yield path, lambda: fault_of(path, lambda: read_study_manifest(folder))
    if _exists(folder / RECORDS):
        yield from _records(folder)
    elif any((folder / USERS).glob("*.npz")):  # A line is written after its values.
        yield folder / RECORDS, lambda: MISSING


def _records(folder: Path) -> Iterator[tuple[Path, Check]]:
    path = folder / RECORDS
    yield path, lambda: fault_of(path, lambda: _read_lines(folder))
    for record in read_or_none(lambda: read_records(folder)) or ():
        if record.users is not None:
            file = folder / record.users
            yield file, partial(fault_of, file, partial(read_users, folder, record))


def _read_lines(folder: Path) -> None:
    """Read the records; a study takes a last line without its end for one that a crash has cut."""
    path = folder / RECORDS
    if not read_records(folder) and path.stat().st_size:
        raise ArtifactError(f"{path} has no complete line; the study runs all its cells again")


def _synthetic(folder: Path) -> Iterator[tuple[Path, Check]]:
    return listed(
        folder / SETTINGS,
        lambda: read_synthetic_manifest(folder),
        lambda manifest: manifest["files"].items(),
    )


ARTIFACTS: Final[Mapping[str, ArtifactKind]] = {
    run_folder.MANIFEST: ArtifactKind(_run, (trained_ids.ITEMS, trained_ids.USERS)),
    run_folder.BASELINE: ArtifactKind(_baseline, (ARRAYS, ITEMS)),
    dataset_files.MANIFEST: ArtifactKind(
        _dataset_or_shards, ("roles.npy", "user_offsets.npy"), may_be_shards=True
    ),
    snapshot_files.MANIFEST: ArtifactKind(_index, snapshot_files.WRITTEN[:2]),
    EXPORT: ArtifactKind(_export, tuple(FORMATS)),
    TRIALS: ArtifactKind(_search, (FOLDERS, RECIPE)),
    STUDY: ArtifactKind(_study, (RECORDS, LOCKS)),
    # Other programs have files of these names, and with single words of these.
    RECORDS: ArtifactKind(
        _records,
        (STUDY,),
        has_own_siblings=False,
        signs=((b'"digest"', b'"curve"', b'"measure_cpu_seconds"'),),
    ),
    SETTINGS: ArtifactKind(
        _synthetic,
        ("interactions.parquet",),
        has_own_siblings=False,
        signs=((SEALED, b'"num_items"', b'"interactions.parquet"'),),
    ),
}
"""Name of the file that describes an artifact -> the artifact."""
