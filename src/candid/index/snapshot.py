"""Snapshots: an index with the source ids of its items, open for searches and changes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.index.live import LiveIndex
from candid.index.protocol import Index, IndexConfig
from candid.index.source_ids import SourceId, SourceIds


@dataclass(frozen=True)
class Snapshot:
    """An index with the source ids of its items, open for searches and changes.

    Any thread may search ``index`` and look up ``source_ids`` while others call ``put``,
    ``delete`` and ``save_changes``.

    Attributes:
        folder: it was opened from; None for an index built in memory.
        token: changes with every write; snapshots with the same token are equal.
        config: of the index.
        fingerprint: of the model whose vectors it holds.
        index: searches.
        source_ids: of its items, deleted ones included.
        measured: recall, queries per second, memory and similar; empty if not measured.
        manifest: the content of ``index.json``.
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
        """Add items, or replace the vectors of existing ones.

        Args:
            source_ids: of n items, distinct.
            vectors: [n, D] float32.

        Returns:
            Their item ids, [n] int64.

        Raises:
            DataError: a source id has another type than those of the index.
            ConfigError: an item is given twice, or vectors of another number or width.
            ArtifactError: a vector is not finite.
        """
        if len(set(source_ids)) != len(source_ids) or len(source_ids) != len(vectors):
            raise ConfigError(
                f"items must be distinct, with one vector each: got {len(source_ids)} items and "
                f"{len(vectors)} vectors"
            )
        with self._lock:
            item_ids = self.source_ids.item_ids(source_ids)
            is_new = item_ids < 0
            first = len(self.source_ids)
            item_ids[is_new] = np.arange(first, first + int(is_new.sum()))
            # A search that returns a new item must find its source id.
            self.index.put(
                torch.from_numpy(item_ids),
                vectors,
                before=lambda: self.source_ids.add(
                    [source_ids[i] for i in is_new.nonzero()[0].tolist()]
                ),
            )
        return item_ids

    def delete(self, source_ids: Sequence[SourceId]) -> npt.NDArray[np.bool_]:
        """Delete items.

        Args:
            source_ids: of n items.

        Returns:
            Whether each of them was live, [n] bool.

        Raises:
            DataError: a source id has another type than those of the index.
        """
        with self._lock:
            item_ids = self.source_ids.item_ids(source_ids)
            was_live = item_ids >= 0
            known = torch.from_numpy(item_ids[was_live])
            was_live[was_live] = self.index.is_live(known).cpu().numpy()
            self.index.delete(known)
        return was_live


def snapshot_in_memory(
    index: Index,
    item_vectors: Tensor,
    source_ids: pl.Series,
    *,
    config: IndexConfig,
    fingerprint: str,
) -> Snapshot:
    """Return a snapshot without files, to search and to change like one from disk.

    Args:
        index: the result of ``config.build(item_vectors)``.
        item_vectors: [V, D] float32.
        source_ids: of the V items.
        config: of the index.
        fingerprint: of the model whose vectors these are.

    Raises:
        ConfigError: the number of source ids differs from the number of items.
    """
    live, ids = LiveIndex(index, item_vectors), SourceIds(source_ids)
    check_source_ids(live, ids)
    return Snapshot(None, "", config, fingerprint, live, ids)


def check_source_ids(index: LiveIndex, ids: SourceIds) -> None:
    """Refuse another number of source ids than of items.

    Args:
        index: over V items, and those added later.
        ids: of them.

    Raises:
        ConfigError: the numbers differ.
    """
    if len(ids) != index.num_items or len(ids.built) != len(index.item_vectors):
        raise ConfigError(
            f"each item needs one source id: got {len(ids)} for {index.num_items} items"
        )
