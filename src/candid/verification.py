"""Verification of artifacts: every file of a folder is read and compared with its checksum."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from candid.checksums import SEAL, find_fault, read_error, verification
from candid.data import dataset_files
from candid.errors import ArtifactError, ConfigError
from candid.export import EXPORT, FORMATS, read_export
from candid.index import snapshot_files
from candid.inference import StageProgress
from candid.json_text import parse_json
from candid.locks import LOCK
from candid.runs import folder as run_folder
from candid.runs import trained_ids
from candid.runs.baseline_folder import ARRAYS, ITEMS, read_baseline_manifest
from candid.runs.features import FEATURES, read_states
from candid.serve.update_file import SIGNS, read_records
from candid.training import BEST, LAST, PREVIOUS, RUN, SHARDS, read_checkpoint
from candid.training.shard_files import SHARED, read_shard_manifest
from candid.tuning.loop import FOLDERS
from candid.tuning.trials import RECIPE, TRIALS, check_recipe, read_history

CHECKPOINT: Final = ".safetensors"
CHECKPOINTS: Final = (BEST, LAST, PREVIOUS)
SIGN: Final = b"candid"
MANIFEST_SIGNS: Final = (SIGN, f'"{SEAL}"'.encode())
"""Words of every manifest."""
UPDATES: Final = ".jsonl"
"""Suffix of the files of a folder that can be item updates."""
HEAD: Final = 1 << 16
"""Bytes at the start of a file in which its signs are looked for: several item updates."""
MISSING: Final = "is missing"
SIBLINGS: Final[Mapping[str, Sequence[str]]] = {
    run_folder.MANIFEST: (trained_ids.ITEMS, trained_ids.USERS),
    run_folder.BASELINE: (ARRAYS, ITEMS),
    dataset_files.MANIFEST: ("roles.npy", "user_offsets.npy"),
    snapshot_files.MANIFEST: snapshot_files.WRITTEN[:2],
    EXPORT: tuple(FORMATS),
    TRIALS: (FOLDERS, RECIPE),
}
"""Manifest -> names of files and folders beside it. With one of them a manifest that is not JSON
is a damaged one; with all of them one that is other JSON is damaged, and one that is not there is
missing."""
STAGE: Final = "MiB read"

Check = Callable[[], str | None]
"""Reads one file; returns how it is damaged, or None."""


@dataclass(frozen=True)
class FileCheck:
    """The result of one file, or of one folder that cannot be read.

    Attributes:
        path: the file or folder.
        bytes: its size; 0 if it is missing, and of a folder.
        fault: how it is damaged; None: it is as it was written.
    """

    path: Path
    bytes: int
    fault: str | None

    @property
    def is_ok(self) -> bool:
        """Whether the file is as it was written."""
        return self.fault is None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "ok": self.is_ok,
            "fault": self.fault,
        }


def verify(
    paths: Path | str | Sequence[Path | str], *, progress: StageProgress | None = None
) -> list[FileCheck]:
    """Read all files of artifacts and compare them with their checksums.

    Args:
        paths: runs, prepared datasets, indexes, exports, saved baselines and searches, or folders
            that contain such folders; their manifests (``run.json``), which stand for the artifact;
            checkpoints; files of item updates.
        progress: called with (stage, MiB read, total MiB).

    Returns:
        one result for each file, in the order of reading, and one for each folder that the system
        does not let this process read.

    Raises:
        ConfigError: a path does not exist, is of another type, or none is given.
        ArtifactError: a path contains nothing that candid wrote.

    Example:
        >>> [check.path for check in candid.verify("runs/films") if not check.is_ok]
        []
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    if not isinstance(paths, Iterable) or isinstance(paths, bytes | bytearray):
        raise ConfigError(f"paths must be a path or a list of paths, got {type(paths).__name__}")
    paths = list(paths)
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise ConfigError(f"a path must be text or a pathlib.Path, got {path!r}")
    if not paths:
        raise ConfigError("there is no path to verify: name at least one")
    checks: dict[Path, Check] = {}
    for path in map(Path, paths):
        try:
            found = dict(_checks(path))
        except OSError as error:
            found = {path: _unreadable(path, error)}
        if not found:
            raise ArtifactError(
                f"{path} contains nothing that candid wrote: name the folder of a run, dataset, "
                "index, export or baseline, or a file of item updates"
            )
        checks |= found
    sizes = {path: os.path.getsize(path) if os.path.isfile(path) else 0 for path in checks}
    total, done, results = sum(sizes.values()), 0, []
    for path, check in checks.items():
        with verification(True):
            results.append(FileCheck(path, sizes[path], check()))
        done += sizes[path]
        if progress is not None:
            progress(STAGE, done >> 20, max(1, total >> 20))
    return results


