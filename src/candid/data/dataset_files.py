"""Files of a prepared dataset: npy arrays, parquet tables and one manifest."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.atomic import write_file, write_parts
from candid.checksums import FileChecks, check_entries, check_seal, read_error, sealed
from candid.data.split_config import WINDOWED
from candid.errors import ArtifactError, DataError
from candid.json_text import read_json


@dataclass(frozen=True)
class ArrayStream:
    """An array of one dimension that is computed in chunks, each time that it is read.

    Attributes:
        length: number of values.
        dtype: type of the values.
        chunks: yields the values in order; they are converted to ``dtype``.
    """

    length: int
    dtype: np.dtype[Any]
    chunks: Callable[[], Iterable[npt.NDArray[Any]]]

    def __len__(self) -> int:
        return self.length

    def load(self) -> npt.NDArray[Any]:
        """Return the whole array; one chunk of the right type is not copied."""
        chunks = list(self.chunks())
        return np.asarray(chunks[0] if len(chunks) == 1 else np.concatenate(chunks), self.dtype)


Arrays = Mapping[str, npt.NDArray[Any] | ArrayStream | None]
Tables = Mapping[str, pl.DataFrame]

SCHEMA_VERSION = 3
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
    "retired_items": np.bool_,
    "order_ranks": np.int32,
}
ALIGNED = ("timestamps", "weights", "event_types", "order_ranks")
"""Optional arrays with one entry per interaction."""
OPTIONAL = (*ALIGNED, "negative_ids", "negative_offsets", "retired_items")
"""Arrays that a dataset may lack."""
TABLES = ("users", "items")
MAX_IDS = int(np.iinfo(ARRAYS["item_ids"]).max)
"""Users, and items, that a dataset holds at most: 2,147,483,647, as ids have 32 bits."""
PREPARE_AGAIN = "prepare again"
_HASHED_ROWS = 10_000


def check_num_ids(count: int, names: str, origin: str) -> None:
    """Refuse more users or items than ids can number.

    Args:
        count: of users or of items.
        names: "users" or "items".
        origin: what the message calls their source.

    Raises:
        DataError: there are more than ``MAX_IDS``.
    """
    if count > MAX_IDS:
        raise DataError(
            f"there are {count:,} {names} in {origin}, but a dataset holds at most {MAX_IDS:,}; "
            "leave some out, or map several to one id"
        )


def content_fingerprint(arrays: Arrays, tables: Tables) -> str:
    """Hash the content (ids, order, roles, tables), independent of its source files.

    Args:
        arrays: by the names of ``ARRAYS``; None or missing: the dataset lacks it.
        tables: by the names of ``TABLES``.
    """
    digest = hashlib.sha256()
    for name, dtype in ARRAYS.items():
        array = arrays.get(name)
        if array is not None:
            digest.update(name.encode())
            for chunk in _buffers(array, dtype):
                digest.update(chunk)
    for name in TABLES:
        digest.update(f"{name} {tables[name].schema}".encode())
        # In slices: a wide table of embeddings takes many times its size as text.
        for rows in tables[name].iter_slices(_HASHED_ROWS):
            digest.update(rows.write_ndjson().encode())
    return digest.hexdigest()


def write_dataset_files(
    folder: Path, arrays: Arrays, tables: Tables, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write all files into an empty ``folder`` and return the manifest.

    Args:
        folder: to write, from ``candid.atomic.atomic_folder``.
        arrays: by the names of ``ARRAYS``; None or missing: the dataset lacks it.
        tables: by the names of ``TABLES``.
        facts: content of the manifest besides kind, schema version and files; with the fingerprint.

    Raises:
        DataError: there are more than ``MAX_IDS`` users or items.
    """
    for name in TABLES:
        check_num_ids(tables[name].height, name, "the data")
    files: dict[str, dict[str, Any]] = {}
    for name, dtype in ARRAYS.items():
        array = arrays.get(name)
        if array is None:
            continue
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        shape = {"descr": descr, "fortran_order": False, "shape": (len(array),)}
        np.lib.format.write_array_header_1_0(header, shape)
        parts = itertools.chain([header.getbuffer()], _buffers(array, dtype))
        size, checksum = write_parts(folder / f"{name}.npy", parts)
        files[f"{name}.npy"] = {"bytes": size, "sha256": checksum}
    for name in TABLES:
        content = io.BytesIO()
        tables[name].write_parquet(content)
        size, checksum = write_file(folder / f"{name}.parquet", content.getbuffer())
        files[f"{name}.parquet"] = {"bytes": size, "sha256": checksum}
    manifest = sealed({**facts, "kind": KIND, "schema_version": SCHEMA_VERSION, "files": files})
    write_file(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False).encode())
    return manifest


