"""Recall@100 and queries per second on one core, for every index, on synthetic vectors.

    python benchmarks/index_compare.py --items 1e5            a few minutes
    python benchmarks/index_compare.py --items 1e6            an hour; resumes where it stopped
    python benchmarks/index_compare.py --again --names exact "faiss flat"    measure these again
    python benchmarks/index_compare.py --docs                 only write the tables of the docs

Two sets of vectors, both of width 64. "hard": random directions and log-normal lengths, so that
neighbours are barely closer than other items and long items are results of many queries.
"clustered": items and queries around 1,000 centres. Trained vectors lie between the two. Each index
is built, tuned on one half of the queries to the fastest settings that reach the target recall, and
measured on the other half, on one thread by CPU time.
IVF, PQ and SQ of FAISS are built with three numbers of lists; the build time is that of the chosen
one.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from candid.atomic import write_json
from candid.index import BENCHMARKED_INDEXES, benchmark_index, compute_ground_truth
from page_blocks import with_block

RESULTS = Path(__file__).parent / "results" / "index_compare.json"
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks" / "index_search.md"
DIM = 64
K = 100
TARGET = 0.95
QUERIES = 512
CENTRES = 1000
KINDS = ("hard", "clustered")
NAMES = list(BENCHMARKED_INDEXES)


def vectors(kind: str, num_items: int, num_queries: int) -> tuple[Tensor, Tensor]:
    """Return items [V, D] and queries [Q, D] of a kind, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "hard":
        items = torch.nn.functional.normalize(normal(num_items, DIM))
        return items * (0.3 * normal(num_items, 1)).exp(), normal(num_queries, DIM)
    centres = normal(CENTRES, DIM)

    def around(count: int) -> Tensor:
        rows = torch.randint(CENTRES, (count,), generator=generator)
        return centres[rows] + 0.5 * normal(count, DIM)

    return around(num_items), around(num_queries)


def run(
    num_items: int, kinds: Sequence[str], names: Sequence[str], results: Path, again: bool = False
) -> None:
    """Measure the indexes that are not in the file yet; write the file after each index.

    Args:
        num_items: V.
        kinds: of vectors.
        names: of indexes.
        results: the file.
        again: measure the indexes that are in the file again.
    """
    lines: list[dict[str, Any]] = []
    if results.exists():
        lines = json.loads(results.read_text())["results"]
    if again:
        lines = [
            line
            for line in lines
            if not (line["items"] == num_items and line["kind"] in kinds and line["name"] in names)
        ]
    for kind in kinds:
        measured = {
            line["name"] for line in lines if (line["kind"], line["items"]) == (kind, num_items)
        }
        missing = [name for name in names if name not in measured]
        if not missing:
            continue
        items, query = vectors(kind, num_items, QUERIES)
        truth = compute_ground_truth(items, query, K)
        for name in missing:
            benchmark = benchmark_index(
                BENCHMARKED_INDEXES[name], items, truth, target_recall=TARGET, name=name
            )
            line = {"kind": kind, "items": num_items, **benchmark.to_json()}
            lines.append(line)
            write_json(results, {"machine": machine(), "results": lines})
            print(
                f"{kind} {num_items:,} {name}: recall {line['recall']:.4f}, "
                f"{line['queries_per_second']:,.0f} queries/s, "
                f"{line['milliseconds']:.2f} ms alone, build {line['build_cpu_seconds']:.0f} s",
                flush=True,
            )


def machine() -> dict[str, Any]:
    """Return the machine that the figures depend on."""
    processor = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        match = re.search(r"model name\s*:\s*(.*)", cpus.read_text())
        processor = match[1] if match else processor
    return {"processor": processor, "torch": torch.__version__, "threads": 1}


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of the docs: one for each size and kind of vectors."""
    parts = []
    for size in sorted({line["items"] for line in results}, reverse=True):
        for kind in KINDS:
            lines = [r for r in results if (r["items"], r["kind"]) == (size, kind)]
            if not lines:
                continue
            lines.sort(
                key=lambda r: (
                    r["recall"] < TARGET,
                    -r["queries_per_second"] if r["recall"] >= TARGET else -r["recall"],
                )
            )
            parts += [
                f"**{size:,} items × {DIM}, {kind}**\n",
                "| index | recall@100 | queries/s | ms alone | beside the vectors, MB |"
                " build, CPU s | settings |",
                "|---|---|---|---|---|---|---|",
                *(_row(line) for line in lines),
                "",
            ]
    return "\n".join(parts)


def _row(line: Mapping[str, Any]) -> str:
    names = [n for n in (line["tried"][0] if line["tried"] else {}) if n in line["index"]]
    settings = ", ".join(f"{name} {line['index'][name]:g}" for name in names) or "–"
    return (
        f"| {line['name']} | {line['recall']:.3f} | {line['queries_per_second']:,.0f} "
        f"| {line['milliseconds']:.2f} | {line['index_bytes'] / 1e6:,.0f} "
        f"| {line['build_cpu_seconds']:,.0f} | {settings} |"
    )


def with_tables(docs: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with new tables."""
    return with_block(docs, "index_compare", tables(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=float, default=1e5)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure results of the file again")
    parser.add_argument("--docs", action="store_true", help="only write the tables of the docs")
    arguments = parser.parse_args()
    if arguments.docs:
        content = json.loads(arguments.results.read_text())
        DOCS.write_text(with_tables(DOCS.read_text(), content["results"]))
    else:
        torch.set_num_threads(1)
        run(
            int(arguments.items),
            arguments.kinds,
            arguments.names,
            arguments.results,
            arguments.again,
        )
