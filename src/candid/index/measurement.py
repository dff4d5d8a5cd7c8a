"""What an index is worth: recall against exact search, queries a second, time of one query."""

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
"""Queries asked together when speed is measured, about what a busy server collects."""
ALONE = 100
"""Queries asked one by one at most, for the time of one."""
TIE = 1e-5
"""Scores this close, relative to the length of both vectors, are the same."""


@dataclass(frozen=True)
class Truth:
    """Queries and what exact search finds for them.

    Attributes:
        query: [Q, D] float32.
        hits: [Q, K], of exact search.
    """

    query: Tensor
    hits: SearchResult

    @property
    def k(self) -> int:
        """K."""
        return self.hits.item_ids.shape[1]

    def split(self) -> tuple[Truth, Truth]:
        """Every second query to choose settings by, the others to report; a lone one to both."""
        if len(self.query) < 2:
            return self, self
        return self._every_second(0), self._every_second(1)

    def _every_second(self, first: int) -> Truth:
        rows = slice(first, None, 2)
        return Truth(
            self.query[rows], SearchResult(self.hits.item_ids[rows], self.hits.scores[rows])
        )


@dataclass(frozen=True)
class Measured:
    """An index under one setting; speeds are of one core.

    Attributes:
        recall: share of the exact top k that was found, mean over the queries.
        recall_error: its standard error.
        queries_per_second: of CPU time, asked 32 at a time.
        milliseconds: CPU time of one query asked alone, median; None where only the rest was asked.
    """

    recall: float
    recall_error: float
    queries_per_second: float
    milliseconds: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Plain values, rounded to what the clock can tell."""
        return {
            "recall": round(self.recall, 5),
            "recall_error": round(self.recall_error, 5),
            "queries_per_second": round(self.queries_per_second, 1),
            "milliseconds": None if self.milliseconds is None else round(self.milliseconds, 3),
        }


def exact_truth(item_vectors: Tensor, query: Tensor, k: int) -> Truth:
    """Ask exact search; see ``ExactIndex.search``."""
    query = query.detach().float().cpu()
    return Truth(query, ExactIndex(item_vectors).search(query, k))


def recalls(found: SearchResult, truth: Truth, item_vectors: Tensor) -> Tensor:
    """Share of each query's exact top k that was found: [Q] float32.

    An item outside the top k that scores no less than its last is as right an answer: where items
    have one vector, which of them exact search names is arbitrary.

    Args:
        found: [Q, K].
        truth: of the same queries and k.
        item_vectors: [V, D] float32.
    """
    query = truth.query
    shares = torch.empty(len(query))
    for begin in range(0, len(query), BATCH):
        rows = slice(begin, begin + BATCH)
        ids = found.item_ids[rows]
        vectors = item_vectors[ids.clamp(min=0)]
        scores = torch.einsum("bkd,bd->bk", vectors, query[rows])
        lengths = vectors.norm(dim=2) * query[rows].norm(dim=1, keepdim=True)
        last = truth.hits.scores[rows].amin(1, keepdim=True)
        is_right = (ids >= 0) & (scores >= last - TIE * lengths)
        shares[rows] = is_right.float().mean(1)
    return shares


def measure(index: Index, truth: Truth, item_vectors: Tensor, *, alone: bool = True) -> Measured:
    """Ask an index all queries of a truth, on one thread.

    Args:
        index: over ``item_vectors``.
        truth: what is right.
        item_vectors: [V, D] float32.
        alone: also ask some queries one by one.
    """
    with one_thread():
        index.search(truth.query[:BATCH], truth.k)  # what is done once is no part of a query
        begin = time.process_time()
        hits = [index.search(rows, truth.k) for rows in truth.query.split(BATCH)]
        seconds = time.process_time() - begin
        one_by_one = []
        for row in truth.query[:ALONE].split(1) if alone else ():
            begin = time.process_time()
            index.search(row, truth.k)
            one_by_one.append(1000 * (time.process_time() - begin))
    found = SearchResult(torch.cat([h.item_ids for h in hits]), torch.cat([h.scores for h in hits]))
    shares = recalls(found, truth, item_vectors).double()
    error = shares.std() / len(shares) ** 0.5 if len(shares) > 1 else torch.zeros(())
    return Measured(
        recall=float(shares.mean()),
        recall_error=float(error),
        queries_per_second=len(truth.query) / max(seconds, 1e-9),
        milliseconds=float(np.median(one_by_one)) if one_by_one else None,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch, and what follows it, use one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
