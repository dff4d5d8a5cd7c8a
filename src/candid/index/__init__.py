"""Search over item vectors: used by samplers (the exact head), evaluation and serving.

Adding an index: one file with a class that follows ``Index`` and owns a ``Config``, and one
line in ``INDEXES``.
"""

from typing import Final

from candid.index.approximate import ApproximateIndex, TunableIndex
from candid.index.assessment import Assessment, assess
from candid.index.bfloat16 import Bfloat16Index
from candid.index.contenders import CONTENDERS, default_config
from candid.index.exact import ExactIndex
from candid.index.faiss import FaissIndex
from candid.index.kernel_lsh import KernelLsh
from candid.index.live import Changes, LiveIndex
from candid.index.measurement import Measured, Truth, exact_truth, measure
from candid.index.protocol import (
    Exclusions,
    Index,
    IndexComponent,
    IndexConfig,
    MutableIndex,
    SearchResult,
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
from candid.index.tuning import Tuned, tune
from candid.index.usearch import UsearchIndex

INDEXES: Final = {
    "bfloat16": Bfloat16Index,
    "exact": ExactIndex,
    "faiss": FaissIndex,
    "kernel_lsh": KernelLsh,
    "usearch": UsearchIndex,
}
"""Indexes by the name used in recipes."""

__all__ = [
    "CONTENDERS",
    "INDEXES",
    "ApproximateIndex",
    "Assessment",
    "Bfloat16Index",
    "Changes",
    "ExactIndex",
    "Exclusions",
    "FaissIndex",
    "Index",
    "IndexComponent",
    "IndexConfig",
    "KernelLsh",
    "LiveIndex",
    "Measured",
    "MutableIndex",
    "SearchResult",
    "Snapshot",
    "SourceIds",
    "StoredIndex",
    "Truth",
    "TunableIndex",
    "Tuned",
    "UsearchIndex",
    "assess",
    "default_config",
    "exact_truth",
    "measure",
    "open_snapshot",
    "save_changes",
    "snapshot_in_memory",
    "snapshot_token",
    "tune",
    "write_snapshot",
]
