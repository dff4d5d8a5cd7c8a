"""Quality and speed of an index: recall against exact search, throughput and latency."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from candid.index.exact import ExactIndex
from candid.index.protocol import Index, SearchResult

BATCH = 32
"""Queries per search when throughput is measured: a typical batch of a busy server."""
MAX_SINGLE_QUERIES = 100
"""Maximum number of queries searched one by one when latency is measured."""
SCORE_TOLERANCE = 1e-5
"""Scores this close, relative to the length of both vectors, count as equal."""


@dataclass(frozen=True)
class GroundTruth:
    """Queries and the results of exact search for them.

    Attributes:
        query: [Q, D] float32.
        result: [Q, K], of exact search.
    """

    query: Tensor
    result: SearchResult

    @property
    def k(self) -> int:
        """K, results per query."""
        return self.result.item_ids.shape[1]

    def split(self) -> tuple[GroundTruth, GroundTruth]:
        """Return two halves: even queries for tuning, odd ones for measuring.

        A single query is in both.
        """
        if len(self.query) < 2:
            return self, self
        return self._every_second(0), self._every_second(1)

    def _every_second(self, first: int) -> GroundTruth:
        rows = slice(first, None, 2)
        return GroundTruth(
            self.query[rows], SearchResult(self.result.item_ids[rows], self.result.scores[rows])
        )


@dataclass(frozen=True)
class Measurement:
    """Quality and speed of an index under one setting, on one core.

    Attributes:
        recall: share of the exact top k that the index found, mean over the queries.
        recall_error: its standard error.
        queries_per_second: of CPU time, in searches of 32 queries.
        milliseconds: CPU time of a search of one query, median; None if not measured.
    """

    recall: float
    recall_error: float
    queries_per_second: float
    milliseconds: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Return plain values, rounded to the precision of the clock."""
        return {
            "recall": round(self.recall, 5),
            "recall_error": round(self.recall_error, 5),
            "queries_per_second": round(self.queries_per_second, 1),
            "milliseconds": None if self.milliseconds is None else round(self.milliseconds, 3),
        }


def compute_ground_truth(item_vectors: Tensor, query: Tensor, k: int) -> GroundTruth:
    """Search exactly.

    Args:
        item_vectors: [V, D] float32.
        query: [Q, D] float32.
        k: results per query.

    Raises:
        ConfigError: k is outside 1..V, or the shapes do not fit.
        ArtifactError: vectors that are not finite.
    """
    query = query.detach().float().cpu()
    return GroundTruth(query, ExactIndex(item_vectors).search(query, k))


def recall_per_query(result: SearchResult, truth: GroundTruth, item_vectors: Tensor) -> Tensor:
    """Return the share of each query's exact top k that was found: [Q] float32.

    An item outside the exact top k counts as found if it scores no less than the last of them:
    among items with equal vectors, exact search returns an arbitrary choice.

    Args:
        result: [Q, K].
        truth: of the same queries and k.
        item_vectors: [V, D] float32.
    """
    query = truth.query
    recall = torch.empty(len(query))
    for begin in range(0, len(query), BATCH):
        rows = slice(begin, begin + BATCH)
        ids = result.item_ids[rows]
        vectors = item_vectors[ids.clamp(min=0)]
        scores = torch.einsum("bkd,bd->bk", vectors, query[rows])
        lengths = vectors.norm(dim=2) * query[rows].norm(dim=1, keepdim=True)
        last = truth.result.scores[rows].amin(1, keepdim=True)
        is_relevant = (ids >= 0) & (scores >= last - SCORE_TOLERANCE * lengths)
        recall[rows] = is_relevant.float().mean(1)
    return recall


def measure_index(
    index: Index, truth: GroundTruth, item_vectors: Tensor, *, with_latency: bool = True
) -> Measurement:
    """Measure an index on all queries of a ground truth, on one thread.

    Args:
        index: over ``item_vectors``.
        truth: queries and their exact results.
        item_vectors: [V, D] float32.
        with_latency: also search some queries one by one.
    """
    with one_thread():
        index.search(truth.query[:BATCH], truth.k)  # one-time costs are not part of a query
        begin = time.process_time()
        results = [index.search(rows, truth.k) for rows in truth.query.split(BATCH)]
        seconds = time.process_time() - begin
        latencies = []
        for row in truth.query[:MAX_SINGLE_QUERIES].split(1) if with_latency else ():
            begin = time.process_time()
            index.search(row, truth.k)
            latencies.append(1000 * (time.process_time() - begin))
    result = SearchResult(
        torch.cat([part.item_ids for part in results]), torch.cat([part.scores for part in results])
    )
    recall = recall_per_query(result, truth, item_vectors).double()
    error = recall.std() / len(recall) ** 0.5 if len(recall) > 1 else torch.zeros(())
    return Measurement(
        recall=float(recall.mean()),
        recall_error=float(error),
        queries_per_second=len(truth.query) / max(seconds, 1e-9),
        milliseconds=float(np.median(latencies)) if latencies else None,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch, and the libraries that read its setting, use one thread in the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
