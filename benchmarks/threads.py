"""Hot paths on one and on two threads: times, CPU seconds, and what does not gain.

    CANDID_DATA=data python benchmarks/threads.py    # less than 4 minutes on a quiet machine
    python benchmarks/threads.py --tables    # write the table of docs/benchmarks/speed.md only

For each path one and two threads take turns in one process, first one, then two, then in the other
order. A turn repeats the work for about ``TURN`` seconds, after one run that does not count.
``speedup`` is the median of the ratios of wall times of a turn, ``speedup_best`` the ratio of the
best times. ``cpu_ms`` counts all threads, which also wait actively; ``main_ms`` the main one.
``prepare`` runs in a process for each run, with that number of threads of Polars.

Wall times on two threads mean nothing while another process uses a core: ``others`` is the share of
both cores that other processes took meanwhile, of the whole run and of each path.

``operations``: with the profiler of torch, milliseconds of the operations that lose most to a
perfect speedup; "outside of torch" is the rest of the wall time: Python, numpy and native kernels.
``flat`` is the share of the time on one thread in operations that gain less than 1.2 from the
second thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.profiler import profile

import candid
import threads_paths as paths
from page_blocks import with_block
from threads_paths import PATHS, THREADS, HotPath, Work

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "threads.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
TURN, GOAL, FLAT = 0.2, 1.7, 1.2
OUTSIDE = "outside of torch"
QUIET = 0.1
"""Largest share of the cores that other processes may take."""


class Load:
    """CPU seconds of the whole machine and of this process with its children."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.machine, self.own = self._machine(), self._own()

    def _machine(self) -> float:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, soft_irq, steal = map(int, fields[:8])
        ticks = user + nice + system + irq + soft_irq + steal
        return ticks / os.sysconf("SC_CLK_TCK")

    def _own(self) -> float:
        usages = [resource.getrusage(resource.RUSAGE_SELF)]
        usages += [resource.getrusage(resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    def others(self) -> float:
        """Return the share of the cores that other processes have taken since the start."""
        available = (time.perf_counter() - self.started) * (os.cpu_count() or 1)
        taken = self._machine() - self.machine - (self._own() - self.own)
        return round(max(taken, 0.0) / available, 3)


def run_turn(work: Work, threads: int, passes: int) -> tuple[float, float, float]:
    """Return milliseconds of a run, the mean of several: wall, CPU, CPU of this thread."""
    torch.set_num_threads(threads)
    own = work(threads)
    if own is not None:
        return own.wall * 1e3, own.cpu * 1e3, own.main * 1e3
    clocks = (time.perf_counter, time.process_time, time.thread_time)
    started = [clock() for clock in clocks]
    for _ in range(passes):
        work(threads)
    wall, cpu, main = (
        (clock() - start) * 1e3 / passes for clock, start in zip(clocks, started, strict=True)
    )
    return wall, cpu, main


def operations(work: Work, passes: int) -> dict[str, Any]:
    """Return the operations that lose most to a perfect speedup, and the flat share."""
    found: dict[str, dict[int, float]] = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        work(threads)
        with profile() as profiled:
            started = time.perf_counter()
            for _ in range(passes):
                work(threads)
            outside = (time.perf_counter() - started) / passes * 1e3
        for event in profiled.key_averages():
            milliseconds = event.self_cpu_time_total / passes / 1e3
            found.setdefault(event.key, dict.fromkeys(THREADS, 0.0))[threads] += milliseconds
            outside -= milliseconds
        found.setdefault(OUTSIDE, dict.fromkeys(THREADS, 0.0))[threads] = max(outside, 0.0)
    total = sum(times[1] for times in found.values())
    flat = sum(times[1] for times in found.values() if times[1] < FLAT * times[2])
    lost = sorted(found, key=lambda name: found[name][1] / 2 - found[name][2])[:6]
    return {
        "flat": round(flat / total, 3),
        "operations": {
            name: {str(threads): round(found[name][threads], 3) for threads in THREADS}
            for name in lost
        },
    }


def measure(name: str, path: HotPath, turns: int) -> dict[str, Any]:
    """Return the figures of a path."""
    work = path.prepare()
    for threads in THREADS:
        run_turn(work, threads, 1)
    passes = max(1, round(TURN * 1e3 / run_turn(work, 1, 1)[0]))
    load = Load()
    wall: dict[int, list[float]] = {threads: [] for threads in THREADS}
    cpu: dict[int, list[float]] = {threads: [] for threads in THREADS}
    main: dict[int, list[float]] = {threads: [] for threads in THREADS}
    for turn in range(turns):
        for threads in THREADS if turn % 2 == 0 else THREADS[::-1]:
            for times, one in zip((wall, cpu, main), run_turn(work, threads, passes), strict=True):
                times[threads].append(one)
    others = load.others()
    ratios = [one / two for one, two in zip(wall[1], wall[2], strict=True)]
    row = {
        "path": name,
        "what": path.what,
        "passes": passes,
        "ms": {str(n): round(statistics.median(wall[n]), 3) for n in THREADS},
        "best_ms": {str(n): round(min(wall[n]), 3) for n in THREADS},
        "cpu_ms": {str(n): round(statistics.median(cpu[n]), 3) for n in THREADS},
        "main_ms": {str(n): round(statistics.median(main[n]), 3) for n in THREADS},
        "speedup": round(statistics.median(ratios), 3),
        "speedup_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "speedup_best": round(min(wall[1]) / min(wall[2]), 3),
        "others": others,
    }
    if path.share == "flat":
        row |= operations(work, max(1, passes // 4))
    print(json.dumps({key: row[key] for key in row if key != "operations"}), flush=True)
    return row


def reason(row: dict[str, Any]) -> str:
    """Return why a path gains little, with the measured shares; empty if it reaches the goal."""
    if row["speedup"] >= GOAL:
        return ""
    path = PATHS[row["path"]]
    parts = [path.reason or "–"]
    if path.share == "flat":
        parts.append(f"{row['flat']:.0%} of the time in operations that gain less than {FLAT}")
    elif path.share == "main":
        share = row["main_ms"]["1"] / row["cpu_ms"]["1"]
        parts.append(f"{share:.0%} of the CPU time in the main thread")
    return "; ".join(parts)


def table(report: dict[str, Any] | None) -> str:
    """Return a Markdown table, a row per path, or a sentence where nothing has been measured."""
    if report is None:
        return "No table yet: this script needs a machine that nothing else uses.\n"
    lines = [
        f"| path | one run | one thread, ms | two threads, ms | speedup | CPU, two to one | "
        f"reason, below {GOAL} |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in report["results"]:
        one, two = row["ms"]["1"], row["ms"]["2"]
        lines.append(
            f"| {row['path']} | {row['what']} | {one:,.1f} | {two:,.1f} | {row['speedup']:.2f} | "
            f"{row['cpu_ms']['2'] / row['cpu_ms']['1']:.2f} | {reason(row)} |"
        )
    return "\n".join([*lines, ""])


def with_table(content: str, report: dict[str, Any] | None) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "threads", table(report))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--paths", nargs="+", choices=list(PATHS), default=list(PATHS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="write the table only")
    options = parser.parse_args()
    if not options.tables:
        paths.dataset()
        load = Load()
        results = [measure(name, PATHS[name], options.turns) for name in options.paths]
        others = load.others()
        report = {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "polars": pl.__version__,
            "cores": os.cpu_count(),
            "clock": "wall time; others is the share of the cores that other processes took",
            "command": f"python benchmarks/threads.py --turns {options.turns}",
            "seconds": round(time.perf_counter() - load.started, 1),
            "others": others,
            "results": results,
        }
        if others > QUIET and options.results == RESULTS:
            sys.exit(
                f"nothing written, as other processes took {others:.0%} of the cores: wait until "
                f"they take at most {QUIET:.0%}, or keep the figures elsewhere with --results FILE"
            )
        options.results.write_text(json.dumps(report, indent=1) + "\n")
    if options.results == RESULTS and options.paths == list(PATHS):
        measured = json.loads(RESULTS.read_text()) if RESULTS.exists() else None
        DOCS.write_text(with_table(DOCS.read_text(), measured))


if __name__ == "__main__":
    main()
