"""Checks of single files: read, and compared with a checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from candid.checksums import find_fault, read_error, verification
from candid.errors import ArtifactError, ConfigError
from candid.serve.update_file import read_records
from candid.training import read_checkpoint

MISSING: Final = "is missing"

Check = Callable[[], str | None]
"""Reads one file; returns how it is damaged, or None."""

Content = TypeVar("Content")


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


def listed(
    path: Path,
    read: Callable[[], Mapping[str, Any]],
    entries: Callable[[Mapping[str, Any]], Iterable[tuple[str, Mapping[str, Any]]]],
) -> Iterator[tuple[Path, Check]]:
    """Yield the check of a manifest, and of the files that it lists if it can be read."""
    yield path, lambda: fault_of(path, read)
    manifest = read_or_none(read)
    for name, entry in () if manifest is None else entries(manifest):
        yield path.parent / name, _file(path.parent / name, entry)


def _file(path: Path, entry: Mapping[str, Any]) -> Check:
    def check() -> str | None:
        fault = find_fault(path, entry)
        return None if fault is None else fault.text

    return check


def read_or_none(read: Callable[[], Content]) -> Content | None:
    """Return what ``read`` returns, or None where it fails: its check has the reason."""
    try:
        with verification(True):
            return read()
    except (ArtifactError, OSError):
        return None


def fault_of(path: Path, read: Callable[[], object]) -> str | None:
    """Return the message of ``read`` without the path, or None where it succeeds."""
    try:
        read()
    except (ArtifactError, ConfigError) as error:
        return str(error).removeprefix(f"{path}").lstrip(": ")
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


def updates(path: Path) -> Check:
    """Return the check of a file of item updates."""
    return lambda: _fault_of_updates(path)


def unreadable(path: Path, error: OSError | MemoryError) -> Check:
    """Return the check of a file or folder that the system refused to read."""
    return lambda: _system_fault(path, error)


def _system_fault(path: Path, error: OSError | MemoryError) -> str:
    return str(read_error(path, error)).removeprefix(f"{path} ")


def checkpoint(path: Path, run: str | None = None) -> Check:
    """Return the check of a checkpoint.

    Args:
        path: of the file.
        run: id of the run that wrote it; None: any run.
    """
    return lambda: fault_of(path, lambda: read_checkpoint(path, run=run))
