"""The folder of an export: written completely, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from candid.atomic import atomic_folder, sync
from candid.checksums import check_entries, check_seal, file_entry, read_error, write_sealed_json
from candid.component import lookup
from candid.errors import ArtifactError, ConfigError
from candid.export.context import ExportContext
from candid.export.export_input import ExportInput
from candid.export.registry import FORMATS
from candid.inference import StageProgress
from candid.json_text import read_json
from candid.version import __version__

EXPORT = "export.json"
"""File that describes the content of the folder and its model."""
KIND = "candid-export"
VERSION = 1
"""Version of ``export.json``."""
EXPORT_AGAIN = "export the model again"


def export(
    export_input: ExportInput,
    out: Path | str,
    formats: Sequence[str] = ("parquet",),
    *,
    vector_column: str = "vector",
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Write a model into a folder, in one or several formats, each in its own subfolder.

    Args:
        export_input: the model, such as ``ExportInput.from_run(run)``.
        out: the folder, new or empty.
        formats: names of ``FORMATS``.
        vector_column: name of the column or field that holds the vectors of items.
        progress: called with (stage, items done, total items).

    Returns:
        The content of ``export.json``.

    Raises:
        UnknownNameError: an unknown format.
        ConfigError: ``out`` is not empty, a package is not installed, or a format cannot hold
            this model.
        ArtifactError: vectors that are not finite, a graph whose vectors differ from the
            model's own, or a write that failed.

    Example:
        >>> run = candid.load_run("runs/films")  # doctest: +SKIP
        >>> export(ExportInput.from_run(run), "films-export", ["parquet"])  # doctest: +SKIP
    """
    out = Path(out)
    writers = {name: lookup(FORMATS, "format", name) for name in formats}
    _check_empty(out)
    context = ExportContext(export_input, vector_column=vector_column, progress=progress)
    with atomic_folder(out) as temporary:
        descriptions = {}
        for name, write in writers.items():
            (temporary / name).mkdir()
            descriptions[name] = write(context, temporary / name)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        document = write_sealed_json(
            temporary / EXPORT,
            {
                "kind": KIND,
                "version": VERSION,
                "candid": __version__,
                **context.metadata,
                "formats": descriptions,
                "files": {str(path.relative_to(temporary)): file_entry(path) for path in files},
            },
        )
        for path in temporary.rglob("*"):
            sync(path)
    return document


def read_export(folder: Path | str) -> dict[str, Any]:
    """Read ``export.json``, and compare it with its checksum.

    Raises:
        ArtifactError: missing, damaged or of another version.
    """
    path = Path(folder) / EXPORT
    try:
        document: dict[str, Any] = read_json(path)
        kind, version = document["kind"], document["version"]
        check_entries(document["files"])
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder} is not an export: it has no {EXPORT}") from None
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path} is damaged; {EXPORT_AGAIN}") from None
    if kind != KIND or version != VERSION:
        raise ArtifactError(
            f"{path} has kind {kind!r} and version {version!r}, this candid reads {KIND!r} of "
            f"version {VERSION}; {EXPORT_AGAIN}"
        )
    check_seal(path, document, EXPORT_AGAIN)
    return document


def _check_empty(out: Path) -> None:
    """Refuse a folder with content.

    Raises:
        ConfigError: it has content, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        reason = "is not empty" if out.is_dir() else "is a file"
        raise ConfigError(f"{out} {reason}; name a new or empty folder with --out")
