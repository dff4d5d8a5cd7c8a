"""Snapshots: an index in a folder that is always complete and is mapped into memory.

index.json                 config, fingerprint of the model, sizes, measurements, list of files
vectors-TOKEN.npy          [V, D] float32
source_ids-TOKEN.parquet   source id of each of the V items
index-TOKEN.bin            file of an index with ``has_file``
changes-TOKEN.npz          items added, updated and deleted later
added-TOKEN.parquet        source ids of the added items
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pydantic
import torch
from torch import Tensor

from candid.checksums import FileChecks, read_error, verification
from candid.component import type_name
from candid.errors import ArtifactError, ConfigError
from candid.index.changes import read_changes, write_changes
from candid.index.live import LiveIndex
from candid.index.protocol import Index, IndexComponent, IndexConfig
from candid.index.registry import INDEXES
from candid.index.snapshot import Snapshot, check_source_ids
from candid.index.snapshot_files import (
    MANIFEST,
    REBUILD,
    SnapshotWriter,
    read_manifest,
    writing,
)
from candid.index.source_ids import SourceIds
from candid.version import __version__

ATTEMPTS = 20
"""Attempts to open a snapshot that other processes keep replacing."""
LIBRARIES = ("torch", "numpy", "faiss-cpu", "usearch")


class _Header(pydantic.BaseModel):
    """The part of ``index.json`` that pydantic parses."""

    index: IndexComponent


def write_snapshot(
    folder: Path | str,
    index: Index | LiveIndex,
    item_vectors: Tensor,
    source_ids: pl.Series | SourceIds,
    *,
    config: IndexConfig,
    fingerprint: str,
    measured: Mapping[str, Any] | None = None,
) -> None:
    """Write an index; it replaces an older snapshot in ``folder`` atomically.

    Args:
        folder: new, empty, or of an older snapshot.
        index: the result of ``config.build(item_vectors)``, or a ``LiveIndex`` over it.
        item_vectors: [V, D] float32.
        source_ids: of the V items, and of the items added to a ``LiveIndex``.
        config: of the index.
        fingerprint: of the model whose vectors these are.
        measured: plain JSON values to store with it.

    Raises:
        ArtifactError: a write failed.
        ConfigError: the folder contains other files, or the number of source ids differs from
            the number of items.

    Example:
        >>> config = ExactIndex.Config()  # doctest: +SKIP
        >>> write_snapshot(  # doctest: +SKIP
        ...     "films-index", config.build(vectors), vectors, source_ids,
        ...     config=config, fingerprint="",
        ... )
    """
    folder = Path(folder)
    live = index if isinstance(index, LiveIndex) else LiveIndex(index, item_vectors)
    ids = source_ids if isinstance(source_ids, SourceIds) else SourceIds(source_ids)
    check_source_ids(live, ids)
    with writing(folder) as writer:
        vectors = np.ascontiguousarray(item_vectors.detach().float().cpu().numpy())
        writer.array("vectors", vectors)
        if live.built.has_file:
            writer.index("index", live.built)
        _publish(writer, live, ids, config, fingerprint, measured)


def publish_snapshot(
    writer: SnapshotWriter,
    index: Index,
    item_vectors: Tensor,
    source_ids: pl.Series,
    *,
    config: IndexConfig,
    fingerprint: str,
    measured: Mapping[str, Any] | None = None,
) -> None:
    """Complete a snapshot whose vectors, and file of an index with ``has_file``, are written.

    Args:
        writer: of ``writing``; it lists both files.
        index: over the vectors, opened from its file.
        item_vectors: [V, D] float32, mapped from their file.
        source_ids: of the V items.
        config: of the index.
        fingerprint: of the model whose vectors these are.
        measured: plain JSON values to store with it.

    Raises:
        ConfigError: the number of source ids differs from the number of items.
    """
    live, ids = LiveIndex(index, item_vectors), SourceIds(source_ids)
    check_source_ids(live, ids)
    _publish(writer, live, ids, config, fingerprint, measured)


def _publish(
    writer: SnapshotWriter,
    live: LiveIndex,
    ids: SourceIds,
    config: IndexConfig,
    fingerprint: str,
    measured: Mapping[str, Any] | None,
) -> None:
    writer.table("source_ids", ids.built)
    write_changes(writer, live.changes, ids)
    writer.publish(_metadata(live, config, fingerprint, dict(measured or {})))


def save_changes(snapshot: Snapshot) -> str:
    """Write the changes of a snapshot to its folder; other files are not written again.

    Returns:
        The new token.

    Raises:
        ArtifactError: another index has replaced it in the folder, or a write failed.
        ConfigError: it was built in memory and has no folder.
    """
    folder = snapshot.folder
    if folder is None:
        raise ConfigError("this index was built in memory; write it with write_snapshot first")
    with snapshot._lock, writing(folder) as writer:
        manifest = read_manifest(folder)
        for name in ("vectors", "source_ids", "index"):
            if manifest["files"].get(name) != snapshot.manifest["files"].get(name):
                raise ArtifactError(
                    f"another index has replaced the one in {folder}; open it and repeat the "
                    "changes"
                )
            if name in manifest["files"]:
                writer.keep(name, manifest["files"][name])
        write_changes(writer, snapshot.index.changes, snapshot.source_ids)
        return writer.publish(
            _metadata(snapshot.index, snapshot.config, snapshot.fingerprint, snapshot.measured)
        )


def open_snapshot(
    folder: Path | str, *, fingerprint: str | None = None, verify: bool = True
) -> Snapshot:
    """Open a snapshot; its vectors are mapped into memory.

    Args:
        folder: of ``write_snapshot``.
        fingerprint: of the model that encodes queries; None: do not compare.
        verify: whether to compare the checksums of all files, which are then read once, about
            1.5 GB a second and thread; without them a damaged file gives wrong answers, or ends
            the process.

    Raises:
        ArtifactError: not a snapshot, a damaged one, or one of another model.
        ConfigError: the library of this index is not installed.

    Example:
        >>> snapshot = open_snapshot("films-index")  # doctest: +SKIP
        >>> snapshot.index.search(query, k=10).item_ids  # doctest: +SKIP
    """
    with verification(verify):
        return _open_complete(Path(folder), fingerprint)


def _open_complete(folder: Path, fingerprint: str | None) -> Snapshot:
    for attempt in range(ATTEMPTS):
        manifest = read_manifest(folder)
        if fingerprint is not None and manifest["fingerprint"] != fingerprint:
            raise ArtifactError(
                f"{folder} is the index of another model, or of an earlier state of this one; "
                f"{REBUILD}"
            )
        try:
            return _open(folder, manifest)
        except ArtifactError:
            # Try again if a writer replaced the snapshot between the two reads.
            if attempt == ATTEMPTS - 1 or read_manifest(folder)["token"] == manifest["token"]:
                raise
    raise AssertionError("unreachable")


def snapshot_token(folder: Path | str) -> str:
    """Return the current token of the snapshot in ``folder``, to detect a change.

    Raises:
        ArtifactError: not a snapshot, or a damaged one.
    """
    return str(read_manifest(Path(folder))["token"])


def _open(folder: Path, manifest: dict[str, Any]) -> Snapshot:
    files = manifest["files"]
    checks = FileChecks({folder / entry["name"]: entry for entry in files.values()}, REBUILD)
    # Libraries of indexes may crash on a damaged file.
    checks.wait()
    try:
        config = _Header.model_validate({"index": manifest["index"]}).index
    except (ConfigError, pydantic.ValidationError) as error:
        raise ArtifactError(
            f"{folder / MANIFEST} is damaged or of another version of candid; {REBUILD}"
        ) from error
    path = {name: folder / entry["name"] for name, entry in files.items()}
    try:
        mapped = np.load(path["vectors"], mmap_mode="c", allow_pickle=False)
        built_ids = pl.read_parquet(path["source_ids"], glob=False)["source_id"]
        added_ids = None
        if "added" in path:
            added_ids = pl.read_parquet(path["added"], glob=False)["source_id"]
    except OSError as error:
        raise read_error(folder, error) from error
    except (ValueError, KeyError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"a file of {folder} is damaged; {REBUILD}") from error
    vectors = torch.from_numpy(mapped)
    if vectors.dtype != torch.float32 or list(vectors.shape) != [
        manifest["num_items"],
        manifest["dim"],
    ]:
        raise ArtifactError(f"{path['vectors']} does not have the shape in {MANIFEST}; {REBUILD}")
    source_ids = SourceIds(built_ids, added_ids)
    changes = read_changes(path["changes"], vectors) if "changes" in path else None
    if len(built_ids) != len(vectors) or (
        len(source_ids) != (len(vectors) if changes is None else changes.num_items)
    ):
        raise ArtifactError(f"{path['source_ids']} belongs to other items; {REBUILD}")
    built = config.open(vectors, path["index"]) if "index" in path else config.build(vectors)
    if built.num_items != len(vectors):
        raise ArtifactError(f"{path['index']} belongs to other items; {REBUILD}")
    return Snapshot(
        folder=folder,
        token=manifest["token"],
        config=config,
        fingerprint=manifest["fingerprint"],
        index=LiveIndex(built, vectors, changes=changes),
        source_ids=source_ids,
        measured=manifest["measured"],
        manifest=manifest,
    )


def _metadata(
    index: LiveIndex, config: IndexConfig, fingerprint: str, measured: dict[str, Any]
) -> dict[str, Any]:
    return {
        "index": {"type": type_name(INDEXES, "index", config), **config.model_dump(mode="json")},
        "fingerprint": fingerprint,
        "num_items": len(index.item_vectors),
        "dim": index.item_vectors.shape[1],
        "dtype": "float32",
        "num_live": index.num_live,
        "measured": measured,
        "versions": {"candid": __version__} | _versions(),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
