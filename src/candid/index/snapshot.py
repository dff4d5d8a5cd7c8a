"""An index on disk: one folder, whole at every moment, opened by mapping it into memory.

index.json                 config, fingerprint of the model, sizes, what was measured, files
vectors-TOKEN.npy          [V, D] float32
source_ids-TOKEN.parquet   source id of each of the V items
index-TOKEN.bin            what the index itself wrote, for a ``StoredIndex``
changes-TOKEN.npz          items added, updated and deleted since
added-TOKEN.parquet        source ids of the added ones
"""

from __future__ import annotations

import importlib.metadata
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pydantic
import torch
from torch import Tensor

from candid.component import type_name
from candid.errors import ArtifactError, ConfigError
from candid.index.live import Changes, LiveIndex
from candid.index.protocol import Index, IndexComponent, IndexConfig, StoredIndex
from candid.index.snapshot_files import (
    AGAIN,
    MANIFEST,
    SnapshotWriter,
    check_file,
    read_manifest,
    writing,
)
from candid.index.source_ids import SourceId, SourceIds

ATTEMPTS = 20
"""To open a snapshot that others replace again and again."""
LIBRARIES = ("torch", "numpy", "faiss-cpu", "usearch")


@dataclass(frozen=True)
class Snapshot:
    """An index with the source ids of its items, ready to search and to change.

    Searching ``index`` and looking up ``source_ids`` is safe from any thread while others call
    ``put``, ``delete`` and ``save_changes``.

    Attributes:
        folder: it was opened from, or None for one that was built in memory.
        token: changes with every write; two snapshots with one token are the same.
        config: of the index.
        fingerprint: of the model whose vectors it holds.
        index: searches.
        source_ids: of its items, deleted ones included.
        measured: recall, queries a second, memory and the like; empty where nobody measured.
        manifest: all that ``index.json`` says.
    """

    folder: Path | None
    token: str
    config: IndexConfig
    fingerprint: str
    index: LiveIndex
    source_ids: SourceIds
    measured: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def put(self, source_ids: Sequence[SourceId], vectors: Tensor) -> npt.NDArray[np.int64]:
        """Add items, or give those that are there already other vectors.

        Args:
            source_ids: of n items, distinct.
            vectors: [n, D] float32.

        Returns:
            Their item ids, [n] int64.

        Raises:
            DataError: a source id is not of the type that the others have.
            ConfigError: an item is given twice, or vectors of another number or width.
            ArtifactError: a vector is not finite.
        """
        if len(set(source_ids)) != len(source_ids) or len(source_ids) != len(vectors):
            raise ConfigError(
                f"give each of the {len(source_ids)} items once and one vector for each, not "
                f"{len(vectors)}"
            )
        with self._lock:
            item_ids = self.source_ids.item_ids(source_ids)
            is_new = item_ids < 0
            first = len(self.source_ids)
            item_ids[is_new] = np.arange(first, first + int(is_new.sum()))
            # A search that finds a new item must be able to name it.
            self.index.put(
                torch.from_numpy(item_ids),
                vectors,
                before=lambda: self.source_ids.add(
                    [source_ids[i] for i in is_new.nonzero()[0].tolist()]
                ),
            )
        return item_ids

    def delete(self, source_ids: Sequence[SourceId]) -> npt.NDArray[np.bool_]:
        """Find items no more.

        Returns:
            Whether each of them was there, [n] bool.

        Raises:
            DataError: a source id is not of the type that the others have.
        """
        with self._lock:
            item_ids = self.source_ids.item_ids(source_ids)
            was_there = item_ids >= 0
            known = torch.from_numpy(item_ids[was_there])
            was_there[was_there] = self.index.is_live(known).cpu().numpy()
            self.index.delete(known)
        return was_there


class _Header(pydantic.BaseModel):
    """The part of ``index.json`` that needs parsing."""

    index: IndexComponent


def snapshot_in_memory(
    index: Index,
    item_vectors: Tensor,
    source_ids: pl.Series,
    *,
    config: IndexConfig,
    fingerprint: str,
) -> Snapshot:
    """An index that nobody wrote, to search and to change like one from disk.

    Args:
        index: as ``config.build(item_vectors)`` made it.
        item_vectors: [V, D] float32.
        source_ids: of the V items.
        config: of the index.
        fingerprint: of the model whose vectors these are.

    Raises:
        ConfigError: not one source id for each item.
    """
    live, names = LiveIndex(index, item_vectors), SourceIds(source_ids)
    _check_names(live, names)
    return Snapshot(None, "", config, fingerprint, live, names)


