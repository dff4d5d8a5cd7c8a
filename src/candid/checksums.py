"""Checksums of files and of JSON documents: stored when written, compared when opened.

The checksum is SHA-256. ``verification(False)`` turns the comparison off for a block of code; sizes
are compared all the same.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from candid.atomic import write_json
from candid.errors import ArtifactError

SEAL: Final = "checksum"
"""Key of a JSON document with the checksum of its other keys."""
LARGE: Final = 64 << 20
"""Size in bytes from which a file is read in the background; a smaller one takes under 0.1 s."""
WORKERS: Final = 4
"""Threads that read the large files of one artifact."""

_is_verifying: ContextVar[bool] = ContextVar("verification", default=True)


def is_verifying() -> bool:
    """Return whether checksums are compared here."""
    return _is_verifying.get()


@contextmanager
def verification(enabled: bool) -> Iterator[None]:
    """Turn the comparison of checksums off inside the block, if ``enabled`` is false.

    Nested blocks cannot turn it on again.
    """
    token = _is_verifying.set(_is_verifying.get() and enabled)
    try:
        yield
    finally:
        _is_verifying.reset(token)


def checksum(path: Path) -> str:
    """Return the checksum of a file in hex; the file is read in small pieces.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_error(path: Path, error: OSError | MemoryError) -> ArtifactError:
    """Build the error of a file that the system cannot read; its content may be as it was written.

    Args:
        path: the file.
        error: of the system.
    """
    return ArtifactError(f"{path} {_system_fault(error)}")


def _system_fault(error: OSError | MemoryError) -> str:
    """Return the reason of the system, after a semicolon what to do."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
    advice = {
        errno.EACCES: "give this user read permission",
        errno.EPERM: "give this user read permission",
        errno.ENOMEM: "close other programs, or use a machine with more memory",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
        errno.ENFILE: "raise the limit of open files of the system",
        errno.EIO: "check the disk, and restore the file from a copy",
    }
    reason = os.strerror(number) if number is not None else str(error)
    return f"cannot be read: {reason.lower()}; {advice.get(number or 0, 'fix that')}"


def file_entry(path: Path) -> dict[str, Any]:
    """Return the entry of a file in a manifest: its size in bytes and its checksum."""
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def check_entries(files: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that entries from a manifest have the form of ``file_entry``.

    Args:
        files: entries by name, as parsed from JSON.

    Raises:
        ValueError: a size is not a whole number, or a checksum is not text.
        AttributeError, KeyError, TypeError: there is no such table.
    """
    for entry in files.values():
        if type(entry["bytes"]) is not int or type(entry["sha256"]) is not str:
            raise ValueError("an entry of a file has another form")


@dataclass(frozen=True, slots=True)
class Fault:
    """How a file differs from its entry.

    Attributes:
        text: what follows the path in a sentence.
        is_damage: whether size or content differ, or the file is missing; else the system cannot
            read it, and the text states what to do.
    """

    text: str
    is_damage: bool = True

    def sentence(self, path: Path, advice: str) -> str:
        """Return the sentence for a message, with the advice if the file is damaged."""
        return f"{path} {self.text}; {advice}" if self.is_damage else f"{path} {self.text}"


