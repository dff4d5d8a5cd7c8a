"""Changes of items since an index was built, and their file in a snapshot."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from candid.errors import ArtifactError
from candid.index.snapshot_files import REBUILD, SnapshotWriter
from candid.index.source_ids import SourceIds


@dataclass(frozen=True)
class Changes:
    """The changes since an index was built; immutable, so that running searches are not disturbed.

    Attributes:
        num_items: ids in use, deleted ones included.
        hidden: [V] bool, built items that are deleted or have a new vector.
        num_hidden: number of hidden items.
        item_ids: [n] int64, the item of each added row.
        vectors: [n, D] float32.
        is_alive: [n] bool, whether the row still holds the vector of its item.
    """

    num_items: int
    hidden: Tensor
    num_hidden: int
    item_ids: Tensor
    vectors: Tensor
    is_alive: Tensor

    @property
    def num_rows(self) -> int:
        """n, the rows that every search scans."""
        return len(self.item_ids)

    @cached_property
    def num_live(self) -> int:
        """Number of items that a search may find."""
        return len(self.hidden) - self.num_hidden + int(self.is_alive.sum())

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Return the item ids of live rows, ascending, and their rows."""
        rows = self.is_alive.nonzero().squeeze(1)
        ids, order = self.item_ids[rows].sort()
        return ids, rows[order]

    def rows_of(self, item_ids: Tensor) -> Tensor:
        """Return the row that holds the vector of each item: [m] int64, -1 where no row does."""
        ids, rows = self._sorted
        if len(ids) == 0:
            return torch.full_like(item_ids, -1)
        positions = torch.searchsorted(ids, item_ids).clamp(max=len(ids) - 1)
        return torch.where(ids[positions] == item_ids, rows[positions], -1)

    def is_live(self, item_ids: Tensor) -> Tensor:
        """Return whether a search may find each item: [m] bool."""
        is_built = (item_ids >= 0) & (item_ids < len(self.hidden))
        shown = ~self.hidden[item_ids.clamp(0, len(self.hidden) - 1)]
        return (is_built & shown) | (self.rows_of(item_ids) >= 0)

    def without(self, item_ids: Tensor) -> Changes:
        """Return the changes with these items deleted: [n] int64, ids in use."""
        hidden, is_alive = self.hidden, self.is_alive
        built = item_ids[item_ids < len(hidden)]
        if len(built):
            hidden = hidden.index_fill(0, built, True)
        rows = self.rows_of(item_ids)
        if bool((rows >= 0).any()):
            is_alive = is_alive.index_fill(0, rows[rows >= 0], False)
        return replace(self, hidden=hidden, num_hidden=int(hidden.sum()), is_alive=is_alive)


def write_changes(writer: SnapshotWriter, changes: Changes, source_ids: SourceIds) -> None:
    """Write the changes of an index into its snapshot; an index without changes has no such file.

    Args:
        writer: of the snapshot.
        changes: since the index was built.
        source_ids: of all items; those of the added ones are written too.

    Raises:
        ArtifactError: the operating system refuses.
    """
    if changes.num_rows == 0 and changes.num_hidden == 0:
        return
    alive = changes.is_alive
    content = io.BytesIO()
    np.savez(
        content,
        num_items=np.int64(changes.num_items),
        hidden=changes.hidden.nonzero().squeeze(1).cpu().numpy(),
        item_ids=changes.item_ids[alive].cpu().numpy(),
        vectors=changes.vectors[alive].cpu().numpy(),
    )
    writer.bytes("changes", ".npz", content.getbuffer())
    if changes.num_items > len(changes.hidden):
        writer.table("added", source_ids.added)


def read_changes(file: Path, item_vectors: Tensor) -> Changes:
    """Read the changes of a snapshot.

    Args:
        file: that ``write_changes`` wrote.
        item_vectors: [V, D] of the built index.

    Raises:
        ArtifactError: it is damaged, or of another index.
    """
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
            raise ValueError("unknown id")
    except (OSError, ValueError, KeyError, IndexError, EOFError, TypeError) as error:
        raise ArtifactError(f"{file} is damaged; {REBUILD}") from error
    return Changes(
        num_items=num_items,
        hidden=hidden,
        num_hidden=len(hidden_ids),
        item_ids=item_ids,
        vectors=vectors.float(),
        is_alive=torch.ones(len(item_ids), dtype=torch.bool),
    )