def write_snapshot(
    folder: Path,
    index: Index,
    item_vectors: Tensor,
    source_ids: pl.Series | SourceIds,
    *,
    config: IndexConfig,
    fingerprint: str,
    measured: Mapping[str, Any] | None = None,
) -> None:
    """Write an index; an older snapshot in ``folder`` is replaced in one step.

    Args:
        folder: new, empty, or of an older snapshot.
        index: as ``config.build(item_vectors)`` made it, or a ``LiveIndex`` over it.
        item_vectors: [V, D] float32.
        source_ids: of the V items; of a ``LiveIndex`` those of its added items too.
        config: of the index.
        fingerprint: of the model whose vectors these are.
        measured: plain JSON values to keep beside it.

    Raises:
        ArtifactError: the operating system refused, or another process is writing there.
        ConfigError: the folder holds other files, or not one source id for each item.
    """
    live = index if isinstance(index, LiveIndex) else LiveIndex(index, item_vectors)
    names = source_ids if isinstance(source_ids, SourceIds) else SourceIds(source_ids)
    _check_names(live, names)
    with writing(folder) as writer:
        vectors = np.ascontiguousarray(item_vectors.detach().float().cpu().numpy())
        writer.array("vectors", vectors)
        writer.table("source_ids", names.built)
        if isinstance(live.built, StoredIndex):
            writer.own("index", live.built)
        _write_changes(writer, live.changes, names)
        writer.publish(_facts(live, config, fingerprint, dict(measured or {})))


def save_changes(snapshot: Snapshot) -> str:
    """Bring items added, updated and deleted since to the disk; the rest is not written again.

    Returns:
        The token of what is there now.

    Raises:
        ArtifactError: another snapshot took its place meanwhile, or the write was refused.
        ConfigError: it was built in memory and has no folder.
    """
    folder = snapshot.folder
    if folder is None:
        raise ConfigError("this index was built in memory: write it with write_snapshot first")
    with snapshot._lock, writing(folder) as writer:
        there = read_manifest(folder)
        for name in ("vectors", "source_ids", "index"):
            if there["files"].get(name) != snapshot.manifest["files"].get(name):
                raise ArtifactError(
                    f"{folder} holds another index by now, to which these changes do "
                    "not belong: open it and make them again"
                )
            if name in there["files"]:
                writer.keep(name, there["files"][name])
        _write_changes(writer, snapshot.index.changes, snapshot.source_ids)
        facts = _facts(snapshot.index, snapshot.config, snapshot.fingerprint, snapshot.measured)
        return writer.publish(facts)


def open_snapshot(
    folder: Path, *, fingerprint: str | None = None, verify: bool = False
) -> Snapshot:
    """Open a snapshot; vectors are mapped, not read.

    Args:
        folder: of ``write_snapshot``.
        fingerprint: of the model that will ask; None: whatever it is.
        verify: compare the checksums of all files, not of the small ones only.

    Raises:
        ArtifactError: no snapshot, a damaged one, or of another model.
        ConfigError: the library of this index is not installed.
    """
    for attempt in range(ATTEMPTS):
        manifest = read_manifest(folder)
        if fingerprint is not None and manifest["fingerprint"] != fingerprint:
            raise ArtifactError(
                f"{folder} is the index of another model (or of this one before it was trained "
                f"further): {AGAIN}"
            )
        try:
            return _open(folder, manifest, verify)
        except ArtifactError:
            # A writer may have replaced it between the two reads: then it is another one now.
            if attempt == ATTEMPTS - 1 or read_manifest(folder)["token"] == manifest["token"]:
                raise
    raise AssertionError("unreachable")


def snapshot_token(folder: Path) -> str:
    """The token of the snapshot that is in ``folder`` now, to see whether it changed.

    Raises:
        ArtifactError: no snapshot, or a damaged one.
    """
    return str(read_manifest(folder)["token"])


