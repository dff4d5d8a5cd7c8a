"""Search over item vectors, for samplers (exact candidates), evaluation and serving.

name         search
bfloat16     exhaustive in bfloat16, then exact ranking
exact        exhaustive, exact
faiss        FAISS: exhaustive, IVF, PQ, SQ or HNSW
int8         inverted lists with codes of 8 bits, then exact ranking
kernel_lsh   hash bits, then exact ranking
usearch      graph of USearch

To add an index: one file with a class that inherits from ``Index`` and has a nested ``Config``, one
line in ``registry.py``, and one test that calls ``candid.testing.check_index``.
"""

from candid.index.approximate import ApproximateIndex
from candid.index.benchmark import BENCHMARKED_INDEXES, IndexBenchmark, benchmark_index
from candid.index.bfloat16 import Bfloat16Index
from candid.index.changes import Changes
from candid.index.exact import ExactIndex
from candid.index.faiss import FaissIndex
from candid.index.int8 import Int8Index
from candid.index.kernel_lsh import KernelLsh
from candid.index.live import LiveIndex
from candid.index.log_sum_exp import RunningLogSumExp
from candid.index.measurement import (
    GroundTruth,
    Measurement,
    compute_ground_truth,
    measure_index,
)
from candid.index.merge import merge_results
from candid.index.protocol import (
    Exclusions,
    Index,
    IndexComponent,
    IndexConfig,
    SearchResult,
    default_config,
)
from candid.index.registry import INDEXES
from candid.index.snapshot import Snapshot, snapshot_in_memory
from candid.index.snapshot_folder import (
    open_snapshot,
    save_changes,
    snapshot_token,
    write_snapshot,
)
from candid.index.source_ids import SourceIds
from candid.index.tuning import TuningResult, tune_index
from candid.index.usearch import UsearchIndex

__all__ = [
    "BENCHMARKED_INDEXES",
    "INDEXES",
    "ApproximateIndex",
    "Bfloat16Index",
    "Changes",
    "ExactIndex",
    "Exclusions",
    "FaissIndex",
    "GroundTruth",
    "Index",
    "IndexBenchmark",
    "IndexComponent",
    "IndexConfig",
    "Int8Index",
    "KernelLsh",
    "LiveIndex",
    "Measurement",
    "RunningLogSumExp",
    "SearchResult",
    "Snapshot",
    "SourceIds",
    "TuningResult",
    "UsearchIndex",
    "benchmark_index",
    "compute_ground_truth",
    "default_config",
    "measure_index",
    "merge_results",
    "open_snapshot",
    "save_changes",
    "snapshot_in_memory",
    "snapshot_token",
    "tune_index",
    "write_snapshot",
]