def find_fault(path: Path, entry: Mapping[str, Any], *, compare: bool = True) -> Fault | None:
    """Return how a file differs from its entry, or None.

    Args:
        path: the file.
        entry: result of ``file_entry``.
        compare: compare the content too, not only the size.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            return Fault("is missing")
        if size != entry["bytes"]:
            return Fault(f"has {size:,} bytes, not {entry['bytes']:,}")
        if compare and checksum(path) != entry["sha256"]:
            return Fault("differs from its checksum")
    except (OSError, MemoryError) as error:
        return Fault(_system_fault(error), is_damage=False)
    return None


def check_file(path: Path, entry: Mapping[str, Any], advice: str) -> None:
    """Refuse a file that differs from its entry.

    Args:
        path: the file.
        entry: result of ``file_entry``.
        advice: what to do, for the message.

    Raises:
        ArtifactError: the file is missing, or has another size or content.
    """
    fault = find_fault(path, entry, compare=is_verifying())
    if fault is not None:
        raise ArtifactError(fault.sentence(path, advice))


class FileChecks:
    """The comparison of several files with their entries; threads read the large files.

    The sizes of all files and the content of small ones are compared at once.

    Args:
        files: entry of each file, as ``file_entry`` returns it.
        advice: what to do about a damaged file, for messages.

    Raises:
        ArtifactError: a file is missing, has another size, or is small and has another content.

    Example:
        >>> checks = FileChecks({Path("vectors.npy"): entry}, "build it again")  # doctest: +SKIP
        >>> vectors = np.load("vectors.npy", mmap_mode="r")  # doctest: +SKIP
        >>> checks.wait()  # doctest: +SKIP
    """

    def __init__(self, files: Mapping[Path, Mapping[str, Any]], advice: str) -> None:
        self._files = dict(files)
        self._advice = advice
        self._faults: dict[Path, Fault] = {}
        large = []
        for path, entry in self._files.items():
            is_large = entry["bytes"] >= LARGE
            fault = find_fault(path, entry, compare=is_verifying() and not is_large)
            if fault is not None:
                raise ArtifactError(fault.sentence(path, advice))
            if is_large and is_verifying():
                large.append(path)
        self._waiting = iter(large)
        self._lock = threading.Lock()
        # Daemons, so that an error elsewhere ends the program without reading on.
        self._threads = [
            threading.Thread(target=self._compare, name="checksums", daemon=True)
            for _ in range(min(WORKERS, len(large)))
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"FileChecks({len(self._files)} files, is_complete={self.is_complete})"

    @property
    def is_complete(self) -> bool:
        """Whether every file has been compared."""
        return not any(thread.is_alive() for thread in self._threads)

    def wait(self) -> None:
        """Wait until every file has been compared.

        Raises:
            ArtifactError: a file has another content than when it was written.
        """
        for thread in self._threads:
            thread.join()
        for path in self._files:
            if path in self._faults:
                raise ArtifactError(self._faults[path].sentence(path, self._advice))

    def _compare(self) -> None:
        while True:
            with self._lock:
                path = next(self._waiting, None)
            if path is None:
                return
            fault = find_fault(path, self._files[path])
            if fault is not None:
                self._faults[path] = fault


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON document with the checksum of its content under ``SEAL``.

    The checksum covers keys, values and their order, and no white space.

    Args:
        document: values of JSON; a key ``SEAL`` is replaced.
    """
    content = {key: value for key, value in document.items() if key != SEAL}
    return {**content, SEAL: _content_checksum(content)}


def write_sealed_json(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Write a JSON document with its checksum, atomically, and return it.

    Raises:
        ArtifactError: the operating system refuses.
        ValueError: a number is not finite.
    """
    document = sealed(document)
    write_json(path, document)
    return document


def has_valid_seal(document: Mapping[str, Any]) -> bool:
    """Return whether the content of a document from a JSON file has the checksum in it."""
    content = {key: value for key, value in document.items() if key != SEAL}
    return document.get(SEAL) == _content_checksum(content)


def check_seal(path: Path, document: Mapping[str, Any], advice: str) -> None:
    """Refuse a document that differs from what was written.

    Args:
        path: its file, for the message.
        document: content of the file.
        advice: what to do, for the message.

    Raises:
        ArtifactError: its checksum is missing, or that of another content.
    """
    if is_verifying() and not has_valid_seal(document):
        raise ArtifactError(f"{path} differs from its checksum; {advice}")


def sealed_text(text: str) -> str:
    """Return a text with its checksum in a last line, which starts with ``#`` as in TOML."""
    return text + _seal_line(text.encode())


def has_valid_text_seal(content: bytes) -> bool:
    """Return whether the content of a file of ``sealed_text`` is as it was written."""
    text, mark, _ = content.rpartition(f"# {SEAL}: ".encode())
    return bool(mark) and content == text + _seal_line(text).encode()


def _seal_line(text: bytes) -> str:
    return f"# {SEAL}: {hashlib.sha256(text).hexdigest()}\n"


def _content_checksum(content: Mapping[str, Any]) -> str:
    # Once through JSON, where tuples become lists and keys become text, as in the file.
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, separators=(",", ":")).encode()).hexdigest()
