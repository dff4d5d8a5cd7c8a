"""A process of ScaNN for ``benchmarks/index_scann.py``: build, tune and search on command.

It runs in a Python environment of its own, which needs ScaNN and NumPy but not candid. Commands are
lines of JSON on the standard input, answers are lines of JSON on the standard output.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scann

Array = npt.NDArray[Any]
REORDERS = (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0)
"""Candidates ranked exactly, as a multiple of k; the steps of candid's tuner up to 8."""
STEP = 1.2
"""Ratio of neighbouring numbers of leaves to search; that of candid's tuner."""
Settings = dict[str, int]


class Worker:
    """Searchers over one set of vectors.

    Args:
        folder: with items.npy [V, D], queries.npy [Q, D] and last_scores.npy [Q], the k-th best
            exact score of each query, less the tolerance of candid's recall.
        k: results per query.
        batch: queries per search.
    """

    def __init__(self, folder: Path, k: int, batch: int) -> None:
        self.items = np.load(folder / "items.npy")
        self.queries = np.load(folder / "queries.npy")
        self.last = np.load(folder / "last_scores.npy")
        self.k, self.batch = k, batch
        self.best: tuple[float, Any, Settings, dict[str, Any]] | None = None
        self.tried: list[dict[str, Any]] = []

    def tune(self, leaves: int, dims: int, target: float) -> dict[str, Any]:
        """Build with ``leaves`` partitions and codes of ``dims`` numbers; search settings."""
        searcher, built = self._build(leaves, dims)
        rows = slice(0, None, 2)
        for multiple in reversed(REORDERS):
            reorder = round(multiple * self.k)
            steps = _steps(leaves)
            low, high = 0, len(steps)
            while low < high:
                middle = (low + high) // 2
                settings = {"leaves_to_search": steps[middle], "reorder": reorder}
                recall, error, speed = self.measure(searcher, settings, rows)
                self.tried.append(
                    {
                        **built,
                        **settings,
                        "recall": round(recall, 4),
                        "queries_per_second": round(speed),
                    }
                )
                if recall - 2 * error >= target:
                    high = middle
                    if self.best is None or speed > self.best[0]:
                        self.best = (speed, searcher, settings, built)
                else:
                    low = middle + 1
            if low == len(steps):  # fewer candidates find no more
                break
        return built

    def use(self, leaves: int, dims: int, leaves_to_search: int, reorder: int) -> dict[str, Any]:
        """Build with settings that an earlier call of the benchmark has chosen."""
        searcher, built = self._build(leaves, dims)
        settings = {"leaves_to_search": leaves_to_search, "reorder": reorder}
        self.best = (0.0, searcher, settings, built)
        return built

    def _build(self, leaves: int, dims: int) -> tuple[Any, dict[str, Any]]:
        began = time.process_time()
        builder = scann.scann_ops_pybind.builder(self.items, self.k, "dot_product")
        builder = builder.set_n_training_threads(1)
        builder = builder.tree(leaves, max(1, leaves // 20), training_sample_size=256 * leaves)
        # 0.2 is the threshold of ScaNN's documentation.
        builder = builder.score_ah(dims, anisotropic_quantization_threshold=0.2)
        searcher = builder.reorder(5 * self.k).build()
        seconds = time.process_time() - began
        searcher.set_num_threads(1)
        return searcher, {"leaves": leaves, "dims": dims, "build_cpu_seconds": round(seconds, 1)}

    def measure(self, searcher: Any, settings: Settings, rows: slice) -> tuple[float, float, float]:
        """Return recall, its standard error and queries per second of CPU time."""
        queries, last = self.queries[rows], self.last[rows]
        found = []
        began = time.process_time()
        for begin in range(0, len(queries), self.batch):
            found.append(
                searcher.search_batched(
                    queries[begin : begin + self.batch],
                    final_num_neighbors=self.k,
                    pre_reorder_num_neighbors=settings["reorder"],
                    leaves_to_search=settings["leaves_to_search"],
                )[0]
            )
        seconds = time.process_time() - began
        ids = np.concatenate(found).astype(np.int64)
        scores = np.einsum("bkd,bd->bk", self.items[ids], queries)
        recall = (scores >= last[:, None]).mean(1)
        return recall.mean(), recall.std(ddof=1) / len(recall) ** 0.5, len(queries) / seconds

    def chosen(self) -> dict[str, Any]:
        """Return the fastest settings that reach the target, and the size of their index."""
        if self.best is None:
            return {"tried": self.tried}
        _, searcher, settings, built = self.best
        with tempfile.TemporaryDirectory() as folder:
            searcher.serialize(folder)
            sizes = {file.name: file.stat().st_size for file in Path(folder).iterdir()}
        sizes.pop("dataset.npy", None)  # the float32 vectors
        return {**built, **settings, "index_bytes": sum(sizes.values()), "tried": self.tried}

    def turn(self) -> dict[str, Any]:
        """Measure the chosen settings on the queries that tuning did not use."""
        assert self.best is not None
        _, searcher, settings, _ = self.best
        recall, error, speed = self.measure(searcher, settings, slice(1, None, 2))
        return {"recall": recall, "recall_error": error, "queries_per_second": speed}


def _steps(last: int) -> list[int]:
    count = max(1, round(np.log(last) / np.log(STEP)))
    return sorted({round(last ** (i / count)) for i in range(count + 1)})


def main() -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # ScaNN prints to the standard output
    worker: Worker | None = None
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("command")
        if name == "load":
            worker = Worker(Path(command.pop("folder")), **command)
            answer: Any = {"loaded": True}
        else:
            answer = getattr(worker, name)(**command)
        print(json.dumps(answer, default=float), file=answers, flush=True)


if __name__ == "__main__":
    main()
