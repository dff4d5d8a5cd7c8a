"""Throughput and memory of a server with one process and with several.

    python benchmarks/serve_workers.py --out build/serve_load   # results/serve_workers.json

All servers run at the same time and are loaded in turn, so that a change of the machine meets all
of them. A load is a closed loop: each of some connections sends its next request when it has its
answer. The client shares the cores of the machine: ``--client-core`` and ``--server-cores`` keep
them apart where there are enough. Rounds repeat; the result is the median of the ratios of each
round to the one process of the same round, with quartiles. Memory is the proportional set size
(Pss) of all processes of a server: a page that n processes share counts 1/n in each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from page_blocks import with_block
from serve_load import (
    Connection,
    LoadResult,
    add_run_options,
    cpu_seconds,
    histories,
    post,
    run_client,
    start_server,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serve_workers.json"
DOCS = ROOT / "docs" / "benchmarks" / "serve.md"


async def closed_loop(
    host: str, port: int, requests: Sequence[bytes], num_connections: int, seconds: float
) -> dict[str, Any]:
    """Return the answers per second of connections that send one request after the other."""
    loop, result = asyncio.get_running_loop(), LoadResult()
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        _, connection = await loop.create_connection(Connection, host, port)
        position = number * len(requests) // num_connections
        while (begun := time.perf_counter()) < end:
            status, _ = await connection.send(requests[position % len(requests)])
            position += 1
            result.count(str(status))
            if status == 200:
                result.latencies.append(time.perf_counter() - begun)
        connection.close()

    begun = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(num_connections)))
    summary = result.summary(time.perf_counter() - begun)
    ms = summary["ms"]
    return {
        "answered_a_second": summary["answered_a_second"],
        "failed": summary["failed"],
        "p50_ms": ms["p50"],
        "p99_ms": ms["p99"],
    }


def load(
    address: str, requests: Sequence[bytes], num_connections: int, seconds: float
) -> dict[str, Any]:
    """Load one server."""
    return run_client(
        lambda host, port: closed_loop(host, port, requests, num_connections, seconds), address
    )


def processes_of(pid: int) -> list[int]:
    """Return a process and its descendants."""
    output = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, output.splitlines())}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def pss_mib(pids: Sequence[int]) -> float:
    """Return the proportional set size of some processes together."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return round(total / 1024, 1)


def measure(given: argparse.Namespace, run: Path, index: Path) -> dict[str, Any]:
    """Measure all servers."""
    bodies = [
        {"history": history, "k": given.k} for history in histories(run.parent / "data", 2000)
    ]
    requests = [post("/v1/recommend", body) for body in bodies]
    rows: dict[int, list[dict[str, Any]]] = {number: [] for number in given.workers}
    with contextlib.ExitStack() as stack:
        if given.server_cores:
            os.sched_setaffinity(0, given.server_cores)  # The servers inherit it.
        servers = {}
        for number in given.workers:
            arguments = [str(run), "--index", str(index), "--quiet", "--workers", str(number)]
            servers[number] = stack.enter_context(start_server(*arguments))
        if given.client_core is not None:
            os.sched_setaffinity(0, [given.client_core])
        for _, address in servers.values():
            load(address, requests, given.connections, 3)  # The first load reads the vectors.
        for _ in range(given.rounds):
            for number, (process, address) in servers.items():
                pids = processes_of(process.pid)
                before = sum(map(cpu_seconds, pids)), time.process_time()
                row = load(address, requests, given.connections, given.seconds)
                after = sum(map(cpu_seconds, pids)), time.process_time()
                row["server_cores"] = round((after[0] - before[0]) / given.seconds, 2)
                row["client_cores"] = round((after[1] - before[1]) / given.seconds, 2)
                rows[number].append(row)
                print(number, json.dumps(row), flush=True)
        memory = {n: pss_mib(processes_of(process.pid)) for n, (process, _) in servers.items()}
    return {"rounds": rows, "pss_mib": memory}


def summarise(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each number of workers: medians, and ratios to one process."""
    first = [row["answered_a_second"] for row in measured["rounds"][1]]
    table = []
    for number, rows in measured["rounds"].items():
        rates = [row["answered_a_second"] for row in rows]
        ratios = np.quantile(np.array(rates) / np.array(first), [0.25, 0.5, 0.75]).round(2).tolist()
        table.append(
            {
                "workers": number,
                "answered_a_second": round(float(np.median(rates)), 1),
                "ratio": ratios[1],
                "ratio_quartiles": [ratios[0], ratios[2]],
                "p50_ms": round(float(np.median([row["p50_ms"] for row in rows])), 2),
                "p99_ms": round(float(np.median([row["p99_ms"] for row in rows])), 2),
                "server_cores": round(float(np.median([row["server_cores"] for row in rows])), 2),
                "client_cores": round(float(np.median([row["client_cores"] for row in rows])), 2),
                "failed": sum(row["failed"] for row in rows),
                "pss_mib": measured["pss_mib"][number],
            }
        )
    return table


def table(result: dict[str, Any]) -> str:
    """Return the table of the results for docs/benchmarks/serve.md."""
    lines = [
        f"{result['items']:,} items × {result['dim']}, k = {result['k']}, {result['connections']} "
        f"connections, {result['cores']} cores, {len(result['rounds'][str(1)])} rounds:",
        "",
        "| `--workers` | answers a second | to one process (quartiles) | p50, ms | p99, ms | "
        "cores of the server | cores of the client | memory (Pss), MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["summary"]:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['workers']} | {row['answered_a_second']:,.0f} | {row['ratio']:.2f} "
            f"({low:.2f} to {high:.2f}) | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | "
            f"{row['server_cores']:.2f} | {row['client_cores']:.2f} | {row['pss_mib']:,.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Make the run and the index if they do not exist, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_run_options(parser)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="1 is needed")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--server-cores", type=int, nargs="+", help="default: all")
    parser.add_argument("--client-core", type=int, help="default: any")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    from serve_run import make_index, make_run

    run = make_run(given.out, given.items, given.users, steps=given.steps)
    index = make_index(run, given.out / "index")
    measured = measure(given, run, index)
    result = {
        "command": "python benchmarks/serve_workers.py " + " ".join(sys.argv[1:]),
        "items": given.items,
        "dim": 64,
        "k": given.k,
        "connections": given.connections,
        "seconds": given.seconds,
        "cores": os.cpu_count(),
        "server_cores": given.server_cores,
        "client_core": given.client_core,
        "python": platform.python_version(),
        "summary": summarise(measured),
        "rounds": {str(number): rows for number, rows in measured["rounds"].items()},
    }
    given.results.write_text(json.dumps(result, indent=2) + "\n")
    if given.results == RESULTS:
        DOCS.write_text(with_block(DOCS.read_text(), "serve workers", table(result)))
    print(table(result))


if __name__ == "__main__":
    main()
