"""Folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from candid.atomic import sync, umask, write_error

LOCK = ".lock"
GRACE = 60.0
"""Seconds that a temporary folder may be without lock while its process starts or ends."""


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``out`` to write into; at the end it becomes ``out``.

    Whatever ends the block early (an error, Ctrl-C) removes the temporary folder and leaves
    ``out`` as it was. A folder left by a killed process is removed by the next call; one in
    use by a live process is locked and left alone. An existing ``out`` is replaced: the
    caller has made sure that it may be.

    Raises:
        ArtifactError: the file system refuses (disk full, no permission).
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
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if (left / LOCK).exists():
                with (left / LOCK).open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            elif time.time() - left.stat().st_mtime < GRACE:
                continue
            shutil.rmtree(left)
