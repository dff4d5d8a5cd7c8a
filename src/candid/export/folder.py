"""The folder of an export: all of it, or none."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from candid import __version__
from candid.atomic import sync, write_error, write_json
from candid.component import lookup
from candid.errors import ConfigError
from candid.evaluation import StageProgress
from candid.export.material import Material
from candid.export.parts import ExportParts

EXPORT = "export.json"
"""What the folder holds, and of which model."""


def export(
    parts: ExportParts,
    out: Path,
    formats: Sequence[str] = ("parquet",),
    *,
    vector_column: str = "vector",
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Write a model into a folder, in one or several formats, each in a folder of its own.

    Args:
        parts: the run.
        out: the folder, new or empty.
        formats: names of ``FORMATS``.
        vector_column: name of the column or field that holds the vectors of items.
        progress: called with (stage, done, in all).

    Returns:
        What ``export.json`` says.

    Raises:
        UnknownNameError: no such format.
        ConfigError: ``out`` holds something, a package is not installed, or a format cannot
            hold this model.
        ArtifactError: vectors that are not finite, a graph whose vectors are not the model's
            own, or a write that was refused.
    """
    from candid.export import FORMATS

    writers = {name: lookup(FORMATS, "format", name) for name in formats}
    _check_is_free(out)
    material = Material(parts, vector_column, progress)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        written = {}
        for name, write in writers.items():
            (temporary / name).mkdir()
            written[name] = write(material, temporary / name)
        document = {"candid": __version__, **material.facts, "formats": written}
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


def _check_is_free(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        ConfigError: it does, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise ConfigError(f"{out} {what}: name a new or empty folder with --out")
