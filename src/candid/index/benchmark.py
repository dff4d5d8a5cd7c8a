"""The benchmark of indexes: build one, tune it to a target recall and measure it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from candid.component import type_name
from candid.errors import ConfigError
from candid.index.bfloat16 import Bfloat16Index
from candid.index.exact import ExactIndex
from candid.index.faiss import FaissIndex
from candid.index.int8 import Int8Index
from candid.index.kernel_lsh import KernelLsh
from candid.index.measurement import GroundTruth, Measurement, measure_index
from candid.index.protocol import Index, IndexConfig
from candid.index.registry import INDEXES
from candid.index.snapshot_files import save_index
from candid.index.tuning import Settings, TuningResult, tune_index
from candid.index.usearch import UsearchIndex
from candid.temporary import TemporaryFolder

BENCHMARKED_INDEXES: Final[dict[str, IndexConfig]] = {
    "exact": ExactIndex.Config(),
    "bfloat16": Bfloat16Index.Config(),
    "faiss flat": FaissIndex.Config(kind="flat"),
    "faiss ivf": FaissIndex.Config(kind="ivf"),
    "faiss pq": FaissIndex.Config(kind="pq"),
    "faiss sq": FaissIndex.Config(kind="sq"),
    "faiss hnsw, products": FaissIndex.Config(kind="hnsw", augment=False),
    "faiss hnsw, distances": FaissIndex.Config(kind="hnsw", augment=True),
    "usearch, products": UsearchIndex.Config(augment=False),
    "usearch, distances": UsearchIndex.Config(augment=True),
    "int8": Int8Index.Config(),
    "kernel_lsh": KernelLsh.Config(),
}
"""The indexes of ``candid index --compare`` by the name of their row.

Graphs appear twice, because the better of their two metrics depends on the vectors. An index
without a row here still works everywhere else.
"""


@dataclass(frozen=True)
class IndexBenchmark:
    """The result of one index: one row of a comparison.

    Attributes:
        name: in tables.
        config: with the settings that tuning chose.
        index: built, with these settings.
        measurement: on queries that tuning did not use.
        trials: settings that tuning measured, on its own queries, with those of the construction.
        k: results per query.
        target_recall: the recall that tuning aimed at.
        num_queries: number of queries of ``measurement``.
        build_seconds: CPU time of all threads to build the chosen index.
        index_bytes: of the index, in addition to the item vectors.
        vector_bytes: of the item vectors, V · D · 4.
    """

    name: str
    config: IndexConfig
    index: Index
    measurement: Measurement
    trials: Sequence[tuple[Settings, Measurement]]
    k: int
    target_recall: float
    num_queries: int
    build_seconds: float
    index_bytes: int
    vector_bytes: int

    @property
    def reaches_target(self) -> bool:
        """Whether the recall is at least the target."""
        return self.measurement.recall >= self.target_recall

    @property
    def settings(self) -> Settings:
        """The settings that tuning chose."""
        names = self.trials[0][0] if self.trials else {}
        return {name: getattr(self.config, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "index": index_table(self.config),
            "k": self.k,
            "target_recall": self.target_recall,
            **self.measurement.to_json(),
            "queries": self.num_queries,
            "build_cpu_seconds": round(self.build_seconds, 2),
            "index_bytes": self.index_bytes,
            "vector_bytes": self.vector_bytes,
            "tried": [
                {**settings, **measurement.to_json()} for settings, measurement in self.trials
            ],
        }


def index_table(config: IndexConfig) -> Mapping[str, Any]:
    """Return the config as in a recipe: its type, then its settings."""
    return {"type": type_name(INDEXES, "index", config), **config.model_dump(mode="json")}


def benchmark_index(
    config: IndexConfig,
    item_vectors: Tensor,
    truth: GroundTruth,
    *,
    target_recall: float,
    name: str = "",
    build: Callable[[IndexConfig, Tensor], tuple[Index, float]] | None = None,
    file: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> IndexBenchmark:
    """Build an index, choose its settings on one half of the queries, measure on the other half.

    If the config leaves settings of the construction open, such as the number of lists of FAISS,
    each of ``config.build_choices`` is built and tuned; the fastest that reaches the target is
    kept. At most two of them are in memory at a time.

    Args:
        config: of the index; tuning replaces its settings of the search and those left open.
        item_vectors: [V, D] float32 on the CPU.
        truth: queries and their exact results.
        target_recall: 0..1.
        name: for tables.
        build: returns the index of a config over the vectors, and the CPU seconds that this took;
            None: ``config.build``.
        file: where the file of an index with ``has_file`` is written; None: to a temporary file,
            for its size.
        progress: called with the name of each stage.

    Raises:
        ConfigError: settings that cannot work, or a library that is not installed.

    Example:
        >>> import torch
        >>> from candid.index import compute_ground_truth
        >>> items, queries = torch.randn(100, 8), torch.randn(20, 8)
        >>> truth = compute_ground_truth(items, queries, k=5)
        >>> result = benchmark_index(ExactIndex.Config(), items, truth, target_recall=0.95)
        >>> result.measurement.recall
        1.0
    """

    def report(stage: str) -> None:
        if progress is not None:
            progress(stage)

    def report_trials(before: int, count: int) -> None:
        report(f"{before + count} settings tried")

    tuning_half, measuring_half = truth.split()
    trials: list[tuple[Settings, Measurement]] = []
    best: _Choice | None = None
    for choice in config.build_choices(len(item_vectors)):
        report("building")
        chosen = config.model_copy(update=dict(choice))
        index, seconds = (build or _build)(chosen, item_vectors)
        tuned = tune_index(
            index,
            tuning_half,
            item_vectors,
            target_recall=target_recall,
            progress=functools.partial(report_trials, len(trials)),
        )
        trials += [({**choice, **settings}, measured) for settings, measured in tuned.trials]
        one = _Choice(chosen.model_copy(update=tuned.settings), tuned, seconds)
        best = one if best is None or one.rank > best.rank else best
        del index, tuned, one  # the next index is built beside the best one only
    if best is None:
        raise ConfigError(f"{type(config).__qualname__}.build_choices returned no choice")
    report("measuring")
    return IndexBenchmark(
        name=name,
        config=best.config,
        index=best.tuned.index,
        measurement=measure_index(best.tuned.index, measuring_half, item_vectors),
        trials=trials,
        k=truth.k,
        target_recall=target_recall,
        num_queries=len(measuring_half.query),
        build_seconds=best.seconds,
        index_bytes=_index_bytes(best.tuned.index, best.config, item_vectors, file),
        vector_bytes=item_vectors.numel() * 4,
    )


@dataclass(frozen=True)
class _Choice:
    """A built and tuned index."""

    config: IndexConfig
    tuned: TuningResult
    seconds: float

    @property
    def rank(self) -> tuple[bool, float]:
        """The order of choices: the fastest that reach the target, else the highest recall."""
        measured, reaches = self.tuned.measurement, self.tuned.reaches_target
        return reaches, measured.queries_per_second if reaches else measured.recall


def _build(config: IndexConfig, item_vectors: Tensor) -> tuple[Index, float]:
    begin = time.process_time()
    index = config.build(item_vectors)
    return index, time.process_time() - begin


def _index_bytes(index: Index, config: IndexConfig, item_vectors: Tensor, file: Path | None) -> int:
    if not index.has_file:
        return config.extra_bytes(item_vectors)
    if file is not None:
        save_index(index, file)
        return file.stat().st_size
    with TemporaryFolder("index") as folder:
        file = folder.path / "index.bin"
        save_index(index, file)
        return file.stat().st_size