def _buffers(array: npt.NDArray[Any] | ArrayStream, dtype: Any) -> Iterator[memoryview]:
    """Yield the bytes of an array in order."""
    chunks = array.chunks() if isinstance(array, ArrayStream) else [array]
    return (np.ascontiguousarray(chunk, dtype=dtype).data for chunk in chunks)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read ``manifest.json`` of a prepared dataset, and compare it with its checksum.

    Raises:
        ArtifactError: not a dataset, one of another schema version, or a damaged manifest.
    """
    if not path.is_dir():
        raise ArtifactError(f"{path} is not a folder with a prepared dataset; run candid prepare")
    try:
        manifest = read_json(path / MANIFEST)
        kind, version = manifest["kind"], manifest["schema_version"]
        is_readable = kind == KIND and version == SCHEMA_VERSION
        if is_readable:
            check_entries(manifest["files"])
        if is_readable and not isinstance(manifest["fingerprint"], str):
            raise TypeError("the fingerprint must be text")
        if is_readable and not set(manifest["target_event_types"]) <= set(manifest["event_types"]):
            raise ValueError("target_event_types must be among event_types")
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} has no {MANIFEST}, so it is not a prepared dataset; run candid prepare"
        ) from None
    except OSError as error:
        raise read_error(path / MANIFEST, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path / MANIFEST} is damaged; prepare again") from error
    if kind != KIND:
        raise ArtifactError(f"{path} is a {kind}, not a prepared dataset; choose another folder")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} is a prepared dataset of version {version}, and this candid reads version "
            f"{SCHEMA_VERSION}; prepare again"
        )
    check_seal(path / MANIFEST, manifest, PREPARE_AGAIN)
    _complete_unit(manifest)
    return dict(manifest)


def _complete_unit(manifest: dict[str, Any]) -> None:
    """Set the unit of windows in time, which earlier versions did not read: interactions."""
    split, config = manifest.get("split"), manifest.get("config")
    stored = config.get("split") if isinstance(config, dict) else None
    if not isinstance(split, dict) or not isinstance(stored, dict):
        return
    if stored.get("kind") in WINDOWED and "unit" not in split:
        split["unit"] = stored["unit"] = "interaction"


def check_files(path: Path, manifest: Mapping[str, Any]) -> FileChecks:
    """Compare the files of a prepared dataset with its manifest, large arrays in the background.

    Raises:
        ArtifactError: a file is missing, has another size, or is small and has another content.
    """
    files = {path / name: entry for name, entry in manifest["files"].items()}
    return FileChecks(files, PREPARE_AGAIN)


def read_earlier(out: Path) -> dict[str, Any] | None:
    """Return the manifest of a complete dataset at ``out``, or None.

    Raises:
        ArtifactError: ``out`` contains anything that candid did not write.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    refusal = f"{out} exists and is not a prepared dataset; choose another folder or remove it"
    try:
        raw = read_json(out / MANIFEST)
        known = {MANIFEST, *raw["files"]} if raw["kind"] == "candid-dataset" else set()
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(refusal) from None
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
    if not known:
        raise ArtifactError(refusal)
    if foreign:
        raise ArtifactError(
            f"{out} contains {foreign[0]!r}, which candid did not write; move it elsewhere"
        )
    try:
        return read_manifest(out)
    except ArtifactError:
        return None
