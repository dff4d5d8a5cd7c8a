"""Search over item vectors: used by proposals (the exact head), evaluation and serving.

Adding an index: one file with a class that follows ``Index`` and owns a ``Config``, and one
line in ``INDEXES``.
"""

from typing import Final

from candid.index.exact import ExactIndex
from candid.index.faiss import FaissIndex
from candid.index.live import Changes, LiveIndex
from candid.index.protocol import (
    Exclusions,
    Hits,
    Index,
    IndexComponent,
    IndexConfig,
    MutableIndex,
    StoredIndex,
)
from candid.index.snapshot import (
    Snapshot,
    open_snapshot,
    save_changes,
    snapshot_in_memory,
    snapshot_token,
    write_snapshot,
)
from candid.index.source_ids import SourceIds

INDEXES: Final = {
    "exact": ExactIndex,
    "faiss": FaissIndex,
}
"""Indexes by the name used in recipes."""

__all__ = [
    "INDEXES",
    "Changes",
    "ExactIndex",
    "Exclusions",
    "FaissIndex",
    "Hits",
    "Index",
    "IndexComponent",
    "IndexConfig",
    "LiveIndex",
    "MutableIndex",
    "Snapshot",
    "SourceIds",
    "StoredIndex",
    "open_snapshot",
    "save_changes",
    "snapshot_in_memory",
    "snapshot_token",
    "write_snapshot",
]
