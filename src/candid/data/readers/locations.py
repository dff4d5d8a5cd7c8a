"""Files of a location: one file, a folder, a glob pattern, or a list of these."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

from candid.data.readers.files import (
    COMPRESSIONS,
    DataFile,
    compression_of,
    first_bytes,
    local_file,
    partitions_of,
    plain_name,
)
from candid.data.readers.lake import METADATA, iceberg_table, lake_format, lake_table
from candid.data.readers.registry import BINARY, LAKE, READERS, SUFFIXES
from candid.data.urls import without_secrets
from candid.errors import DataError

T = TypeVar("T")


def expand_variables(location: str) -> str:
    """Expand environment variables and ``~``.

    Raises:
        DataError: a variable is not set.
    """
    text = os.path.expanduser(os.path.expandvars(location))
    if "$" in text and not os.path.exists(text):
        raise DataError(
            f"{without_secrets(text)}: an environment variable in this path is not set; set it"
        )
    return text


def find_local(text: str, file_format: str) -> list[tuple[str, DataFile]]:
    """Return the format and the description of each file of a location, in the order of names.

    Args:
        text: path of a file, a folder or a glob pattern.
        file_format: key of ``READERS``, or "auto".

    Raises:
        DataError: there is no such file, or the files are of an unknown or of several formats.
    """
    path = Path(text)
    lake = lake_format(path) if path.is_dir() else None
    if lake is not None and file_format in ("auto", lake):
        return [(lake, lake_table(lake, text))]
    if path.is_dir():
        return _of_one_format(text, _files_in(path), file_format)
    if path.exists():
        if METADATA.fullmatch(path.name):
            return [("iceberg", iceberg_table(text, text))]
        chosen = format_of_name(path.name) if file_format == "auto" else file_format
        if chosen is None:
            raise unknown_format(text, first_bytes(path))
        return [(chosen, local_file(path, partitions_of(path.parts[:-1])))]
    if not glob.has_magic(text):
        raise DataError(f"{text} does not exist; check the path")
    matches = sorted(Path(match) for match in glob.glob(text, recursive=True))
    if not matches:
        raise DataError(f"no file matches {text}; check the pattern")
    tables = [(lake_format(match), match) for match in matches if match.is_dir()]
    if any(kind for kind, _ in tables):
        if len(tables) < len(matches) or not all(kind for kind, _ in tables):
            raise DataError(
                f"{text} matches tables with a log and other files; write a pattern for each"
            )
        return [(str(kind), lake_table(str(kind), str(match))) for kind, match in tables]
    files: dict[Path, None] = {}
    for match in matches:
        if match.is_dir():
            files |= dict.fromkeys(_files_in(match))
        elif match.name[0] not in "._":
            files[match] = None
    return _of_one_format(text, files, file_format)


def format_of_name(name: str) -> str | None:
    """Return the format of a file by its name, or None."""
    chosen = SUFFIXES.get(Path(plain_name(name)).suffix.lower())
    return None if chosen in BINARY and compression_of(name) else chosen


def _files_in(folder: Path) -> list[Path]:
    """List the files of a folder and below, without hidden ones and markers such as _SUCCESS."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part[0] in "._" for part in file.relative_to(folder).parts)
    ]


def _of_one_format(
    origin: str, paths: Iterable[Path], file_format: str
) -> list[tuple[str, DataFile]]:
    paths = list(paths)
    if file_format not in LAKE:
        _refuse_parts_of_a_table(origin, paths)
    chosen, kept = choose_format(origin, [(path.name, path) for path in paths], file_format)
    return [(chosen, local_file(path, partitions_of(path.parts[:-1]))) for path in kept]


def _refuse_parts_of_a_table(origin: str, paths: Iterable[Path]) -> None:
    """Refuse files of a table with a log: some may have been replaced."""
    folders = {folder for path in paths for folder in path.absolute().parents}
    for folder in sorted(folders):
        kind = lake_format(folder)
        if kind is not None:
            raise DataError(
                f"{origin} has files of the {kind.capitalize()} table {folder}, some of which may "
                "be replaced; name the folder of the table"
            )


def choose_format(
    origin: str, named: Sequence[tuple[str, T]], file_format: str
) -> tuple[str, list[T]]:
    """Return the format of a folder and its files of that format.

    Raises:
        DataError: the folder has no file of a known format, or files of several.
    """
    by_format: dict[str, list[tuple[str, T]]] = {}
    for name, file in named:
        found = format_of_name(name)
        if found is not None:
            by_format.setdefault(found, []).append((name, file))
    # A folder of one of these sets also has the tables of items and users.
    main = {"movielens": "ratings.dat", "recbole": ".inter"}
    for found, ending in main.items():
        files = [pair for pair in by_format.get(found, []) if plain_name(pair[0]).endswith(ending)]
        by_format[found] = files
    by_format = {
        name: files for name, files in by_format.items() if files and file_format in ("auto", name)
    }
    if not by_format:
        kind = "data" if file_format == "auto" else file_format
        raise DataError(
            f"{origin} has no {kind} files; candid reads {known_suffixes()}: check the path"
        )
    if len(by_format) > 1:
        name = next(iter(by_format.values()))[0][0]
        plain = plain_name(name)
        example = "*" + PurePath(plain).suffix + name.removeprefix(plain)
        raise DataError(
            f"{origin} has files of several formats ({', '.join(by_format)}); name one file, or "
            f"the files of one format by a pattern such as '{example}'"
        )
    chosen, files = next(iter(by_format.items()))
    return chosen, [file for _, file in files]


def known_suffixes() -> str:
    """List the endings of file names that candid reads."""
    return f"{', '.join(SUFFIXES)} (text also with {', '.join(COMPRESSIONS)})"


def unknown_format(origin: str, head: bytes) -> DataError:
    """Return the error of a file whose name has no known ending.

    Args:
        origin: the file.
        head: its first bytes; only formats that can read it are proposed.
    """
    if head.startswith((b"PAR1", b"ARROW1")):
        name = "parquet" if head.startswith(b"PAR1") else "arrow"
        advice = f"it is of format {name}: rename it to .{name}, or set format to {name!r}"
    elif b"\0" in head or compression_of(origin) or _is_known_binary(head):
        advice = f"candid reads {known_suffixes()}: convert it to one of these"
    else:
        texts = [name for name in READERS if name not in (*BINARY, *LAKE)]
        advice = f"candid reads {known_suffixes()}: rename it, or set format to one of " + (
            ", ".join(texts)
        )
    return DataError(f"{origin}: unknown file extension; {advice}")


def _is_known_binary(head: bytes) -> bool:
    magics = [magic for _, magic in COMPRESSIONS.values()]
    return head.startswith((*magics, b"PK\x03\x04", b"ORC", b"Obj\x01", b"\x80"))


def partition_types(files: Sequence[Mapping[str, str | None]]) -> dict[str, bool]:
    """Return the partitions of all files, each with whether all its values are integers."""
    are_integers: dict[str, bool] = {}
    for partitions in files:
        for column, value in partitions.items():
            is_integer = value is None or re.fullmatch(r"0|-?[1-9]\d{0,17}", value) is not None
            are_integers[column] = are_integers.get(column, True) and is_integer
    return are_integers
