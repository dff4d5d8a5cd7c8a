"""Exact search of candid and FAISS ``IndexFlatIP``: milliseconds per thousand queries.

    python benchmarks/search.py               # writes results/search.json
    python benchmarks/search.py --threads 2   # writes results/search_two_threads.json
    python benchmarks/search.py --tables      # writes the tables of docs/benchmarks/speed.md alone

The exact search of candid leaves out 150 seen items per query and orders ties; ``IndexFlatIP`` can
do neither, so it returns items that an evaluation must not count. Vectors are Gaussian of width 64,
items of log-normal norms. FAISS has two ways to search: query by query, its own choice below 2,000
queries of width 64, and by matrix products, with ``distance_compute_blas_threshold`` 1. Both are
measured and the faster one is the reference. The searches take turns within one process, with equal
numbers of threads. Times are medians: of the CPU with one thread, of the clock with two, on a
machine that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

import candid
from candid.index import ExactIndex, Exclusions, exact
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
FILES = {1: "search.json", 2: "search_two_threads.json"}
"""Results by number of threads."""
BLOCKS = {1: "search", 2: "search two threads"}
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
WIDTH, SEEN = 64, 150
SIZES = ((3416, 6040), (100_000, 512), (1_000_000, 1))
"""Items and queries: those of MovieLens-1M, a larger catalog, and one query to a large one."""
SCANNED, MULTIPLIED = "FAISS IndexFlatIP, query by query", "FAISS IndexFlatIP, matrix products"


def on_torch_alone(search: Callable[[], Any]) -> Any:
    """Run a search as on a machine without a C compiler."""
    native_selection_for = exact.native_selection_for
    exact.native_selection_for = lambda *_: None
    try:
        return search()
    finally:
        exact.native_selection_for = native_selection_for


def searches_of(num_items: int, num_queries: int, k: int) -> dict[str, Callable[[], Any]]:
    """Return searches of all queries, by name."""
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0, 0.3, (num_items, 1)).astype(np.float32)
    items = rng.standard_normal((num_items, WIDTH), dtype=np.float32) * norms
    queries = rng.standard_normal((num_queries, WIDTH), dtype=np.float32)
    seen = torch.from_numpy(rng.integers(0, num_items, num_queries * SEEN))
    exclude = Exclusions(seen, torch.arange(0, num_queries * SEEN + 1, SEEN))
    index, flat = ExactIndex(torch.from_numpy(items)), faiss.IndexFlatIP(WIDTH)
    flat.add(items)
    query = torch.from_numpy(queries)

    def search_flat(threshold: int) -> Any:
        faiss.cvar.distance_compute_blas_threshold = threshold
        return flat.search(queries, k)

    return {
        "ours, seen left out": lambda: index.search(query, k, exclude),
        "ours, nothing left out": lambda: index.search(query, k),
        "ours without a C compiler, seen left out": lambda: on_torch_alone(
            lambda: index.search(query, k, exclude)
        ),
        SCANNED: lambda: search_flat(2**31 - 1),
        MULTIPLIED: lambda: search_flat(1),
    }


def measure(repeats: int, threads: int) -> list[dict[str, Any]]:
    """Return one line per size, k and search: the median, and the lowest and highest time."""
    lines = []
    clock = time.process_time if threads == 1 else time.perf_counter
    for num_items, num_queries in SIZES:
        for k in (10, 100):
            searches = searches_of(num_items, num_queries, k)
            times: dict[str, list[float]] = {name: [] for name in searches}
            for turn in range(repeats + 1):
                for name, search in searches.items():
                    started = clock()
                    search()
                    if turn:
                        times[name].append((clock() - started) * 1e6 / num_queries)
            for name, values in times.items():
                line = {"items": num_items, "k": k, "search": name}
                line["ms"] = round(statistics.median(values), 2)
                line["ms_range"] = [round(min(values), 2), round(max(values), 2)]
                line["queries"] = num_queries
                print(line, flush=True)
                lines.append(line)
    return lines


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table: a row per search, and the ratio of candid to FAISS."""
    cases = [(num_items, k) for num_items, _ in SIZES for k in (10, 100)]
    times = {(line["search"], line["items"], line["k"]): line["ms"] for line in results}
    names = list(dict.fromkeys(line["search"] for line in results))
    head = " | ".join(
        f"{num_items:,} items, {num_queries:,} queries, k = {k}"
        for num_items, num_queries in SIZES
        for k in (10, 100)
    )
    rows = [f"| | {head} |", f"|---|{'---:|' * len(cases)}"]
    for name in names:
        values = " | ".join(f"{times[name, *case]:,.0f}" for case in cases)
        rows.append(f"| {name} | {values} |")
    for name in names[:2]:
        ratios = [
            times[name, *case] / min(times[SCANNED, *case], times[MULTIPLIED, *case])
            for case in cases
        ]
        values = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        rows.append(f"| {name}, to the faster of FAISS | {values} |")
    return "\n".join(rows) + "\n"


def with_tables(content: str) -> str:
    """Return the docs with the generated blocks filled from the files of results."""
    for threads, name in FILES.items():
        results = json.loads((RESULTS / name).read_text())["results"]
        content = with_block(content, BLOCKS[threads], table(results))
    return content


def main() -> None:
    """Measure and write; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, choices=FILES)
    parser.add_argument("--tables", action="store_true", help="write the table alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    if not options.tables:
        report = {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "faiss": faiss.__version__,
            "threads": options.threads,
            "note": "CPU time on a machine shared with other work"
            if options.threads == 1
            else "times of the clock on a machine that nothing else uses",
            "command": "python benchmarks/search.py "
            f"--repeats {options.repeats} --threads {options.threads}",
            "results": measure(options.repeats, options.threads),
        }
        (RESULTS / FILES[options.threads]).write_text(json.dumps(report, indent=1) + "\n")
    DOCS.write_text(with_tables(DOCS.read_text()))


if __name__ == "__main__":
    main()
