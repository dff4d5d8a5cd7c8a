"""Cache of compiled kernels: a private folder whose files are checked before they are loaded.

A library runs with all rights of the process, so a file counts only if this user, or root, wrote
it. Owner and mode are read from open descriptors of the folder and of the file: a name may point
elsewhere a moment later. Everything else is compiled again.

    KEY.kernel      sha256 of the library (32 bytes), then the library
    .TOKEN.tmp      a file that is being written, locked by its process

The checksum finds damage, such as a file that was cut. It does not protect against another user,
who could compute it too; owner and mode are.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

SUFFIX: Final = ".kernel"
NO_CACHE: Final = "native kernels are compiled in each process, without a cache"
OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
TEMPORARY: Final = re.compile(r"\.[0-9a-f]{32}\.tmp")
OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK the open of a pipe would wait for a writer.
OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class UntrustedError(Exception):
    """The reason why a folder or a file of the cache is not used."""


def cached_library(
    root: Path, name: str, build: Callable[[], bytes], logger: logging.Logger
) -> bytes:
    """Return a library from the folder ``root/candid/native``, or build and store it.

    A folder that cannot be used is passed over, and a file that cannot be used is replaced, with
    one log line in each case. Processes that need a missing library at the same time all build it.

    Args:
        root: cache folder of the user.
        name: of the library and of everything that it depends on.
        build: returns the library.
        logger: gets the line.
    """
    folder = None
    try:
        folder = _open_private_folder(root, logger)
    except UntrustedError as error:
        _log_once(logger, logging.WARNING, f"{NO_CACHE}: {error}")
    except OSError as error:
        _log_once(logger, logging.INFO, f"{NO_CACHE}: {error.filename}: {error.strerror}")
    if folder is None:
        return build()
    try:
        library = _read(folder, name, root, logger)
        if library is None:
            library = build()
            _write(folder, name, library, root, logger)
        return library
    finally:
        os.close(folder)


def load_library(name: str, library: bytes) -> ctypes.CDLL:
    """Load a library from memory: no change of a file can reach it, before or after.

    Args:
        name: for debuggers, which show it as the name of the mapped file.
        library: its bytes.

    Raises:
        OSError: the bytes are not a library of this machine, or the system refuses.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb", closefd=False) as stream:
        stream.write(library)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    # The descriptor stays open: the loader takes an equal path for the same library, so its number
    # must not be used again.
    return ctypes.CDLL(f"/proc/self/fd/{descriptor}")


def _open_private_folder(root: Path, logger: logging.Logger) -> int:
    """Return a descriptor of the folder ``candid/native`` in ``root``, made where it is missing.

    Raises:
        UntrustedError: another user owns or may change it.
        OSError: the system refuses.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    path = root
    for part in ("candid", "native"):
        path = path / part
        parent = folder
        try:
            folder = _open_folder(part, parent, path)
        finally:
            os.close(parent)
    try:
        _make_private(folder, path, logger)
        _remove_stale(folder)
    except BaseException:
        os.close(folder)
        raise
    return folder


def _open_folder(part: str, parent: int, path: Path) -> int:
    with suppress(OSError):  # The open gives the reason.
        os.mkdir(part, mode=0o700, dir_fd=parent)
    try:
        descriptor = os.open(part, OPEN_FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UntrustedError(
                f"{path} is a symbolic link or a file; remove it or set XDG_CACHE_HOME"
            ) from None
        error.filename = str(path)
        raise
    owner = os.fstat(descriptor).st_uid
    if not _is_trusted(owner):
        os.close(descriptor)
        raise UntrustedError(
            f"{path} belongs to user {owner}; set XDG_CACHE_HOME to a folder of your own"
        )
    return descriptor


def _make_private(folder: int, path: Path, logger: logging.Logger) -> None:
    """Close a folder to others, and remove the files that they may have put there."""
    status = os.fstat(folder)
    if not status.st_mode & OTHERS_WRITE:
        if status.st_mode & OTHERS and status.st_uid == os.geteuid():
            with suppress(OSError):  # Others may read what they could compile too.
                os.fchmod(folder, 0o700)
        return
    if status.st_uid != os.geteuid():
        raise UntrustedError(f"{path} can be written by other users; set XDG_CACHE_HOME")
    try:
        os.fchmod(folder, 0o700)
        for name in os.listdir(folder):
            os.unlink(name, dir_fd=folder)
    except OSError as error:
        raise UntrustedError(
            f"{path} can be written by other users and cannot be emptied ({error.strerror}); "
            "remove it"
        ) from None
    logger.warning("%s could be written by other users: emptied and made private", path)


def _read(folder: int, name: str, root: Path, logger: logging.Logger) -> bytes | None:
    """Return the library of a file; None without one, or if it must be built again."""
    reason: str | None
    try:
        descriptor = os.open(name + SUFFIX, OPEN_FILE, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror
    else:
        try:
            reason = _distrust(os.fstat(descriptor))
            if reason is None:
                with open(descriptor, "rb", closefd=False) as stream:
                    content = stream.read()
                if hashlib.sha256(content[32:]).digest() == content[:32]:
                    return content[32:]
                reason = "it is damaged"
        finally:
            os.close(descriptor)
    logger.warning(
        "native kernel %s in %s is compiled again: %s", name, root / "candid" / "native", reason
    )
    return None


def _distrust(status: os.stat_result) -> str | None:
    """Return why a file is not read; None: this user, or root, wrote it."""
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if not _is_trusted(status.st_uid):
        return f"it belongs to user {status.st_uid}"
    return "other users may write it" if status.st_mode & OTHERS_WRITE else None


def _write(folder: int, name: str, library: bytes, root: Path, logger: logging.Logger) -> None:
    """Store a library under its name in one step; a failure costs one log line."""
    try:
        temporary, descriptor = _open_temporary(folder)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(hashlib.sha256(library).digest() + library)
                stream.flush()
                # While it is locked: an unlocked one may be removed.
                os.rename(temporary, name + SUFFIX, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
    except OSError as error:
        folder_name = root / "candid" / "native"
        _log_once(logger, logging.INFO, f"{NO_CACHE}: {folder_name}: {error.strerror}")


def _open_temporary(folder: int) -> tuple[str, int]:
    """Create and lock a temporary file; return its name and its descriptor."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        name = f".{uuid.uuid4().hex}.tmp"
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        # Another process may take it for one that was left behind, before it is locked.
        if _lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return name, descriptor
        os.close(descriptor)


def _remove_stale(folder: int) -> None:
    """Remove the temporary files of killed processes."""
    for name in os.listdir(folder):
        if TEMPORARY.fullmatch(name):
            with suppress(OSError):  # a file of another user, or one that is gone
                descriptor = os.open(name, OPEN_FILE, dir_fd=folder)
                try:
                    if _lock(descriptor):
                        os.unlink(name, dir_fd=folder)
                finally:
                    os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock a file; return False where another process holds it, None without locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_trusted(owner: int) -> bool:
    """Whether files of this user may be loaded: root could change this process anyway."""
    return owner in (os.geteuid(), 0)


@cache
def _log_once(logger: logging.Logger, level: int, message: str) -> None:
    """Log a message once: each of several kernels finds the same folder."""
    logger.log(level, message)
