"""A copy of a public data set that the user downloaded: its files and the settings to read them."""

from __future__ import annotations

import fnmatch
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from candid.component import lookup
from candid.data.public_sets import PUBLIC_SETS, PublicSet, RawFiles
from candid.data.readers.files import no_space, reading_folder
from candid.errors import DataError
from candid.temporary import TemporaryFolder


@dataclass(frozen=True)
class PublicCopy:
    """A copy of a public data set.

    Attributes:
        public_set: its entry in the registry.
        settings: keys of ``DataConfig`` that prepare it.
        rows: rows of the complete file, or None where it is not known.
        missing: tables of items or users that are not beside the interactions.
    """

    public_set: PublicSet
    settings: dict[str, Any]
    rows: int | None
    missing: tuple[str, ...]
    _folder: TemporaryFolder | None = field(default=None, repr=False)


def find_public_copy(name: str, source: Path | str) -> PublicCopy:
    """Find the files of a public data set in a copy that the user downloaded.

    Files of a zip archive are extracted into a temporary folder, which exists as long as the
    result.

    Args:
        name: key of ``PUBLIC_SETS``.
        source: the folder, the zip archive, or the file with the interactions.

    Raises:
        UnknownNameError: there is no such set.
        DataError: the copy has none of its files, or several of them, or is a damaged archive.
        ArtifactError: there is no space for the files of an archive.

    Example:
        >>> copy = find_public_copy("ml-1m", "ml-1m.zip")  # doctest: +SKIP
        >>> prepare_folder(DataConfig(**copy.settings), "data/ml-1m")  # doctest: +SKIP
    """
    public_set: PublicSet = lookup(PUBLIC_SETS, "public data set", name)
    source, folder = Path(source), None
    if source.is_file() and zipfile.is_zipfile(source):
        folder = _extracted(public_set, source)
        found = _matches(public_set, folder.path.rglob("*"))
    elif source.is_dir():
        found = _matches(public_set, source.rglob("*"))
    elif source.exists():
        found = _matches(public_set, [source])
    else:
        raise DataError(f"{source} does not exist; check the path")
    if not found:
        raise DataError(
            f"{source} has none of the files of {public_set.title}; download {public_set.download} "
            f"from {public_set.url}, and name the folder, the zip archive or the file"
        )
    if len(found) > 1:
        names = ", ".join(str(path) for path, _ in found[:3])
        raise DataError(
            f"{source} has several files of {public_set.title} ({names}); name one of them"
        )
    return _copy(public_set, *found[0], folder)


def _matches(public_set: PublicSet, paths: Iterable[Path]) -> list[tuple[Path, RawFiles]]:
    """Return the files with interactions, each with the first form that it matches."""
    found = []
    for path in sorted(paths):
        form = _form_of(public_set, path.name)
        if form is not None and path.is_file():
            found.append((path, form))
    return found


def _form_of(public_set: PublicSet, name: str) -> RawFiles | None:
    forms = (one for one in public_set.files if fnmatch.fnmatchcase(name, one.pattern))
    return next(forms, None)


def _copy(
    public_set: PublicSet, path: Path, form: RawFiles, folder: TemporaryFolder | None
) -> PublicCopy:
    settings: dict[str, Any] = {"interactions": str(path), **form.settings}
    if form.query is not None:
        quoted = "'" + str(path).replace("'", "''") + "'"
        settings |= {"interactions": "duckdb://", "query": form.query.format(path=quoted)}
    settings["split"] = dict(public_set.split)
    missing = []
    for key, table in (("items", form.items), ("users", form.users)):
        if table is not None and (path.parent / table[0]).is_file():
            settings[key] = {"path": str(path.parent / table[0]), **table[1]}
        elif table is not None:
            missing.append(table[0])
    return PublicCopy(public_set, settings, form.rows, tuple(missing), folder)


def _extracted(public_set: PublicSet, archive: Path) -> TemporaryFolder:
    """Extract the files of a set from a zip archive."""
    folder = reading_folder()
    try:
        with zipfile.ZipFile(archive) as file:
            for member in _members(public_set, file.namelist()):
                file.extract(member, folder.path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{archive} cannot be read as a zip archive ({error}); download it again"
        ) from error
    except OSError as error:
        raise no_space(folder.path, error) from error
    return folder


def _members(public_set: PublicSet, names: Iterable[str]) -> Iterator[str]:
    tables = {table[0] for form in public_set.files for table in (form.items, form.users) if table}
    for name in names:
        base = PurePosixPath(name).name
        is_hidden = any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
        if not is_hidden and (base in tables or _form_of(public_set, base) is not None):
            yield name
