"""The files of a snapshot: written under unique names, published atomically, checked when read.

``index.json`` lists the other files, which have a token in their names and are never overwritten.
It is written last and replaces its predecessor atomically: before that a reader opens the old
snapshot, after that the new one. Files that it does not list are removed afterwards; a process
that has them open can still read them.
"""

from __future__ import annotations

import errno
import fnmatch
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from candid.atomic import TEMPORARY, make_readable, sync, write_error, write_errors, write_json
from candid.checksums import check_entries, check_seal, file_entry, read_error, sealed
from candid.errors import ArtifactError, ConfigError
from candid.index.protocol import Index
from candid.json_text import parse_json, read_json
from candid.locks import LOCK, one_writer

KIND = "candid-index"
VERSION = 2
MANIFEST = "index.json"
REBUILD = "build it again with candid index"
TOKEN: Final = "[0-9a-f]" * 16
"""Pattern of the token of a snapshot in the names of its files."""
WRITTEN: Final = (
    f"vectors-{TOKEN}.npy",
    f"source_ids-{TOKEN}.parquet",
    f"added-{TOKEN}.parquet",
    f"index-{TOKEN}.bin",
    f"index-*-{TOKEN}.bin",
    f"changes-{TOKEN}.npz",
)
"""Patterns of the names of all files of snapshots, except ``index.json``."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``index.json``, and compare it with its checksum.

    Raises:
        ArtifactError: missing, damaged, or of another version.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = read_json(path)
        kind, version = manifest["kind"], manifest["version"]
        required = ("token", "fingerprint", "index", "num_items", "dim", "measured")
        if kind == KIND and version == VERSION:
            for name in required:
                manifest[name]
            check_entries(manifest["files"])
            for entry in manifest["files"].values():
                entry["name"]
            manifest["files"]["vectors"], manifest["files"]["source_ids"]
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder} is not an index: it has no {MANIFEST}; build one with candid index"
        ) from None
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged; {REBUILD}") from error
    if kind != KIND or version != VERSION:
        raise ArtifactError(
            f"{path} has kind {kind!r} and version {version!r}, this candid reads {KIND!r} of "
            f"version {VERSION}; {REBUILD}"
        )
    check_seal(path, manifest, REBUILD)
    return manifest


@contextmanager
def index_write_errors(path: Path) -> Iterator[None]:
    """Report the errors of a library of indexes that writes ``path`` as one sentence.

    Raises:
        ArtifactError: the library failed to write the file.
    """
    try:
        with write_errors(path):
            yield
    except RuntimeError as error:
        # The libraries of indexes report a full disk this way; their text names C++ code.
        text = " ".join(str(error).split())
        numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        number = next((n for n in numbers if os.strerror(n) in text), None)
        if number is None:
            raise ArtifactError(
                f"cannot write {path}: {text}; free some space or choose another path"
            ) from error
        raise write_error(path, OSError(number, os.strerror(number))) from error


def save_index(index: Index, path: Path) -> None:
    """Write the file of an index, with the errors of its library as one sentence.

    Raises:
        ArtifactError: the library failed to write the file.
    """
    with index_write_errors(path):
        index.save(path)


@dataclass(frozen=True, slots=True)
class FileNames:
    """Names of the files of one snapshot, which several processes may write.

    Attributes:
        folder: of the snapshot.
        token: in the names of its files.
    """

    folder: Path
    token: str

    def path(self, name: str, suffix: str) -> Path:
        """Return the path of a file."""
        return self.folder / f"{name}-{self.token}{suffix}"

    def part(self, name: str) -> Path:
        """Return the path of a temporary file, which is removed at the end."""
        return self.path(f"index-{name}", ".bin")


class SnapshotWriter:
    """Writer of the files of one new snapshot.

    Args:
        folder: of the snapshot.

    Attributes:
        names: paths for files that the caller writes; ``add`` lists them.
    """

    def __init__(self, folder: Path) -> None:
        self.names = FileNames(folder, uuid.uuid4().hex[:16])
        self._files: dict[str, dict[str, Any]] = {}

    def array(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Write an array that readers can map."""
        path = self.names.path(name, ".npy")
        with path.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        self.add(name, path)

    def table(self, name: str, source_ids: pl.Series) -> None:
        """Write source ids in order."""
        content = io.BytesIO()
        source_ids.alias("source_id").to_frame().write_parquet(content)
        self.bytes(name, ".parquet", content.getbuffer())

    def bytes(self, name: str, suffix: str, content: memoryview) -> None:
        """Write bytes."""
        path = self.names.path(name, suffix)
        path.write_bytes(content)
        self.add(name, path)

    def index(self, name: str, index: Index) -> None:
        """Write the file of an index.

        Raises:
            ArtifactError: the library of the index failed to write it.
        """
        path = self.names.path(name, ".bin")
        save_index(index, path)
        self.add(name, path)

    def add(self, name: str, path: Path) -> None:
        """List a file of ``names`` that is complete."""
        make_readable(path)
        sync(path)
        self._files[name] = {"name": path.name, **file_entry(path)}

    def keep(self, name: str, entry: dict[str, Any]) -> None:
        """List a file that an earlier snapshot wrote."""
        self._files[name] = entry

    def publish(self, metadata: dict[str, Any]) -> str:
        """Make this the snapshot of the folder, and remove files of earlier ones.

        Returns:
            The token of the snapshot.
        """
        folder, token = self.names.folder, self.names.token
        sync(folder)
        content = {"kind": KIND, "version": VERSION, "token": token, **metadata}
        write_json(folder / MANIFEST, sealed(content | {"files": self._files}))
        listed = {entry["name"] for entry in self._files.values()}
        for path in _snapshot_files(folder):
            if path.name not in listed:
                path.unlink(missing_ok=True)
        return token

    def discard(self) -> None:
        """Remove files that were written and not published."""
        # Read from disk: an interruption may arrive just after the publication.
        with suppress(ArtifactError):
            if read_manifest(self.names.folder)["token"] == self.names.token:
                return
        for path in self.names.folder.glob(f"*-{self.names.token}.*"):
            path.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[SnapshotWriter]:
    """Lock ``folder`` for one writing process, and discard its files if it fails.

    A folder that did not exist is then removed.

    Raises:
        ConfigError: the folder holds other files, or another process writes into it.
        ArtifactError: a write failed.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = _foreign_files(folder)
        if foreign:
            raise ConfigError(
                f"{folder} contains other files, such as {min(foreign)}; name a new or empty "
                "folder with --out"
            )
        with one_writer(folder / LOCK, folder, "name another folder with --out"):
            writer = SnapshotWriter(folder)
            try:
                yield writer
            finally:
                writer.discard()
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        if is_new:
            with suppress(OSError):  # It has files.
                folder.rmdir()


def _snapshot_files(folder: Path) -> list[Path]:
    """Return the files with names that a snapshot writes, except ``index.json``."""
    names = os.listdir(folder)
    return [folder / name for pattern in WRITTEN for name in fnmatch.filter(names, pattern)]


def _foreign_files(folder: Path) -> set[str]:
    """Return the names in a folder that no snapshot wrote; empty in the folder of a snapshot.

    Files of an interrupted first write, and a damaged ``index.json`` beside them, are of a
    snapshot.
    """
    try:
        manifest = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        manifest = None
    if manifest is not None and KIND.encode() in manifest:
        return set()
    written = {path.name for path in _snapshot_files(folder)}
    written |= {LOCK} | {name for name in os.listdir(folder) if _is_temporary(name)}
    if manifest is not None and written - {LOCK} and not _is_json(manifest):
        written.add(MANIFEST)
    return set(os.listdir(folder)) - written


def _is_temporary(name: str) -> bool:
    match = TEMPORARY.fullmatch(name)
    return match is not None and match[1] == MANIFEST


def _is_json(content: bytes) -> bool:
    try:
        parse_json(content)
    except ValueError:
        return False
    return True
