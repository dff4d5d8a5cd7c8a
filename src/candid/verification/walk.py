"""Search for artifacts in folders, and the comparison of every file with its checksum."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from candid.checksums import verification
from candid.errors import ArtifactError, ConfigError
from candid.inference import StageProgress
from candid.json_text import parse_json
from candid.locks import LOCK
from candid.runs import folder as run_folder
from candid.serve.update_file import SIGNS
from candid.verification.artifacts import (
    ARTIFACTS,
    CHECKPOINT,
    CHECKPOINTS,
    SIGN,
    ArtifactKind,
    has_shards,
)
from candid.verification.files import MISSING, Check, FileCheck, checkpoint, unreadable, updates

UPDATES: Final = ".jsonl"
"""Suffix of the files of a folder that can be item updates."""
HEAD: Final = 1 << 16
"""Bytes at the start of a file in which its signs are looked for: several item updates."""
STAGE: Final = "MiB read"


def verify(
    paths: Path | str | Sequence[Path | str], *, progress: StageProgress | None = None
) -> list[FileCheck]:
    """Read all files of artifacts and compare them with their checksums.

    Args:
        paths: runs, prepared datasets, indexes, exports, saved baselines, searches and studies, or
            folders that contain such folders; their manifests (``run.json``), which stand for the
            artifact; checkpoints; files of item updates.
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
            found = {path: unreadable(path, error)}
        if not found:
            raise ArtifactError(
                f"{path} contains nothing that candid wrote: name the folder of a run, dataset, "
                "index, export, baseline, search or study, or a file of item updates"
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
        refused = list[OSError]()
        for folder, names in _folders(path, refused.append):
            for name in ARTIFACTS:
                yield from _artifact(folder, name, names)
            for name in sorted(names):
                if name.endswith(UPDATES) and SIGNS[0] in _head(folder / name):
                    yield folder / name, updates(folder / name)
        # The first path to each; a link may lead to a folder that was reported.
        once = {os.path.realpath(error.filename): error for error in reversed(refused)}
        for error in reversed(once.values()):
            if not isinstance(error, FileNotFoundError):  # removed meanwhile
                yield Path(error.filename), unreadable(Path(error.filename), error)
    elif path.name in ARTIFACTS and os.path.lexists(path):
        yield from _artifact(path.parent, path.name, os.listdir(path.parent))
    elif path.suffix == CHECKPOINT and path.is_file():
        yield path, checkpoint(path)
    elif path.is_file():
        if any(sign in _head(path) for sign in SIGNS):
            yield path, updates(path)
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
    path, kind = folder / name, ARTIFACTS[name]
    if name in names:
        if _is_ours(path, kind, names):
            yield from kind.checks(folder)
    elif name == run_folder.MANIFEST:
        present = [folder / other for other in CHECKPOINTS if other in names]
        if present and (_siblings(kind, names) or any(SIGN in _head(one) for one in present)):
            yield path, lambda: MISSING
            yield from ((one, checkpoint(one)) for one in present)
    elif _has_own_siblings(kind, names) and LOCK not in names:
        # With a lock file it is an index that is being written for the first time.
        yield path, lambda: MISSING


def _is_ours(path: Path, kind: ArtifactKind, names: Collection[str]) -> bool:
    """Whether a manifest is one of candid, also if it is damaged; other programs use its name."""
    try:
        content = path.read_bytes()
    except OSError:
        return True
    if any(all(sign in content for sign in signs) for signs in kind.signs):
        return True
    try:
        parse_json(content)
    except ValueError:
        checkpoints = set(CHECKPOINTS) & set(names) if path.name == run_folder.MANIFEST else ()
        is_shards = kind.may_be_shards and has_shards(names)
        return is_shards or bool(checkpoints) or bool(_siblings(kind, names))
    return _has_own_siblings(kind, names)


def _siblings(kind: ArtifactKind, names: Collection[str]) -> list[str]:
    """Return the patterns of ``kind.siblings`` for which there is a file."""
    return [pattern for pattern in kind.siblings if fnmatch.filter(names, pattern)]


def _has_own_siblings(kind: ArtifactKind, names: Collection[str]) -> bool:
    return kind.has_own_siblings and len(_siblings(kind, names)) == len(kind.siblings)


def _head(path: Path) -> bytes:
    """Return the start of a file; nothing if it cannot be read."""
    try:
        if not path.is_file():  # a pipe would wait for a writer
            return b""
        with path.open("rb") as stream:
            return stream.read(HEAD)
    except OSError:
        return b""
