"""Temporary folders: removed at the end, and after a kill by the next process that makes one.

TMPDIR/candid-PURPOSE-TOKEN         private to this user
TMPDIR/candid-PURPOSE-TOKEN.lock    held by the process that uses the folder
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import uuid
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from candid.errors import ConfigError
from candid.locks import Lock, acquire

_LOCKED: Final = re.compile(r"(candid-[a-z]+-[0-9a-f]{32})\.lock")
"""Names of the locks of temporary folders."""


class TemporaryFolder:
    """A folder below ``TMPDIR``, removed by ``remove``, with this object or with the program.

    Folders of killed processes are removed first; those of live processes stay.

    Args:
        purpose: a part of the name, lower-case letters.

    Attributes:
        path: of the folder, which only this user can read and write.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, purpose: str) -> None:
        root = Path(tempfile.gettempdir())
        remove_unused(root)
        self.path = root / f"candid-{purpose}-{uuid.uuid4().hex}"
        lock = acquire(_lock_of(self.path))
        self._finalizer = weakref.finalize(self, _remove, self.path, lock)
        try:
            self.path.mkdir(mode=0o700)
        except OSError:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the folder; a second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def remove_for(path: Path) -> None:
    """Remove the temporary folder of another process that has just ended, with its lock.

    Args:
        path: of the folder.
    """
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        _lock_of(path).unlink()


def remove_unused(root: Path) -> None:
    """Remove the temporary folders of this user whose process has ended.

    Args:
        root: folder that holds them.
    """
    with suppress(OSError):
        for name in os.listdir(root):
            match = _LOCKED.fullmatch(name)
            if match is not None:
                with suppress(OSError, ConfigError):  # held, gone meanwhile, or not a lock
                    _remove_if_unused(root / match[1], root / name)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_if_unused(folder: Path, path: Path) -> None:
    # All users write into /tmp: their links are not followed, and their files stay. Without the
    # lock file, which a cleaner of temporary files may have removed, the folder may be in use.
    status = path.lstat()
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        return
    lock = acquire(path)
    if not lock.is_exclusive:
        lock.keeps_file = True  # Without locks, those of live processes cannot be recognised.
        lock.release()
        return
    _remove(folder, lock)


def _remove(folder: Path, lock: Lock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
