"""CPU time of served answers with and without probabilities.

    python benchmarks/serve_probability.py --out build/serve_probability

A trained run over 100,000 items with an exact index answers batches of queries, as the server does
behind HTTP: encode, search, write JSON. Three ways alternate in one process on one thread: without
probabilities; with probabilities from the scores of the search; and with a second pass over the
vectors by operations of torch, as before. Wall time is not measured, because the machine may be
shared: CPU seconds of the process, the median and quartiles of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serve_probability.json"
BLOCK = 16_384


def log_partition_by_torch(query: Tensor, vectors: Tensor) -> Tensor:
    """Compute the log partition as before: blocks of float32 scores, float64 sums of their exp."""
    total = torch.full((len(query),), -torch.inf, dtype=torch.float64)
    for begin in range(0, len(vectors), BLOCK):
        scores = query @ vectors[begin : begin + BLOCK].T
        largest = scores.amax(1, keepdim=True)
        mass = (scores - largest).exp_().sum(1, dtype=torch.float64).log()
        total = torch.logaddexp(total, largest.squeeze(1).double() + mass)
    return total


def measure(run: Path, batch_sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """Return one row per batch size."""
    from candid.serve.bundle import open_bundle
    from candid.serve.config import ServeConfig
    from candid.serve.model_version import ModelVersion
    from candid.serve.requests import RecommendRequest

    torch.set_num_threads(1)
    bundle = open_bundle(run)
    version = ModelVersion(bundle, name="serve", number=1, config=ServeConfig())
    users = bundle.dataset.users["source_id"].to_list()
    rows = []
    for batch_size in batch_sizes:
        ways: dict[str, Callable[[], object]] = {}
        for name, probability in (("without", False), ("with", True)):
            requests = [
                RecommendRequest(user=user, k=10, probability=probability)
                for user in users[:batch_size]
            ]
            queries = [version.prepare(request) for request in requests]
            ways[name] = lambda queries=queries: version.answer(queries)  # type: ignore[misc]
        vectors = torch.randn(batch_size, bundle.dim, generator=torch.Generator().manual_seed(0))
        without = ways["without"]

        def with_second_pass(vectors: Tensor = vectors, without: Any = without) -> None:
            without()
            with torch.inference_mode():
                log_partition_by_torch(vectors, bundle.index.item_vectors)

        ways["with, second pass by torch"] = with_second_pass
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(repeats + 1):
            for name, answer in ways.items():
                started = time.process_time()
                answer()
                if turn:  # the first turn warms up
                    seconds[name].append(time.process_time() - started)
        base = np.array(seconds["without"])
        row: dict[str, Any] = {"batch_size": batch_size, "cpu_ms_per_answer": {}, "ratio": {}}
        for name, values in seconds.items():
            ms = 1000 * np.array(values) / batch_size
            row["cpu_ms_per_answer"][name] = round(float(np.median(ms)), 3)
            quartiles = np.quantile(np.array(values) / base, [0.25, 0.5, 0.75])
            row["ratio"][name] = [round(float(value), 3) for value in quartiles]
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Make the run if it does not exist, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=60, help="training steps")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from serve_run import make_run

    run = make_run(given.out, given.items, given.users, steps=given.steps)
    result = {
        "command": "python benchmarks/serve_probability.py --out build/serve_probability",
        "what": "CPU time of one process on one thread, alternating runs; quartiles of ratios to "
        "the run without probabilities before them. The machine was shared.",
        "items": given.items,
        "dim": 64,
        "k": 10,
        "index": "exact",
        "repeats": given.repeats,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "rows": measure(run, given.batch_sizes, given.repeats),
    }
    given.results.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {given.results}")


if __name__ == "__main__":
    main()