def _open(folder: Path, manifest: dict[str, Any], verify: bool) -> Snapshot:
    files = manifest["files"]
    for entry in files.values():
        check_file(folder / entry["name"], entry, verify)
    try:
        config = _Header.model_validate({"index": manifest["index"]}).index
    except (ConfigError, pydantic.ValidationError) as error:
        raise ArtifactError(
            f"{folder / MANIFEST} is damaged or of another version of candid; {AGAIN}"
        ) from error
    path = {name: folder / entry["name"] for name, entry in files.items()}
    try:
        mapped = np.load(path["vectors"], mmap_mode="c", allow_pickle=False)
        built_ids = pl.read_parquet(path["source_ids"], glob=False)["source_id"]
        added_ids = None
        if "added" in path:
            added_ids = pl.read_parquet(path["added"], glob=False)["source_id"]
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"a file of {folder} is damaged; {AGAIN}") from error
    vectors = torch.from_numpy(mapped)
    if vectors.dtype != torch.float32 or list(vectors.shape) != [
        manifest["num_items"],
        manifest["dim"],
    ]:
        raise ArtifactError(f"{path['vectors']} is not of the shape it should be; {AGAIN}")
    source_ids = SourceIds(built_ids, added_ids)
    changes = _read_changes(path["changes"], vectors) if "changes" in path else None
    if len(built_ids) != len(vectors) or (
        len(source_ids) != (len(vectors) if changes is None else changes.num_items)
    ):
        raise ArtifactError(f"{path['source_ids']} is not of these items; {AGAIN}")
    built = config.open(vectors, path["index"]) if "index" in path else config.build(vectors)
    if built.num_items != len(vectors):
        raise ArtifactError(f"{path['index']} is not of these items; {AGAIN}")
    return Snapshot(
        folder=folder,
        token=manifest["token"],
        config=config,
        fingerprint=manifest["fingerprint"],
        index=LiveIndex(built, vectors, changes),
        source_ids=source_ids,
        measured=manifest["measured"],
        manifest=manifest,
    )


def _check_names(index: LiveIndex, names: SourceIds) -> None:
    if len(names) != index.num_items or len(names.built) != len(index.item_vectors):
        raise ConfigError(
            f"there are {len(names)} source ids for {index.num_items} items: give each item one"
        )


def _facts(
    index: LiveIndex, config: IndexConfig, fingerprint: str, measured: dict[str, Any]
) -> dict[str, Any]:
    import candid.index

    return {
        "index": {
            "type": type_name(candid.index.INDEXES, "index", config),
            **config.model_dump(mode="json"),
        },
        "fingerprint": fingerprint,
        "num_items": len(index.item_vectors),
        "dim": index.item_vectors.shape[1],
        "dtype": "float32",
        "num_live": index.num_live,
        "measured": measured,
        "versions": {"candid": candid.__version__} | _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _write_changes(writer: SnapshotWriter, changes: Changes, source_ids: SourceIds) -> None:
    if changes.num_rows == 0 and changes.num_hidden == 0:
        return
    kept = changes.is_alive
    content = io.BytesIO()
    np.savez(
        content,
        num_items=np.int64(changes.num_items),
        hidden=changes.hidden.nonzero().squeeze(1).cpu().numpy(),
        item_ids=changes.item_ids[kept].cpu().numpy(),
        vectors=changes.vectors[kept].cpu().numpy(),
    )
    writer.bytes("changes", ".npz", content.getbuffer())
    if changes.num_items > len(changes.hidden):
        writer.table("added", source_ids.added)


def _read_changes(file: Path, item_vectors: Tensor) -> Changes:
    try:
        with np.load(file, allow_pickle=False) as content:
            num_items = int(content["num_items"])
            hidden_ids, item_ids, vectors = (
                torch.from_numpy(content[name]) for name in ("hidden", "item_ids", "vectors")
            )
        hidden = torch.zeros(len(item_vectors), dtype=torch.bool)
        hidden[hidden_ids] = True
        fits = vectors.shape == (len(item_ids), item_vectors.shape[1])
        if not fits or (len(item_ids) and not 0 <= int(item_ids.min()) <= int(item_ids.max())):
            raise ValueError("rows and ids do not fit")
        if len(item_ids) and int(item_ids.max()) >= num_items:
            raise ValueError("an id is not in use")
    except (OSError, ValueError, KeyError, IndexError, EOFError, TypeError) as error:
        raise ArtifactError(f"{file} is damaged; {AGAIN}") from error
    return Changes(
        num_items=num_items,
        hidden=hidden,
        num_hidden=len(hidden_ids),
        item_ids=item_ids,
        vectors=vectors.float(),
        is_alive=torch.ones(len(item_ids), dtype=torch.bool),
    )
