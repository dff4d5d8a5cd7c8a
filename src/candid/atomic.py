"""Atomic writes: files and folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from candid.errors import NO_SPACE, ArtifactError, CandidError, ConfigError
from candid.locks import Lock, acquire

TEMPORARY: Final = re.compile(r"\.(.+)\.([0-9a-f]{32})\.(tmp|old|lock)")
"""Names of temporary files and folders: that of the target, a token, and a kind. ``tmp`` is being
written, ``old`` is an earlier folder that is being replaced, and ``lock`` is held by the process
that writes."""
_EXCHANGE: Final = 2
"""RENAME_EXCHANGE of renameat2(2)."""
_AT_FDCWD: Final = -100
_OS_ERROR: Final = re.compile(r"os error (\d+)")
"""Number of an error of the operating system, in the text of errors of libraries in Rust."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` if the block succeeds.

    A missing folder is created. The data is on disk (fsync) before the rename. After an error
    no temporary file stays, and an earlier file at ``path`` is unchanged. Temporary files of
    killed processes are removed first.

    Args:
        path: file to write.

    Yields:
        the temporary path, in the same folder.

    Raises:
        ArtifactError: the operating system refuses (no space, no permission).
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as temporary:
            yield temporary
            make_readable(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out`` and rename it to ``out`` if the block succeeds.

    An error or Ctrl-C removes the temporary folder and leaves ``out`` unchanged. An existing
    ``out`` is exchanged with the new folder in one step, where the file system can do that;
    elsewhere it is renamed first, and ``remove_stale`` restores it after a kill between the two
    steps. The caller checks that ``out`` may be replaced. Temporary folders of killed processes
    are removed first; those of live processes stay.

    Args:
        out: folder to write.

    Yields:
        the temporary folder.

    Raises:
        ArtifactError: the operating system refuses (no space, no permission).
    """
    out = out.resolve()
    with write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(out) as folder:
            folder.mkdir(mode=0o700)
            yield folder
            _publish(folder, out)


def remove_folder(path: Path) -> None:
    """Remove a folder in one step: a kill does not leave a part of it under its name.

    Raises:
        ArtifactError: the operating system refuses.
    """
    try:
        with _temporary(path) as temporary:
            path.rename(temporary)
    except OSError as error:
        raise write_error(path, error) from error


def remove_stale(path: Path) -> None:
    """Remove the temporary files and folders that killed processes left beside a target.

    A folder that a killed process had renamed and not replaced yet gets its name back. Those of
    live processes stay, and so does what the system refuses to remove, or another program wrote.

    Args:
        path: file or folder that ``replacing`` or ``atomic_folder`` writes; it may be missing.
    """
    for name, token in _stale(path.parent):
        if name == path.name:
            with contextlib.suppress(OSError, ConfigError):  # such as a lock of another program
                _remove_stale(path, token)


def remove_all_stale(folder: Path) -> None:
    """Remove what killed processes left in a folder, as ``remove_stale`` for every target in it.

    Args:
        folder: whose files are all written by ``replacing`` or ``atomic_folder``; it may be
            missing.
    """
    for name, token in _stale(folder):
        with contextlib.suppress(OSError, ConfigError):
            _remove_stale(folder / name, token)


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
    return write_parts(path, parts)


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write and fsync ``parts`` one after the other, as ``write_file`` does."""
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


def write_error(path: Path, error: Exception) -> ArtifactError:
    """Build the error of a failed write to ``path``: one sentence with the reason.

    Args:
        path: that was written.
        error: of the operating system, or of a library that has its number in the text.
    """
    number = getattr(error, "errno", None)
    if number is None and (hidden := _OS_ERROR.search(str(error))):
        number = int(hidden[1])
    reason = getattr(error, "strerror", None) or error
    if number is not None and reason is error:
        reason = os.strerror(number)
    if number in NO_SPACE:
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


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise errors of the operating system as one sentence, also those that a library wraps.

    Raises:
        ArtifactError: the operating system refuses to write ``path``.
    """
    try:
        yield
    except CandidError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or _OS_ERROR.search(str(error)):
            raise write_error(path, error) from error
        raise


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield an unused path beside ``path``; remove what is there after the block.

    A lock beside it keeps ``remove_stale`` of other processes away. The lock is a file of its own
    because some writers, such as compilers, replace the file that they write.
    """
    remove_stale(path)
    token, lock = _locked_token(path)
    temporary = _named(path, token, "tmp")
    try:
        yield temporary
    finally:
        _remove(temporary)
        lock.release()


def _locked_token(path: Path) -> tuple[str, Lock]:
    while True:
        token = uuid.uuid4().hex
        # Another process may take the new lock for one that was left behind, and remove it.
        with contextlib.suppress(BlockingIOError):
            return token, acquire(_named(path, token, "lock"))


def _named(path: Path, token: str, kind: str) -> Path:
    return path.with_name(f".{path.name}.{token}.{kind}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _stale(folder: Path) -> list[tuple[str, str]]:
    """Return name of the target and token of each group of temporary files in a folder."""
    try:
        matches = [TEMPORARY.fullmatch(name) for name in os.listdir(folder)]
    except OSError:
        return []
    return sorted({(match[1], match[2]) for match in matches if match})


def _remove_stale(path: Path, token: str) -> None:
    with acquire(_named(path, token, "lock")) as lock:
        if not lock.is_exclusive:
            return  # Without locks, those of live processes cannot be recognised.
        old = _named(path, token, "old")
        if old.exists() and not os.path.lexists(path):
            old.rename(path)
            sync(path.parent)
        _remove(old)
        _remove(_named(path, token, "tmp"))


def _publish(folder: Path, out: Path) -> None:
    sync(folder)
    folder.chmod(0o777 & ~umask())
    if not out.exists():
        folder.rename(out)
    elif not _exchange(folder, out):
        old = folder.with_suffix(".old")
        out.rename(old)
        try:
            folder.rename(out)
        except OSError:
            old.rename(out)
            raise
        _remove(old)
    sync(out.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; return False where the system cannot do that."""
    renameat2 = _renameat2()
    if renameat2 is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux, or a C library without it
        return None
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    )
    function.restype = ctypes.c_int
    renameat2: Callable[..., int] = function
    return renameat2
