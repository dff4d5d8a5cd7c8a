"""The file of item updates: records with length and checksum, durable, and repaired when opened.

A record is one line of JSON::

    {"crc32": "5f3a9c01", "length": 71, "entry": {"model": "films", "item": 500, "update": …}}

``length`` and ``crc32`` are of the bytes of ``entry``. Text was chosen over binary frames because
people and line tools can read it (``jq .entry``), and JSON has no line breaks inside a record, so
that reading finds the next record after any damage.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import uuid
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from candid.atomic import TEMPORARY, sync, write_error
from candid.errors import ArtifactError, ConfigError
from candid.json_text import parse_json
from candid.locks import acquire, holder

HEAD: Final = re.compile(rb'\{"crc32": "([0-9a-f]{8})", "length": (\d{1,9}), "entry": ')
END: Final = b"}\n"
SIGNS: Final = (b'{"crc32": "', b'", "length": ', b', "entry": {')
"""Parts of every record; a file without any of them was not written by candid."""


@dataclass(frozen=True)
class Contents:
    """Result of reading a file of item updates.

    Attributes:
        records: entry of each valid record, and its length in bytes, in the order of the file.
        torn: bytes after the last valid record, left by a write that did not finish.
        damaged: bytes that belong to no valid record, other than ``torn``.
        ends_cleanly: whether the last record has its end.
        end: offset after the last valid record.
    """

    records: list[tuple[dict[str, Any], int]]
    torn: int
    damaged: int
    ends_cleanly: bool
    end: int


def to_record(entry: Mapping[str, Any]) -> bytes:
    """Return the line of an entry, in UTF-8."""
    body = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
    head = f'{{"crc32": "{zlib.crc32(body):08x}", "length": {len(body)}, "entry": '
    return head.encode() + body + END


def read_records(data: bytes) -> Contents:
    """Read all valid records, also those behind damaged bytes.

    A record counts as valid if its checksum holds and it has the keys of an item update.
    """
    records = list[tuple[dict[str, Any], int]]()
    covered = position = damaged = 0
    ends_cleanly = True
    while (head := HEAD.search(data, position)) is not None:
        end = head.end() + int(head[2])
        body = data[head.end() : end] if end <= len(data) else b""
        entry = _entry(body) if zlib.crc32(body) == int(head[1], 16) else None
        if entry is None:
            position = head.start() + 1
            continue
        damaged += len(data[covered : head.start()].strip())
        ends_cleanly = data[end : end + len(END)] == END
        covered = position = end + len(END) * ends_cleanly
        records.append((entry, covered - head.start()))
    # A cut write has no line break, because that is the last byte of a record.
    rest = data[covered:].strip()
    is_torn = b"\n" not in data[covered:]
    return Contents(
        records,
        torn=len(rest) if is_torn else 0,
        damaged=damaged + (0 if is_torn else len(rest)),
        ends_cleanly=ends_cleanly,
        end=covered,
    )


class UpdateFile:
    """An open file of item updates, with one writer. Not thread-safe.

    Args:
        path: created if it does not exist; a link is followed.

    Attributes:
        path: without links.
        size: bytes of all records.
        num_replaced: number of calls of ``replace_with`` that replaced the file.
        contents: what the file had when it was opened.

    Raises:
        ArtifactError: the file cannot be read or written, or was not written by candid.
        ConfigError: another process writes it, which the message names; or its folder does not
            exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.num_replaced = 0
        self._has_torn_end = False
        if not self.path.parent.is_dir():
            raise ConfigError(
                f"the folder of {path} does not exist; create it, or choose another path for the "
                "item updates"
            )
        # The lock is a file of its own, because compaction replaces this one.
        lock = Path(f"{self.path}.lock")
        try:
            self._lock = acquire(lock)
        except BlockingIOError:
            raise ConfigError(
                f"another process writes {path} ({holder(lock)}): stop it, or give this server "
                "another file"
            ) from None
        except OSError as error:
            raise write_error(path, error) from error
        try:
            self._open_locked(path)
        except BaseException:
            self._lock.release()
            raise

    def __repr__(self) -> str:
        return f"UpdateFile({str(self.path)!r}, size={self.size})"

    def close(self) -> None:
        """Close the file and release its lock."""
        os.close(self._descriptor)
        self._lock.release()

    def _open_locked(self, path: Path) -> None:
        try:
            if self.path.exists() and not self.path.is_file():
                raise ArtifactError(f"{path} is not a regular file; choose another path")
            is_new = not self.path.exists()
            self._descriptor = _open(self.path)
            if is_new:
                sync(self.path.parent)
            self._remove_stale()
            data = self.path.read_bytes()
        except OSError as error:
            raise write_error(path, error) from error
        self.contents = read_records(data)
        self.size = len(data)
        if not self.contents.records and not _may_be_ours(data):
            os.close(self._descriptor)
            raise ArtifactError(
                f"{path} is not a file of item updates; choose another path for them"
            )

    @property
    def is_in_place(self) -> bool:
        """Whether the path still leads to this file: it may have been removed or replaced."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def append(self, record: bytes) -> None:
        """Write a record to disk; after an error the file is as before.

        Raises:
            OSError: the operating system refuses.
        """
        if self._has_torn_end:
            self._cut()
        try:
            _write(self._descriptor, record)
            os.fsync(self._descriptor)
        except BaseException:
            self._has_torn_end = True
            # If this fails too, the next call tries again before it writes.
            with contextlib.suppress(OSError):
                self._cut()
            raise
        self.size += len(record)

    def cut_torn_end(self) -> None:
        """Remove the bytes after the last valid record that was there at the opening.

        Raises:
            OSError: the operating system refuses.
        """
        self.size = self.contents.end
        self._has_torn_end = True
        self._cut()

    def copy_damaged(self) -> Path:
        """Copy the file to ``PATH.damaged``, or ``PATH.damaged-2`` and so on; return the path.

        Raises:
            OSError: the operating system refuses.
        """
        copy, number = Path(f"{self.path}.damaged"), 2
        while copy.exists():
            copy, number = Path(f"{self.path}.damaged-{number}"), number + 1
        shutil.copyfile(self.path, copy)
        sync(copy)
        sync(copy.parent)
        return copy

    def write_copy(self, records: Iterable[bytes]) -> Path:
        """Write a temporary file for ``replace_with``; other calls may run meanwhile.

        Raises:
            OSError: the operating system refuses.
        """
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.writelines(records)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def replace_with(self, temporary: Path, since: int | None = None) -> None:
        """Put a file of ``write_copy`` in the place of this one, atomically.

        Args:
            temporary: the file; removed after an error.
            since: size of this file when the records of the copy were collected; what was appended
                since is appended to the copy. None: nothing was.

        Raises:
            OSError: the operating system refuses; then this file stays.
        """
        descriptor = _open(temporary)
        try:
            if since is not None:
                _write(descriptor, os.pread(self._descriptor, self.size - since, since))
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(self._descriptor).st_mode))
            os.fsync(descriptor)
            os.replace(temporary, self.path)
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
        os.close(self._descriptor)
        self._descriptor = descriptor
        self.num_replaced += 1
        self.size, self._has_torn_end = os.fstat(descriptor).st_size, False
        sync(self.path.parent)

    def _cut(self) -> None:
        os.ftruncate(self._descriptor, self.size)
        os.fsync(self._descriptor)
        self._has_torn_end = False

    def _remove_stale(self) -> None:
        """Remove the temporary files of a writer that was killed."""
        for name in os.listdir(self.path.parent):
            match = TEMPORARY.fullmatch(name)
            if match is not None and (match[1], match[3]) == (self.path.name, "tmp"):
                with contextlib.suppress(OSError):
                    self.path.with_name(name).unlink()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _write(descriptor: int, data: bytes) -> None:
    """Write all bytes: the operating system may take a part only, as on a nearly full disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _entry(body: bytes) -> dict[str, Any] | None:
    """Return the entry of a record; None if it is not an item update."""
    try:
        entry = parse_json(body)
        update = entry["update"]
        is_valid = type(entry["model"]) is str and type(entry["item"]) in (int, str)
        if update is not None:
            is_valid &= isinstance(update["title"], str | None)
            is_valid &= type(update["attributes"]) is dict
    except (ValueError, KeyError, TypeError):
        return None
    return entry if is_valid else None


def _may_be_ours(data: bytes) -> bool:
    """Whether a file without a valid record may be one of item updates that is damaged."""
    is_start = SIGNS[0].startswith(data)  # of a first write that was cut
    return is_start or not data.strip(b"\0 \n") or any(sign in data for sign in SIGNS)
