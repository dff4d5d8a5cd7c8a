"""The prepared dataset on disk: memory-mapped npy arrays, parquet tables, one manifest."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.atomic import write_file
from candid.data.dataset import PreparedDataset, Role
from candid.errors import ArtifactError

SCHEMA_VERSION = 2
KIND = "candid-dataset"
MANIFEST = "manifest.json"
ARRAYS = {
    "item_ids": np.int32,
    "user_offsets": np.int64,
    "roles": np.uint8,
    "timestamps": np.int64,
    "weights": np.float32,
    "event_types": np.uint8,
    "negative_ids": np.int32,
    "negative_offsets": np.int64,
}
ALIGNED = ("timestamps", "weights", "event_types")
"""Optional arrays with one entry per interaction."""
OPTIONAL = (*ALIGNED, "negative_ids", "negative_offsets")
TABLES = ("users", "items")
_HASHED_ROWS = 10_000


def fingerprint(dataset: PreparedDataset) -> str:
    """Hash the content (ids, order, roles, tables), independent of its source files."""
    digest = hashlib.sha256()
    for name, dtype in ARRAYS.items():
        array = getattr(dataset, name)
        if array is not None:
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array, dtype=dtype).data)
    for name in TABLES:
        table: pl.DataFrame = getattr(dataset, name)
        digest.update(f"{name} {table.schema}".encode())
        # In slices: a wide table of embeddings takes many times its size as text.
        for rows in table.iter_slices(_HASHED_ROWS):
            digest.update(rows.write_ndjson().encode())
    return digest.hexdigest()


def write_dataset(folder: Path, dataset: PreparedDataset, facts: dict[str, Any]) -> dict[str, Any]:
    """Write all files into an empty ``folder`` and return the manifest.

    Args:
        folder: to write, from ``candid.atomic.atomic_folder``.
        dataset: to write.
        facts: content of the manifest besides files, fingerprint and event types.
    """
    files: dict[str, dict[str, Any]] = {}
    for name, dtype in ARRAYS.items():
        array = getattr(dataset, name)
        if array is None:
            continue
        header = io.BytesIO()
        array = np.ascontiguousarray(array, dtype=dtype)
        np.lib.format.write_array_header_1_0(
            header, np.lib.format.header_data_from_array_1_0(array)
        )
        size, checksum = write_file(folder / f"{name}.npy", header.getbuffer(), array.data)
        files[f"{name}.npy"] = {"bytes": size, "sha256": checksum}
    for name in TABLES:
        content = io.BytesIO()
        getattr(dataset, name).write_parquet(content)
        size, checksum = write_file(folder / f"{name}.parquet", content.getbuffer())
        files[f"{name}.parquet"] = {"bytes": size, "sha256": checksum}
    manifest = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint(dataset),
        "event_types": list(dataset.event_type_names),
        "target_event_types": list(dataset.target_event_types),
        **facts,
        "files": files,
    }
    write_file(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """Read ``manifest.json`` of a prepared dataset and check the sizes of its files.

    Raises:
        ArtifactError: not a dataset, one of another schema version, or a truncated file.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path} is not a folder with a prepared dataset; run candid prepare")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        kind, version = manifest["kind"], manifest["schema_version"]
        is_readable = kind == KIND and version == SCHEMA_VERSION
        files = {n: f["bytes"] for n, f in manifest["files"].items()} if is_readable else {}
        if is_readable and not isinstance(manifest["fingerprint"], str):
            raise TypeError("the fingerprint must be text")
        if is_readable and not set(manifest["target_event_types"]) <= set(manifest["event_types"]):
            raise ValueError("target_event_types must be among event_types")
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} has no {MANIFEST}, so it is not a prepared dataset; run candid prepare"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path / MANIFEST} is damaged; prepare again") from error
    if kind != KIND:
        raise ArtifactError(f"{path} is a {kind}, not a prepared dataset; choose another folder")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} is a prepared dataset of version {version}, and this candid reads version "
            f"{SCHEMA_VERSION}; prepare again"
        )
    for name, expected in files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected:
            fault = "is missing" if size is None else f"has {size:,} bytes, not {expected:,}"
            raise ArtifactError(f"{file} {fault}; prepare again")
    return dict(manifest)


