"""Files of a table: the name in messages, the local copy, compression and hive partitions."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import polars as pl

from candid.errors import ArtifactError, CandidError, DataError
from candid.temporary import TemporaryFolder

COMPRESSIONS = {
    ".gz": ("gzip", b"\x1f\x8b"),
    ".zst": ("zstd", b"\x28\xb5\x2f\xfd"),
    ".bz2": ("bzip2", b"BZh"),
    ".xz": ("xz", b"\xfd7zXZ\x00"),
}
"""Suffix -> name of the compression, and the first bytes of its files."""
PARTITION = re.compile(r"([^=]+)=(.*)")
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Value of a partition whose rows have none."""
DOWNLOADS = 8
"""Files that are copied at the same time."""
PANIC: type[BaseException] = pl.exceptions.PanicException
READ_ERRORS: tuple[type[BaseException], ...] = (
    pl.exceptions.PolarsError,
    OSError,
    MemoryError,
    PANIC,
)
"""Errors of reading a file; a panic of Polars is not a subclass of Exception."""


@dataclass(frozen=True)
class DataFile:
    """One file to read.

    Attributes:
        name: path or URL, as in messages.
        path: the file on this machine: the file itself or a copy of it; empty before ``copy``.
        state: entry of the manifest; the file has changed if it differs.
        compression: suffix in ``COMPRESSIONS``, or "" for a plain file.
        partitions: hive partitions of the path, column -> text.
        folder: keeps the temporary folder of ``path``.
        url: for libraries that read it themselves, with the secrets that ``name`` leaves out.
        copy: writes a copy below a path without a file, and returns the path of the copy.
        further_columns: columns of the file that its copy leaves out.
        column_names: names of the columns of a text file without a header line.
    """

    name: str
    path: Path
    state: Mapping[str, Any]
    compression: str = ""
    partitions: Mapping[str, str | None] = field(default_factory=dict)
    folder: TemporaryFolder | None = None
    url: str = ""
    copy: Callable[[Path], Path] | None = field(default=None, repr=False)
    further_columns: tuple[str, ...] = ()
    column_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


CopyColumns = Callable[[DataFile, Path], tuple[str, ...] | None]
"""Copies some columns of a file to a path and returns the other columns; None: it cannot."""


def reading_folder() -> TemporaryFolder:
    """Make a folder for copies of files.

    Raises:
        ArtifactError: the folder cannot be made.
    """
    try:
        return TemporaryFolder("reading")
    except OSError as error:
        raise ArtifactError(
            f"cannot make a temporary folder ({error}); set TMPDIR to a folder that is writable"
        ) from error


def fetch(files: Sequence[DataFile], copy_columns: CopyColumns | None = None) -> list[DataFile]:
    """Copy the files that are not on this machine into a temporary folder.

    Args:
        files: to read.
        copy_columns: copies some columns of a file to a path and returns the other columns, or
            None where it cannot; the whole file is copied then.

    Raises:
        ArtifactError: the temporary folder has no space.
        DataError: a file cannot be read.
    """
    if all(file.copy is None for file in files):
        return list(files)
    folder = reading_folder()

    def fetch_one(position: int, file: DataFile) -> DataFile:
        if file.copy is None:
            return file
        # Numbers keep files of one name apart.
        path = folder.path / f"{position}_{PurePosixPath(file.name).name}"
        further = None if copy_columns is None else copy_columns(file, path)
        if further is None:
            path, further = file.copy(path), ()
        return replace(file, path=path, folder=folder, copy=None, further_columns=further)

    with ThreadPoolExecutor(DOWNLOADS) as pool:
        return list(pool.map(fetch_one, range(len(files)), files))


def no_space(path: Path, error: OSError) -> ArtifactError:
    """Return the error of a temporary folder that cannot be written."""
    return ArtifactError(
        f"cannot write {path} ({error.strerror or error}); free some space, or set TMPDIR to a "
        "folder with more"
    )


def local_file(path: Path, partitions: Mapping[str, str | None] | None = None) -> DataFile:
    """Describe a file on this machine."""
    status = path.stat()
    state = {
        "path": str(path.resolve()),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }
    return DataFile(str(path), path, state, compression_of(path.name), partitions or {})


def compression_of(name: str) -> str:
    """Return the suffix of a compression, or ""."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in COMPRESSIONS else ""


def plain_name(name: str) -> str:
    """Return the file name without the suffix of a compression."""
    suffix = compression_of(name)
    return name[: len(name) - len(suffix)] if suffix else name


def partitions_of(folders: Iterable[str]) -> dict[str, str | None]:
    """Return the hive partitions in the names of folders, such as ``day=2026-11-28``."""
    values: dict[str, str | None] = {}
    for folder in folders:
        match = PARTITION.fullmatch(folder)
        if match is not None:
            value = unquote(match[2])
            values[unquote(match[1])] = None if value == NULL_PARTITION else value
    return values


def first_bytes(path: Path, count: int = 4096) -> bytes:
    """Read the beginning of a file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(count)
    except OSError as error:
        raise unreadable(path, error) from error


def system_reason(error: BaseException) -> str | None:
    """Return the reason of an error that is not the fault of the file, or None."""
    text = str(error).lower()
    if isinstance(error, PermissionError) or "permission denied" in text:
        return "permission denied; fix the permissions"
    if isinstance(error, FileNotFoundError) or "no such file" in text:
        return "it or a part of it was removed; run the command again, or restore it"
    if "too many open files" in text:
        return "too many open files; raise the limit (ulimit -n)"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the machine, not the file, is the reason of an error."""
    text = str(error).lower()
    signs = ("cannot allocate memory", "out of memory", "memory allocation", "can't spawn")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


def is_disk_full(error: BaseException) -> bool:
    """Return whether temporary files, which hold what does not fit into memory, have no space."""
    text = str(error).lower()
    signs = ("no space left", "disk quota exceeded", "os error 28)", "os error 122)")
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(sign in text for sign in signs)


def disk_error(origin: object) -> ArtifactError:
    """Return the error of a disk that is too small for the temporary files of a read."""
    return ArtifactError(
        f"no space left for temporary files while reading {origin}; free some space, or set TMPDIR "
        "to a folder with more"
    )


def memory_error(origin: object) -> CandidError:
    """Return the error of a machine that is too small for a file."""
    return CandidError(
        f"not enough memory to read {origin}; close other programs, or use a machine with more "
        "memory"
    )


def unreadable(
    origin: object, error: BaseException, explain: Callable[[BaseException], str] | None = None
) -> CandidError:
    """Return the error of a file that cannot be read.

    Args:
        origin: the file.
        error: of reading.
        explain: describes the damage, if it is the file's fault; None: the text of ``error``.
    """
    if is_out_of_memory(error):
        return memory_error(origin)
    if is_disk_full(error):
        return disk_error(origin)
    reason = system_reason(error)
    if reason is not None:
        return DataError(f"{origin} cannot be read: {reason}")
    if explain is None:
        return DataError(f"{origin} cannot be read ({summary(error)}); check the file")
    return DataError(f"{origin}: {explain(error)}")


def summary(error: BaseException) -> str:
    """Return the first line of an error."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def chunks(stream: Any, size: int = 1 << 20) -> Iterator[bytes]:
    """Yield the content of a binary stream."""
    while chunk := stream.read(size):
        yield chunk
