"""Compressed text files: gzip, zstd, bzip2 and xz."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import polars as pl

from candid.data.readers.files import (
    COMPRESSIONS,
    READ_ERRORS,
    DataFile,
    chunks,
    first_bytes,
    no_space,
    plain_name,
    reading_folder,
    summary,
    unreadable,
)
from candid.errors import CandidError, DataError

DAMAGE: tuple[type[BaseException], ...] = (*READ_ERRORS, EOFError, zlib.error, lzma.LZMAError)
"""Errors of a compressed file that is damaged or cut short."""
NATIVE = ("", ".gz", ".zst")
"""Compressions that Polars reads itself."""


class EmptyFileError(DataError):
    """A text file without any byte."""


def check_compression(file: DataFile) -> None:
    """Check that the content of a file has the compression of its name, and is not empty.

    Raises:
        EmptyFileError: the file is empty.
        DataError: its content is of another kind than its name.
    """
    head = first_bytes(file.path)
    if not head:
        raise EmptyFileError(f"{file} is empty; remove it, or write it again")
    if file.compression:
        name, magic = COMPRESSIONS[file.compression]
        if not head.startswith(magic):
            raise DataError(
                f"{file} is not a {name} file; rename it without {file.compression}, or download "
                "it again"
            )
        try:
            with open_binary(file) as stream:
                is_empty = not stream.read(1)
        except DAMAGE as error:
            raise damaged(file, error) from error
        if is_empty:
            raise EmptyFileError(f"{file} is empty; remove it, or write it again")
        return
    for suffix, (name, magic) in COMPRESSIONS.items():
        if head.startswith(magic) and (suffix != ".bz2" or head[4:10] == b"1AY&SY"):
            raise DataError(f"{file} is a {name} file; rename it to {file}{suffix}")


def find_damage(file: DataFile) -> BaseException | None:
    """Decompress a file to its end, and return the error of a damaged one."""
    try:
        with open_binary(file) as stream:
            for _ in chunks(stream):
                pass
    except DAMAGE as error:
        return error
    return None


def damaged(file: DataFile, error: BaseException) -> CandidError:
    """Return the error of a compressed file that cannot be read to its end."""
    return unreadable(file, error, explain_damage)


def explain_damage(error: BaseException) -> str:
    """Describe a compressed file that cannot be read to its end."""
    return f"cannot be read to the end ({summary(error)}); download it again"


@contextmanager
def open_binary(file: DataFile) -> Iterator[IO[bytes]]:
    """Open a file and decompress it while it is read."""
    if file.compression == ".zst":
        yield io.BufferedReader(_ZstdStream(file))
        return
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    with openers.get(file.compression, open)(file.path, "rb") as stream:
        yield stream


@contextmanager
def open_text(file: DataFile) -> Iterator[IO[str]]:
    """Open a text file; bytes that are not UTF-8 become replacement marks."""
    with (
        open_binary(file) as stream,
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="") as text,
    ):
        yield text


class _ZstdStream(io.RawIOBase):
    """The lines of a zstd file, decompressed by Polars, joined by line feeds."""

    def __init__(self, file: DataFile) -> None:
        frame = pl.scan_lines(file.path, glob=False)
        self._batches = frame.collect_batches(chunk_size=100_000)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            batch = next(self._batches, None)
            if batch is None:
                return 0
            self._rest = ("\n".join(batch.to_series().to_list()) + "\n").encode()
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def decompressed(file: DataFile) -> DataFile:
    """Return a plain copy of a compressed file in a temporary folder; a plain file as it is.

    Raises:
        DataError: the file is damaged.
        ArtifactError: the temporary folder has no space.
    """
    if not file.compression:
        return file
    folder = reading_folder()
    path = folder.path / plain_name(file.path.name)
    with path.open("wb") as target:
        try:
            with open_binary(file) as source:
                for chunk in chunks(source):
                    write(target, chunk)
        except DAMAGE as error:
            raise damaged(file, error) from error
    return replace(file, path=path, compression="", folder=folder)


def write(target: IO[bytes], chunk: bytes) -> None:
    """Write to a temporary file.

    Raises:
        ArtifactError: the operating system refuses.
    """
    try:
        target.write(chunk)
    except OSError as error:
        raise no_space(Path(target.name), error) from error
