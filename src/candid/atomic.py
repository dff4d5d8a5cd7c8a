"""Atomic writes: files and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from candid.errors import ArtifactError

LOCK: Final = ".lock"
GRACE: Final = 60.0
"""Seconds during which a temporary folder without a lock is not removed: its process may be
starting or ending."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` if the block succeeds.

    A missing folder is created. The data is on disk (fsync) before the rename. After an error
    no temporary file stays, and an earlier file at ``path`` is unchanged.

    Args:
        path: file to write.

    Yields:
        the temporary path, in the same folder.

    Raises:
        ArtifactError: the operating system refuses (no space, no permission).
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            make_readable(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out`` and rename it to ``out`` if the block succeeds.

    An error or Ctrl-C removes the temporary folder and leaves ``out`` unchanged. The next call
    removes the temporary folder of a killed process; that of a live process is locked and stays.
    An existing ``out`` is replaced: the caller checks that it may be.

    Args:
        out: folder to write.

    Yields:
        the temporary folder.

    Raises:
        ArtifactError: the operating system refuses (no space, no permission).
    """
    out = out.resolve()
    prefix = f".{out.name}.part-"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out.parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    except OSError as error:
        raise write_error(out, error) from error
    try:
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
            (folder / LOCK).unlink()
            _publish(folder, out)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(*paths: Path) -> None:
    """Refuse files that cannot be written, before a long computation of their content.

    Creates nothing: a missing folder is checked by its closest existing parent.

    Args:
        paths: files to write later.

    Raises:
        ArtifactError: the operating system refuses, or a folder is in the place of a file.
    """
    for path in paths:
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise write_error(path, error) from error


def check_folder_writable(out: Path) -> None:
    """Refuse a folder that ``atomic_folder`` cannot write, before its content is computed.

    Raises:
        ArtifactError: the operating system refuses.
    """
    out = out.resolve()
    parent = out.parent
    try:
        # A missing folder is made by ``atomic_folder``, in the closest one that exists.
        while not os.path.lexists(parent):
            parent = parent.parent
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise write_error(out, error) from error


def write_file(path: Path, *parts: bytes | memoryview) -> tuple[int, str]:
    """Write and fsync ``parts``; return the size in bytes and the sha256 in hex."""
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        for part in parts:
            stream.write(part)
            digest.update(part)
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell(), digest.hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON object atomically.

    Raises:
        ArtifactError: the operating system refuses.
        ValueError: a number is not finite.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_error(path: Path, error: OSError) -> ArtifactError:
    """Build the error of a failed write to ``path``: one sentence with the reason."""
    number = error.errno
    if number is None and (hidden := re.search(r"os error (\d+)", str(error))):
        number = int(hidden[1])  # libraries in Rust put the number into the text
    reason = error.strerror or (os.strerror(number) if number is not None else error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ArtifactError(
            f"cannot write {path}: no space left ({reason}); free some space or choose another path"
        )
    return ArtifactError(f"cannot write {path}: {reason}; fix that or choose another path")


def make_readable(path: Path) -> None:
    """Give the default mode of new files to a file that a library made private to its owner.

    The user that serves a run is often not the user that trained it.
    """
    if stat.S_IMODE(path.stat().st_mode) == 0o600:
        path.chmod(0o666 & ~umask())


def umask() -> int:
    """Return the permission bits that the process removes from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(folder: Path, out: Path) -> None:
    sync(folder)
    folder.chmod(0o777 & ~umask())
    if not out.exists():
        folder.rename(out)
    else:
        old = folder.with_name(folder.name + ".old")
        out.rename(old)
        try:
            folder.rename(out)
        except OSError:
            old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync(out.parent)


def _remove_stale(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if (folder / LOCK).exists():
                with (folder / LOCK).open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif time.time() - folder.stat().st_mtime < GRACE:
                continue
            shutil.rmtree(folder)
