"""An index built, tuned to a target recall and measured: one row of a comparison."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from candid.component import type_name
from candid.index.measurement import Measured, Truth, measure
from candid.index.protocol import Index, IndexConfig, StoredIndex
from candid.index.tuning import Settings, tune


@dataclass(frozen=True)
class Assessment:
    """What came of one index.

    Attributes:
        name: what it is called in tables.
        config: with the settings that were chosen.
        index: built and set so.
        measured: on queries that chose nothing.
        tried: settings that were measured on the way, on the queries that chose.
        k: results a query.
        target_recall: what the settings were to reach.
        num_queries: that ``measured`` is over.
        build_seconds: CPU time of all threads.
        index_bytes: of the index beside the item vectors.
        vector_bytes: of the item vectors, V · D · 4.
    """

    name: str
    config: IndexConfig
    index: Index
    measured: Measured
    tried: Sequence[tuple[Settings, Measured]]
    k: int
    target_recall: float
    num_queries: int
    build_seconds: float
    index_bytes: int
    vector_bytes: int

    @property
    def reaches(self) -> bool:
        """Whether the recall is at least the target's."""
        return self.measured.recall >= self.target_recall

    @property
    def settings(self) -> Settings:
        """What tuning chose."""
        names = self.tried[0][0] if self.tried else {}
        return {name: getattr(self.config, name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        import candid.index

        return {
            "name": self.name,
            "index": {
                "type": type_name(candid.index.INDEXES, "index", self.config),
                **self.config.model_dump(mode="json"),
            },
            "k": self.k,
            "target_recall": self.target_recall,
            **self.measured.to_json(),
            "queries": self.num_queries,
            "build_cpu_seconds": round(self.build_seconds, 2),
            "index_bytes": self.index_bytes,
            "vector_bytes": self.vector_bytes,
            "tried": [{**settings, **found.to_json()} for settings, found in self.tried],
        }


def assess(
    name: str,
    config: IndexConfig,
    item_vectors: Tensor,
    truth: Truth,
    target_recall: float,
    progress: Callable[[str], None] | None = None,
) -> Assessment:
    """Build an index, choose its settings on one half of the queries, measure on the other.

    Args:
        name: for tables.
        config: settings of the search in it are only where to begin.
        item_vectors: [V, D] float32 on the CPU.
        truth: queries and what exact search finds for them.
        target_recall: 0..1.
        progress: told what is being done.

    Raises:
        ConfigError: settings that cannot work, or a library that is not installed.
    """

    def tell(what: str) -> None:
        if progress is not None:
            progress(what)

    tell("building")
    begin = time.process_time()
    index = config.build(item_vectors)
    seconds = time.process_time() - begin
    choosing, reporting = truth.split()
    tuned = tune(
        index, choosing, item_vectors, target_recall, lambda tried: tell(f"{tried} settings tried")
    )
    # Config fields are typed: a number of lists is whole, a multiple of k need not be.
    chosen = config.model_copy(update=tuned.settings)
    tell("measuring")
    return Assessment(
        name=name,
        config=chosen,
        index=tuned.index,
        measured=measure(tuned.index, reporting, item_vectors),
        tried=tuned.tried,
        k=truth.k,
        target_recall=target_recall,
        num_queries=len(reporting.query),
        build_seconds=seconds,
        index_bytes=_bytes_beside(index, config, item_vectors),
        vector_bytes=item_vectors.numel() * 4,
    )


def _bytes_beside(index: Index, config: IndexConfig, item_vectors: Tensor) -> int:
    if not isinstance(index, StoredIndex):
        return config.bytes_beside(item_vectors)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.bin"
        index.save(file)
        return file.stat().st_size
