"""Locks: files that one process at a time holds, with a record of the process that holds them.

A lock is an flock on a small file. The system releases that of a killed process, so a file that
stays behind does no harm. The file is removed at the release.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from candid.errors import ConfigError
from candid.json_text import parse_json, read_json

LOCK: Final = ".lock"
"""Name of the lock file of a folder, inside it."""
COMMAND: Final = 200
"""Most characters of a command in the record of a holder."""
RECORD: Final = b'{"pid": '
"""First bytes of every record."""
UNSUPPORTED: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of a file system that has no locks."""


class Lock:
    """A held lock, released by ``release`` or at the end of a ``with`` block.

    Attributes:
        path: of the lock file.
        is_exclusive: whether the system guarantees that no other process holds it; False on a file
            system without locks, where work continues without this protection.
        keeps_file: whether the file stays at the release, as after a kill. Default: False.
    """

    def __init__(self, path: Path, descriptor: int, is_exclusive: bool) -> None:
        self.path = path
        self.is_exclusive = is_exclusive
        self.keeps_file = False
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Remove the lock file and release the lock; a second call does nothing."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            # Removed while it is held: a process that waits for it sees that the file is another.
            if not self.keeps_file:
                self.path.unlink(missing_ok=True)
        except OSError:
            pass  # A folder that became read-only; the file does no harm.
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def acquire(path: Path, purpose: Mapping[str, Any] | None = None) -> Lock:
    """Create and lock a file, without waiting.

    Args:
        path: of the lock file, in an existing folder.
        purpose: plain JSON values for ``stored_purpose``.

    Raises:
        BlockingIOError: another process, or another lock of this one, holds it.
        ConfigError: the file has content that is not of a lock; it stays as it is.
        OSError: the operating system refuses, such as for a missing folder.
    """
    record = _this_process() | {"purpose": purpose}
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            is_exclusive = _flock(descriptor)
            if _is_at(descriptor, path):
                _check_is_lock(descriptor, path)
                # On a full disk the lock holds without its record.
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(record).encode(), 0)
                return Lock(path, descriptor, is_exclusive)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # The holder removed the file in between: lock the next one.


@contextmanager
def one_writer(
    path: Path,
    target: Path | str,
    advice: str = "choose another path",
    purpose: Mapping[str, Any] | None = None,
) -> Iterator[Lock]:
    """Hold a lock for a block, so that one process at a time writes a target.

    Args:
        path: of the lock file, in an existing folder.
        target: what is written, for the message.
        advice: what to do instead of waiting, for the message.
        purpose: plain JSON values for ``stored_purpose``.

    Raises:
        ConfigError: another process holds the lock (the message has its pid, host, start and
            command), or the file is not a lock.
        OSError: the operating system refuses.
    """
    try:
        lock = acquire(path, purpose)
    except BlockingIOError:
        raise _busy(path, target, advice) from None
    with lock:
        yield lock


def check_not_held(path: Path, target: Path | str, advice: str = "choose another path") -> None:
    """Refuse a target that another process writes, and leave a lock that a kill left as it is.

    Args:
        path: of the lock file; it may be missing.
        target: as for ``one_writer``.
        advice: as for ``one_writer``.

    Raises:
        ConfigError: another process holds the lock.
    """
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    with suppress(*missing), path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(path, target, advice) from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise


def holder(path: Path) -> str:
    """Return who holds a lock, in words for a message."""
    try:
        record = read_json(path)
        pid, host = int(record["pid"]), str(record["host"])
        return f"pid {pid} on {host} since {record['since']}: {record['command']}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "unknown process"  # It has the lock and has not written its record yet.


def stored_purpose(path: Path) -> dict[str, Any] | None:
    """Return the purpose that a process gave when it locked a file; None: it stored none.

    The file of a killed process stays: its successor reads what it was about to do.
    """
    try:
        purpose = read_json(path)["purpose"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return purpose if isinstance(purpose, dict) else None


def is_lock_file(path: Path) -> bool:
    """Whether a file is a lock: empty, as before its holder writes its record, or with a record."""
    try:
        content = path.read_bytes()
        return not content or "pid" in dict(parse_json(content))
    except (OSError, ValueError, TypeError):
        return False


def _check_is_lock(descriptor: int, path: Path) -> None:
    """Refuse a file of another program or of the user.

    A full disk may cut a record, and a power cut may leave zeros in its place.
    """
    start = os.pread(descriptor, len(RECORD), 0).rstrip(b"\0")
    if not RECORD.startswith(start):
        raise ConfigError(
            f"{path} is a file that candid did not write, in the place of a lock: move it away, "
            "or choose another path"
        )


def _busy(path: Path, target: Path | str, advice: str) -> ConfigError:
    return ConfigError(
        f"another process is writing {target} ({holder(path)}): wait until it ends, or {advice}"
    )


def _this_process() -> dict[str, Any]:
    command = re.sub(r"//[^@/\s]*@", "//", shlex.join(sys.argv))  # no password of a database
    if len(command) > COMMAND:
        command = f"{command[: COMMAND - 1]}…"
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": command,
    }


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
