"""Cost of a tower by the groups that attention pads: four histories each, or cells up to a number.

    CANDID_DATA=data python benchmarks/length_groups.py
    python benchmarks/length_groups.py --tables   # write the table of docs/benchmarks/speed.md only

Forward and backward passes of a causal transformer of two blocks and two heads, width 64, dropout
0.2, over 128 random users of a dataset with all but their last interaction, at most 200. Groups of
at least four histories take more while their cells are at most ``CELLS_PER_GROUP``; with 0 they are
all of four. All numbers of cells take turns in one process on one thread; times are CPU
milliseconds, medians of the turns after the first. Outputs and gradients differ by rounding, which
is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import torch

import attention
import candid
from candid.batches import Queries, pack_histories
from candid.towers import length_groups
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "length_groups.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
USERS = {
    "nowplaying": "session_id",
    "amazon-beauty": "user_id",
    "gowalla": "user_id",
    "ml-1m": "user_id",
}
"""Datasets and their columns of users; only lengths of histories are read."""
COUNT, WIDTH, LENGTH = 128, 64, 200
NOW = length_groups.CELLS_PER_GROUP["cpu"]
CELLS = (0, 64, 128, 256, 512, 1024)


def queries_of(data: str) -> Queries:
    """Return packed histories with lengths of a dataset, each token a query."""
    root = Path(os.environ.get("CANDID_DATA", "../shared/data"))
    table = pl.read_parquet(root / data / "interactions.parquet", columns=[USERS[data]])
    lengths = table.group_by(USERS[data], maintain_order=True).len()["len"].to_numpy() - 1
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.choice(lengths[lengths > 0], COUNT), LENGTH).astype(np.int64)
    items = rng.integers(0, attention.ITEMS, int(lengths.sum()))
    queries = pack_histories(np.zeros(COUNT, np.int64), items, lengths)
    assert queries.history is not None
    positions = torch.arange(len(items))
    history = replace(queries.history, query_positions=positions)
    return Queries(user_ids=torch.zeros_like(positions), history=history)


def measure(data: str, repeats: int) -> dict[str, Any]:
    """Return the figures of a dataset."""
    queries, tower = queries_of(data), attention.Case(32, WIDTH).tower
    assert queries.history is not None
    seconds: dict[int, list[float]] = {cells: [] for cells in CELLS}
    groups, expected = {}, None
    for turn in range(repeats + 1):
        for cells in CELLS:
            with mock.patch.dict(length_groups.CELLS_PER_GROUP, {"cpu": cells}):
                if turn == 0:
                    outputs = attention.step(tower, queries)
                    expected = expected or outputs
                    for one, other in zip(outputs, expected, strict=True):
                        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
                    made = length_groups.length_groups(queries.history.offsets, len(queries))
                    groups[cells] = (len(made.shapes), len(made.gather))
                    continue
                started, passes = time.process_time(), 0
                while passes < 2 or time.process_time() - started < 0.05:
                    attention.step(tower, queries)
                    passes += 1
                seconds[cells].append((time.process_time() - started) / passes)
    row = {
        "data": data,
        "positions": len(queries),
        "cells": {
            str(cells): {
                "groups": groups[cells][0],
                "padded": groups[cells][1],
                "ms": round(1e3 * statistics.median(values), 2),
                "quartiles": [round(1e3 * q, 2) for q in statistics.quantiles(values, n=4)[::2]],
            }
            for cells, values in seconds.items()
        },
    }
    print(json.dumps(row), flush=True)
    return row


def with_table(content: str, results: list[dict[str, Any]]) -> str:
    """Return the page with its generated block filled from the results."""
    lines = [
        "| histories | positions | groups of four: number, ms | now: number, ms | four to now |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in results:
        four, now = row["cells"]["0"], row["cells"][str(NOW)]
        lines.append(
            f"| {row['data']} | {row['positions']:,} | {four['groups']}, {four['ms']:.1f} | "
            f"{now['groups']}, {now['ms']:.1f} | {four['ms'] / now['ms']:.2f} |"
        )
    return with_block(content, "length groups", "\n".join([*lines, ""]))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tables", action="store_true", help="write the table only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        report = {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": 1,
            "clock": "CPU seconds of the process; other work shared the machine",
            "command": f"python benchmarks/length_groups.py --repeats {options.repeats}",
            "results": [measure(data, options.repeats) for data in USERS],
        }
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    DOCS.write_text(with_table(DOCS.read_text(), json.loads(RESULTS.read_text())["results"]))


if __name__ == "__main__":
    main()