def read_table(path: Path, name: str) -> pl.DataFrame:
    """Read the table ``users`` or ``items`` of a prepared dataset.

    Raises:
        ArtifactError: the file is damaged.
    """
    table: pl.DataFrame = _load(path / f"{name}.parquet")
    return table


def open_dataset(path: Path | str, *, verify: bool = False) -> PreparedDataset:
    """Open a prepared dataset; its arrays are memory-mapped.

    Args:
        path: folder that ``prepare`` wrote.
        verify: also compare the checksum of every file, which reads them completely.

    Raises:
        ArtifactError: not a dataset, of another version, or damaged; the message names the file.

    Example:
        >>> dataset = open_dataset("data/films")  # doctest: +SKIP
        >>> dataset.num_users, dataset.num_items  # doctest: +SKIP
        (6040, 3706)
    """
    path = Path(path)
    manifest = read_manifest(path)
    if verify:
        for name, expected in manifest["files"].items():
            with (path / name).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                    raise ArtifactError(f"{path / name} differs from its checksum; prepare again")
    content: dict[str, Any] = {}
    for name in ARRAYS:
        if name in OPTIONAL and f"{name}.npy" not in manifest["files"]:
            continue
        content[name] = _load(path / f"{name}.npy")
    for name in TABLES:
        content[name] = _load(path / f"{name}.parquet")
    dataset = PreparedDataset(
        **content,
        event_type_names=tuple(manifest["event_types"]),
        target_event_types=tuple(manifest["target_event_types"]),
        manifest=manifest,
        path=path,
    )
    _check_structure(dataset, path)
    return dataset


def _check_structure(dataset: PreparedDataset, path: Path) -> None:
    """Refuse arrays that do not fit together, which would cause reads out of bounds.

    One pass over the item ids and roles, which training and evaluation read anyway.
    """
    num_events, offsets = len(dataset.item_ids), dataset.user_offsets
    aligned = ("roles", *ALIGNED)
    wrong_length = [
        name
        for name in aligned
        if (array := getattr(dataset, name)) is not None and len(array) != num_events
    ]
    is_damaged = {
        "user_offsets": not _is_ragged(dataset.item_ids, offsets, dataset.users.height),
        "item_ids": num_events > 0
        and not 0 <= dataset.item_ids.min() <= dataset.item_ids.max() < dataset.items.height,
        "event_types": dataset.event_types is not None
        and num_events > 0
        and dataset.event_types.max() >= len(dataset.event_type_names),
        "negative_offsets": (dataset.negative_ids is None) != (dataset.negative_offsets is None)
        or (
            dataset.negative_ids is not None
            and dataset.negative_offsets is not None
            and not _is_ragged(dataset.negative_ids, dataset.negative_offsets, num_events)
        ),
        "negative_ids": dataset.negative_ids is not None
        and len(dataset.negative_ids) > 0
        and not 0 <= dataset.negative_ids.min() <= dataset.negative_ids.max() < dataset.num_items,
        "roles": num_events > 0 and dataset.roles.max() > max(Role),
        **dict.fromkeys(wrong_length, True),
    }
    for name, damaged in is_damaged.items():
        if damaged:
            raise ArtifactError(f"{path / name}.npy is damaged; prepare again")


def _is_ragged(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64], num_rows: int) -> bool:
    """Whether offsets [R + 1] divide all values [M] into R rows."""
    return bool(
        len(offsets) == num_rows + 1
        and offsets[0] == 0
        and offsets[-1] == len(values)
        and (offsets[1:] >= offsets[:-1]).all()
    )


def _load(file: Path) -> Any:
    try:
        if file.suffix == ".npy":
            return np.load(file, mmap_mode="r")
        return pl.read_parquet(file, glob=False)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"{file} is damaged; prepare again") from error
