"""Writing a file so that it is either all there or not there at all."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from candid.errors import ArtifactError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and move it there when the block succeeds.

    The folder is made if it is missing; the data is on the disk (fsync) before the name
    changes; on any error nothing stays behind and an older file of that name is untouched.

    Args:
        path: the file to write.

    Yields:
        the temporary path, in the same folder.

    Raises:
        ArtifactError: the operating system refused (no space, no permission).
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            let_read(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON object, whole or not at all.

    Raises:
        ArtifactError: the operating system refused.
        ValueError: a number is not finite.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_error(path: Path, error: OSError) -> ArtifactError:
    """Say in one sentence why ``path`` could not be written."""
    number = error.errno
    if number is None and (hidden := re.search(r"os error (\d+)", str(error))):
        number = int(hidden[1])  # where a library in Rust keeps it
    reason = error.strerror or (os.strerror(number) if number is not None else error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ArtifactError(
            f"cannot write {path}: no space left ({reason}); free some or write elsewhere"
        )
    return ArtifactError(f"cannot write {path}: {reason}; mend that or write elsewhere")


def let_read(path: Path) -> None:
    """Give a file that some library wrote for its owner alone the mode that others have here.

    Whoever serves a run is often not who trained it.
    """
    if stat.S_IMODE(path.stat().st_mode) == 0o600:
        path.chmod(0o666 & ~umask())


def umask() -> int:
    """What is taken from the mode of new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
