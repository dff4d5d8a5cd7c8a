"""The folder of an export: written completely, or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from candid.atomic import sync, write_error, write_json
from candid.component import lookup
from candid.errors import ConfigError
from candid.export.context import ExportContext
from candid.export.export_input import ExportInput
from candid.export.registry import FORMATS
from candid.inference import StageProgress
from candid.version import __version__

EXPORT = "export.json"
"""File that describes the content of the folder and its model."""


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
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        descriptions = {}
        for name, write in writers.items():
            (temporary / name).mkdir()
            descriptions[name] = write(context, temporary / name)
        document = {"candid": __version__, **context.metadata, "formats": descriptions}
        write_json(temporary / EXPORT, document)
        for path in temporary.rglob("*"):
            sync(path)
        os.replace(temporary, out)
        sync(out.parent)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return document


def _check_empty(out: Path) -> None:
    """Refuse a folder with content.

    Raises:
        ConfigError: it has content, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        reason = "is not empty" if out.is_dir() else "is a file"
        raise ConfigError(f"{out} {reason}; name a new or empty folder with --out")
