"""The files of a snapshot: written under names of their own, published in one step, checked.

``index.json`` names the other files, which carry a token in their names and are never written
again. It is written last and replaces the one before it in one step: until then a reader
finds the old snapshot, from then on the new one. Files that nothing names are removed afterwards;
whoever has them open keeps them.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from candid.atomic import let_read, sync, write_error, write_json
from candid.errors import ArtifactError, ConfigError
from candid.index.protocol import StoredIndex

KIND = "candid-index"
VERSION = 1
MANIFEST = "index.json"
LOCK = ".lock"
SMALL = 1 << 20
"""Files up to this size are checked in full when a snapshot is opened."""
AGAIN = "build it again with candid index"


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``index.json``.

    Raises:
        ArtifactError: missing, damaged, or of another version.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        kind, version = manifest["kind"], manifest["version"]
        needed = ("token", "fingerprint", "index", "num_items", "dim", "measured")
        if kind == KIND and version == VERSION:
            for name in needed:
                manifest[name]
            for entry in manifest["files"].values():
                str(entry["name"]), int(entry["bytes"]), str(entry["sha256"])
            manifest["files"]["vectors"], manifest["files"]["source_ids"]
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder} holds no {MANIFEST}: it is not an index; build one with candid index"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged; {AGAIN}") from error
    if kind != KIND or version != VERSION:
        raise ArtifactError(
            f"{path} is of kind {kind!r} and version {version!r}, this candid reads {KIND!r} of "
            f"version {VERSION}; {AGAIN}"
        )
    return manifest


def check_file(path: Path, entry: Mapping[str, Any], verify: bool) -> None:
    """Compare a file with what ``index.json`` says of it: its size and, if small, its content.

    Args:
        path: the file.
        entry: of ``index.json``.
        verify: the content whatever its size.

    Raises:
        ArtifactError: it is missing or differs.
    """
    size = path.stat().st_size if path.is_file() else None
    if size is None or size != entry["bytes"]:
        found = "is missing" if size is None else f"has {size:,} bytes, not {entry['bytes']:,}"
        raise ArtifactError(f"{path} {found}; {AGAIN}")
    if (verify or size <= SMALL) and _checksum(path) != entry["sha256"]:
        raise ArtifactError(f"{path} differs from its checksum; {AGAIN}")


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class SnapshotWriter:
    """Writes the files of one new snapshot.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._token = uuid.uuid4().hex[:16]
        self._files: dict[str, dict[str, Any]] = {}
        self._written: list[Path] = []

    def array(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Write an array that can be mapped."""
        with self._adding(name, ".npy") as path, path.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)

    def table(self, name: str, source_ids: pl.Series) -> None:
        """Write source ids, in order."""
        content = io.BytesIO()
        source_ids.alias("source_id").to_frame().write_parquet(content)
        self.bytes(name, ".parquet", content.getbuffer())

    def bytes(self, name: str, suffix: str, content: memoryview) -> None:
        """Write bytes."""
        with self._adding(name, suffix) as path:
            path.write_bytes(content)

    def own(self, name: str, index: StoredIndex) -> None:
        """Let an index write its file.

        Raises:
            ArtifactError: its library could not.
        """
        with self._adding(name, ".bin") as path:
            try:
                index.save(path)
                let_read(path)
            except RuntimeError as error:
                # How the libraries of indexes report a full disk.
                raise ArtifactError(
                    f"cannot write {path}: {' '.join(str(error).split())}"
                ) from error

    def keep(self, name: str, entry: dict[str, Any]) -> None:
        """Name a file that is there already."""
        self._files[name] = entry

    def publish(self, facts: dict[str, Any]) -> str:
        """Make it the snapshot of the folder, and remove what no longer is."""
        sync(self._folder)
        content = {"kind": KIND, "version": VERSION, "token": self._token, **facts}
        write_json(self._folder / MANIFEST, content | {"files": self._files})
        named = {entry["name"] for entry in self._files.values()}
        for path in _own_files(self._folder):
            if path.name not in named:
                path.unlink(missing_ok=True)
        return self._token

    def discard(self) -> None:
        """Remove what was written and not published."""
        # Asked of the disk: an interruption may fall right behind the moment of publication.
        with suppress(ArtifactError):
            if read_manifest(self._folder)["token"] == self._token:
                return
        for path in self._written:
            path.unlink(missing_ok=True)

    @contextmanager
    def _adding(self, name: str, suffix: str) -> Iterator[Path]:
        path = self._folder / f"{name}-{self._token}{suffix}"
        self._written.append(path)
        yield path
        sync(path)
        size = path.stat().st_size
        self._files[name] = {"name": path.name, "bytes": size, "sha256": _checksum(path)}


@contextmanager
def writing(folder: Path) -> Iterator[SnapshotWriter]:
    """Let one process at a time write into ``folder``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_ours = (folder / MANIFEST).exists()
        if not is_ours and any(path.name != LOCK for path in folder.iterdir()):
            # Files of an interrupted first write may stand there, foreign ones may not.
            foreign = set(folder.iterdir()) - set(_own_files(folder)) - {folder / LOCK}
            if foreign:
                raise ConfigError(
                    f"{folder} holds other files, such as {min(foreign).name}: name a new or "
                    "empty folder with --out"
                )
        with (folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactError(
                    f"{folder} is being written by another process: wait until it is done"
                ) from None
            writer = SnapshotWriter(folder)
            try:
                yield writer
            finally:
                writer.discard()
    except OSError as error:
        raise write_error(folder, error) from error


def _own_files(folder: Path) -> list[Path]:
    """Files that some snapshot wrote, by their names."""
    patterns = (
        "vectors-*.npy",
        "source_ids-*.parquet",
        "added-*.parquet",
        "index-*.bin",
        "changes-*.npz",
        f".{MANIFEST}.*.tmp",
    )
    return [path for pattern in patterns for path in folder.glob(pattern)]