def _checks(path: Path) -> Iterator[tuple[Path, Check]]:
    if path.is_dir():
        unreadable = list[OSError]()
        for folder, names in _folders(path, unreadable.append):
            for name in _MANIFESTS:
                yield from _artifact(folder, name, names)
            for name in sorted(names):
                if name.endswith(UPDATES) and SIGNS[0] in _head(folder / name):
                    yield folder / name, _updates(folder / name)
        # The first path to each; a link may lead to a folder that was reported.
        once = {os.path.realpath(error.filename): error for error in reversed(unreadable)}
        for error in reversed(once.values()):
            if not isinstance(error, FileNotFoundError):  # removed meanwhile
                yield Path(error.filename), _unreadable(Path(error.filename), error)
    elif path.name in _MANIFESTS and os.path.lexists(path):
        yield from _artifact(path.parent, path.name, os.listdir(path.parent))
    elif path.suffix == CHECKPOINT and path.is_file():
        yield path, _checkpoint(path)
    elif path.is_file():
        if any(sign in _head(path) for sign in SIGNS):
            yield path, _updates(path)
    else:
        raise ConfigError(f"{path} does not exist: check the path")


def _folders(root: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[Path, set[str]]]:
    """Yield each folder once, with the names in it; links to folders are followed.

    Args:
        root: the folder to begin with.
        on_error: called for each folder that cannot be read.
    """
    seen = set[str]()
    for folder, subfolders, files in os.walk(root, onerror=on_error, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        # Temporary folders of a write that is going on, or was killed, start with a dot. Links
        # come last, because messages should name a folder without a link if they can.
        shown = [name for name in subfolders if not name.startswith(".")]
        links = {name for name in shown if os.path.islink(os.path.join(folder, name))}
        subfolders[:] = [*sorted(set(shown) - links), *sorted(links)]
        yield Path(folder), {*files, *shown}


def _artifact(folder: Path, name: str, names: Collection[str]) -> Iterator[tuple[Path, Check]]:
    """Yield the checks of the artifact that the manifest ``name`` describes, if candid wrote it."""
    path = folder / name
    if name in names:
        if _is_ours(path, names):
            yield from _MANIFESTS[name](folder)
    elif name == run_folder.MANIFEST:
        present = [folder / other for other in CHECKPOINTS if other in names]
        if present and (_siblings(name, names) or any(SIGN in _head(one) for one in present)):
            yield path, lambda: MISSING
            yield from ((one, _checkpoint(one)) for one in present)
    elif len(_siblings(name, names)) == len(SIBLINGS[name]) > 0 and LOCK not in names:
        # With a lock file it is an index that is being written for the first time.
        yield path, lambda: MISSING


def _is_ours(path: Path, names: Collection[str]) -> bool:
    """Whether a manifest is one of candid, also if it is damaged; other programs use its name."""
    try:
        content = path.read_bytes()
    except OSError:
        return True
    if any(sign in content for sign in MANIFEST_SIGNS):
        return True
    try:
        parse_json(content)
    except ValueError:
        checkpoints = set(CHECKPOINTS) & set(names) if path.name == run_folder.MANIFEST else ()
        is_shards = path.name == dataset_files.MANIFEST and _has_shards(names)
        return is_shards or bool(checkpoints) or bool(_siblings(path.name, names))
    return len(_siblings(path.name, names)) == len(SIBLINGS[path.name])


def _siblings(manifest: str, names: Collection[str]) -> list[str]:
    """Return the patterns of ``SIBLINGS`` for which there is a file."""
    return [pattern for pattern in SIBLINGS[manifest] if fnmatch.filter(names, pattern)]


def _dataset_or_shards(folder: Path) -> Iterator[tuple[Path, Check]]:
    """Yield the checks of a dataset, or of a checkpoint of sharded tables."""
    read = read_shard_manifest if _has_shards(os.listdir(folder)) else dataset_files.read_manifest
    return _listed(
        folder / dataset_files.MANIFEST,
        lambda: read(folder),
        lambda manifest: manifest["files"].items(),
    )


def _has_shards(names: Collection[str]) -> bool:
    return SHARED in names or any(fnmatch.fnmatch(name, "rank-*.safetensors") for name in names)


def _index(folder: Path) -> Iterator[tuple[Path, Check]]:
    return _listed(
        folder / snapshot_files.MANIFEST,
        lambda: snapshot_files.read_manifest(folder),
        lambda manifest: ((entry["name"], entry) for entry in manifest["files"].values()),
    )


def _export(folder: Path) -> Iterator[tuple[Path, Check]]:
    return _listed(
        folder / EXPORT,
        lambda: read_export(folder),
        lambda manifest: manifest["files"].items(),
    )


def _baseline(folder: Path) -> Iterator[tuple[Path, Check]]:
    return _listed(
        folder / run_folder.BASELINE,
        lambda: read_baseline_manifest(folder),
        lambda manifest: manifest["files"].items(),
    )


def _search(folder: Path) -> Iterator[tuple[Path, Check]]:
    path = folder / TRIALS
    yield path, lambda: _fault_of(path, lambda: read_history(folder))
    recipe = folder / RECIPE
    yield recipe, lambda: _fault_of(recipe, lambda: check_recipe(folder))


def _run(folder: Path) -> Iterator[tuple[Path, Check]]:
    path = folder / run_folder.MANIFEST
    yield from _listed(
        path,
        lambda: run_folder.read_manifest(folder),
        lambda manifest: manifest.get("files", {}).items(),
    )
    manifest = _read(lambda: run_folder.read_manifest(folder))
    if manifest is not None and manifest.get("features") is not None:
        fingerprint, features = manifest["features"], folder / FEATURES
        yield features, lambda: _fault_of(features, lambda: read_states(folder, fingerprint))
    result = None if manifest is None else manifest.get("result")
    needed = set[str]() if result is None else {LAST, *result.get("checkpoints", ())}
    if manifest is not None and run_folder.has_best(manifest):
        needed.add(BEST)
    models = {f"{SHARDS}/{path.name}" for path in (folder / SHARDS).glob(f"*{CHECKPOINT}")}
    for name in [*CHECKPOINTS, *sorted(models | needed - set(CHECKPOINTS))]:
        if _exists(folder / name):
            run = None if manifest is None else manifest.get(RUN)
            yield folder / name, _checkpoint(folder / name, run)
        elif name in needed:
            yield folder / name, lambda: MISSING


def _exists(path: Path) -> bool:
    """Whether there is a file, also one of which the system gives no more than its name."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # Its check has the reason.
    return True


def _checkpoint(path: Path, run: str | None = None) -> Check:
    return lambda: _fault_of(path, lambda: read_checkpoint(path, run=run))


_MANIFESTS: Final[Mapping[str, Callable[[Path], Iterator[tuple[Path, Check]]]]] = {
    run_folder.MANIFEST: _run,
    run_folder.BASELINE: _baseline,
    dataset_files.MANIFEST: _dataset_or_shards,
    snapshot_files.MANIFEST: _index,
    EXPORT: _export,
    TRIALS: _search,
}
"""Name of the file that describes an artifact -> the checks of its files."""


def _listed(
    path: Path,
    read: Callable[[], Mapping[str, Any]],
    entries: Callable[[Mapping[str, Any]], Iterable[tuple[str, Mapping[str, Any]]]],
) -> Iterator[tuple[Path, Check]]:
    """Yield the check of a manifest, and of the files that it lists if it can be read."""
    yield path, lambda: _fault_of(path, read)
    manifest = _read(read)
    for name, entry in () if manifest is None else entries(manifest):
        yield path.parent / name, _file(path.parent / name, entry)


def _file(path: Path, entry: Mapping[str, Any]) -> Check:
    def check() -> str | None:
        fault = find_fault(path, entry)
        return None if fault is None else fault.text

    return check


def _read(read: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any] | None:
    try:
        with verification(True):
            return read()
    except (ArtifactError, OSError):
        return None


def _fault_of(path: Path, read: Callable[[], object]) -> str | None:
    try:
        read()
    except (ArtifactError, ConfigError) as error:
        return str(error).removeprefix(f"{path} ")
    except OSError as error:
        return _system_fault(path, error)
    return None


def _fault_of_updates(path: Path) -> str | None:
    try:
        contents = read_records(path.read_bytes())
    except (OSError, MemoryError) as error:
        return _system_fault(path, error)
    if contents.damaged:
        return (
            f"has {contents.damaged:,} damaged bytes between {len(contents.records):,} valid "
            "updates; the next start of the server keeps a copy and continues with the valid ones"
        )
    return None


def _updates(path: Path) -> Check:
    return lambda: _fault_of_updates(path)


def _unreadable(path: Path, error: OSError | MemoryError) -> Check:
    return lambda: _system_fault(path, error)


def _system_fault(path: Path, error: OSError | MemoryError) -> str:
    return str(read_error(path, error)).removeprefix(f"{path} ")


def _head(path: Path) -> bytes:
    """Return the start of a file; nothing if it cannot be read."""
    try:
        if not path.is_file():  # a pipe would wait for a writer
            return b""
        with path.open("rb") as stream:
            return stream.read(HEAD)
    except OSError:
        return b""
