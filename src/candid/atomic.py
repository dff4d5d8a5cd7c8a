"""Writing a file so that it is either all there or not there at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}; free the space or choose "
            "another folder"
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
