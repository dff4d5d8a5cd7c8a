"""Peak memory of ``prepare`` within a limit, by engine and number of interactions.

    python benchmarks/prepare_memory.py                          # 1e6 and 1e7 rows, a few minutes
    python benchmarks/prepare_memory.py --rows 100000000 --engines duckdb
    python benchmarks/prepare_memory.py --tables                 # docs/guides/data_sources.md only

A log in parquet files of a million rows: users uniform, with 100 rows on average; items Zipf, one
for 1,000 rows; times ascending over all files. ``text`` has ids of 15 characters; ``sorted`` has
the rows sorted by user and time, and ``order = "sorted"``. Each measurement is a process of its
own. ``peak_mib`` is its peak resident set (VmHWM), ``imports_mib`` that before the preparation;
``disk_mib`` is the most that its temporary folder held, seen four times a second. ``cpu_s`` counts
all threads and does not depend on what else the machine does; ``wall_s`` does. The fingerprint
shows that both engines make the same dataset. Measurements that the results hold already are not
repeated, so that a stopped benchmark continues. The logs stay in ``--work``; 1e8 rows take 2 GB
there, and 10 GB more while they are prepared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import candid
from candid.atomic import write_json
from candid.data.duckdb_engine import BYTES_PER_ID, FIXED_BYTES, MIN_SHARE
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "prepare_memory.json"
DOCS = ROOT / "docs" / "guides" / "data_sources.md"
EXTRAPOLATED_ROWS = 10**9
LIMIT = "2GiB"
"""Limit of memory of the runs of DuckDB, unless another one is given."""
FILE_ROWS = 1_000_000
KINDS = ("integer", "text", "sorted")
CHILD = """
import json, os, sys, time
from candid.data import DataConfig, prepare_folder
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return round(int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) / 1024)
imports, start = peak(), time.perf_counter()
config, out, engine, limit = sys.argv[1:]
config = DataConfig.model_validate_json(config)
steps = []
def step(line):
    steps.append({"step": line.split(" ")[0], "wall_s": round(time.perf_counter() - start, 1),
                  "peak_mib": peak()})
result = prepare_folder(config, out, progress=step, engine=engine, memory_limit=limit or None)
times = os.times()
print(json.dumps({
    "wall_s": round(time.perf_counter() - start, 1),
    "cpu_s": round(times.user + times.system, 1),
    "peak_mib": peak(),
    "imports_mib": imports,
    "steps": steps,
    "counts": result.report["counts"],
    "fingerprint": result.report["fingerprint"],
}))
"""


def write_log(work: Path, rows: int, kind: str, seed: int) -> Path:
    """Return a folder with the files of a log; it is written unless it is complete."""
    folder = work / f"{kind}-{rows}-{seed}"
    if folder.exists():
        return folder
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    num_users, num_items = max(rows // 100, 10), max(rows // 1000, 10)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        rng = np.random.default_rng([seed, number])
        size = min(FILE_ROWS, rows - start)
        users = rng.integers(0, num_users, size)
        if kind == "sorted":
            # Each file has users of its own, so that all files are sorted together.
            users = np.sort(start // 100 + users % max(size // 100, 1))
        times = np.sort(rng.integers(0, 10**6, size)) + (0 if kind == "sorted" else number * 10**6)
        if kind == "sorted":
            order = np.lexsort((times, users))
            times = times[order]
        frame = pl.DataFrame(
            {
                "user_id": users,
                "item_id": rng.zipf(1.2, size) % num_items,
                "timestamp": 1_500_000_000 + times,
            }
        )
        if kind == "text":
            frame = frame.with_columns(
                pl.format("user-{}", pl.col("user_id").cast(pl.String).str.zfill(10)).alias(
                    "user_id"
                ),
                pl.format("item-{}", pl.col("item_id").cast(pl.String).str.zfill(10)).alias(
                    "item_id"
                ),
            )
        frame.write_parquet(temporary / f"{number:05}.parquet")
    temporary.rename(folder)
    return folder


class _DiskWatch(threading.Thread):
    """Largest size of the hidden folders of a folder, which hold temporary files."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.largest = 0
        self._folder, self._end = folder, threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.25):
            size = 0
            for path in self._folder.glob(".*/**/*"):
                try:
                    size += path.stat().st_size
                except OSError:  # removed in the meantime
                    continue
            self.largest = max(self.largest, size)

    def stop(self) -> int:
        self._end.set()
        self.join()
        return self.largest


def measure(work: Path, rows: int, kind: str, engine: str, limit: str, seed: int) -> dict[str, Any]:
    """Prepare one log in a fresh process."""
    log = write_log(work, rows, kind, seed)
    config = {"interactions": str(log), "time": "timestamp"}
    if kind == "sorted":
        config["order"] = "sorted"
    folder = work / "prepared"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    watch = _DiskWatch(folder)
    watch.start()
    load = os.getloadavg()[0]
    command = [sys.executable, "-c", CHILD, json.dumps(config), str(folder / "out"), engine]
    output = subprocess.run([*command, limit], check=True, capture_output=True, text=True).stdout
    disk = watch.stop()
    shutil.rmtree(folder)
    return {
        "rows": rows,
        "kind": kind,
        "engine": engine,
        "memory_limit": limit or None,
        "seed": seed,
        "load": round(load, 1),
        "disk_mib": round(disk / 2**20),
        **json.loads(output),
    }


def main() -> None:
    """Measure what the results do not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--engines", nargs="+", default=["memory", "duckdb"])
    parser.add_argument("--memory-limit", default=LIMIT, help="of the engine duckdb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/prepare_memory"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="write the figures of the page only")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    if arguments.out.exists():
        runs = json.loads(arguments.out.read_text())["runs"]
    if arguments.tables:
        DOCS.write_text(with_figures(DOCS.read_text(), runs))
        return
    for rows in arguments.rows:
        for kind in arguments.kinds:
            for engine in arguments.engines:
                limit = arguments.memory_limit if engine == "duckdb" else ""
                key = (rows, kind, engine, limit or None, arguments.seed)
                names = ("rows", "kind", "engine", "memory_limit", "seed")
                if any(tuple(run[name] for name in names) == key for run in runs):
                    continue
                run = measure(arguments.work, rows, kind, engine, limit, arguments.seed)
                shown = ("rows", "kind", "engine", "cpu_s", "wall_s", "peak_mib", "disk_mib")
                print({name: run[name] for name in shown}, flush=True)
                runs.append(run)
                write_json(arguments.out, document(runs))


def logs_of_extrapolation(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs of DuckDB on integers from 10⁷ rows on, within ``LIMIT``, by rows."""
    chosen = [
        run
        for run in runs
        if (run["engine"], run["kind"], run["memory_limit"]) == ("duckdb", "integer", LIMIT)
        and run["rows"] >= 10**7
    ]
    return sorted(chosen, key=lambda run: run["rows"])


def extrapolated(
    logs: list[dict[str, Any]], rows: int = EXTRAPOLATED_ROWS
) -> dict[str, tuple[float, float]]:
    """Return CPU seconds and temporary MiB of more rows.

    Args:
        logs: runs by ascending number of rows, at least two.
        rows: their number.

    Returns:
        by name the value on the line of least squares through all logs, and on the line through the
        largest two.
    """
    result = {}
    for name in ("cpu_s", "disk_mib"):
        points = np.array([(run["rows"], run[name]) for run in logs], dtype=np.float64)
        fits = (np.polyfit(*part.T, deg=1) for part in (points, points[-2:]))
        first, last = (float(np.polyval(fit, rows)) for fit in fits)
        result[name] = first, last
    return result


def least_memory(num_ids: int) -> dict[str, float]:
    """Return MiB of the rule of the engine for integer ids: of ids, and the least limit."""
    ids = num_ids * (BYTES_PER_ID + 8)
    return {"ids": ids / 2**20, "limit": (FIXED_BYTES + ids + MIN_SHARE) / 2**20}


def with_figures(page: str, runs: list[dict[str, Any]]) -> str:
    """Return the page with the table of the runs of at least 10⁷ rows, and the extrapolation."""
    lines = [
        "| rows | ids | engine | limit | peak, MiB | CPU s | temporary files, MiB |",
        "|---:|---|---|---|---:|---:|---:|",
    ]
    for run in sorted(runs, key=lambda run: (run["rows"], run["engine"], run["kind"])):
        if run["rows"] >= 10**7:
            cells = [f"{run['rows']:,}", run["kind"], run["engine"], run["memory_limit"] or "–"]
            cells += [f"{run[name]:,.0f}" for name in ("peak_mib", "cpu_s", "disk_mib")]
            lines.append(f"| {' | '.join(cells)} |")
    logs = logs_of_extrapolation(runs)
    (cpu, cpu_two), (disk, disk_two) = extrapolated(logs).values()
    largest = logs[-1]
    scale = EXTRAPOLATED_ROWS // largest["rows"]
    num_ids = scale * (largest["counts"]["users"] + largest["counts"]["items"])
    memory = least_memory(num_ids)
    share = int(LIMIT.removesuffix("GiB")) * 1024 - FIXED_BYTES / 2**20 - memory["ids"]
    sizes = [f"{run['rows']:,}" for run in logs]
    row_bytes = [f"{run['disk_mib'] * 2**20 / run['rows']:.0f}" for run in logs]
    text = (
        f"{EXTRAPOLATED_ROWS:,} rows were not measured. **Memory**: by the rule of the engine, a "
        f"limit holds 768 MiB, {BYTES_PER_ID + 8} bytes for each user and each item with integer "
        f"ids, and at least {MIN_SHARE // 2**20} MiB for DuckDB. With {scale} times the users and "
        f"items of {sizes[-1]} rows, {num_ids:,}, the least limit is {memory['limit']:,.0f} MiB, "
        f"and within {LIMIT} DuckDB is left {share:,.0f} MiB. All peaks of the table are below "
        "their limit. "
        f"**Time and disk**: the line of least squares through {', '.join(sizes[:-1])} and "
        f"{sizes[-1]} rows gives {cpu:,.0f} CPU seconds and {disk / 1024:,.0f} GiB of temporary "
        f"files; the line through the largest two gives {cpu_two:,.0f} and {disk_two / 1024:,.0f}. "
        f"Neither grows quite linearly: temporary files took {', '.join(row_bytes[:-1])} and "
        f"{row_bytes[-1]} bytes for each row, because the sort of the largest log exceeded its "
        "memory."
    )
    lines += ["", *textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)]
    return with_block(page, "prepare memory", "\n".join(lines) + "\n")


def document(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the results as one JSON document."""
    return {
        "benchmark": "prepare_memory",
        "command": "python benchmarks/prepare_memory.py",
        "versions": {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "polars": pl.__version__,
            "duckdb": version("duckdb"),
            "numpy": np.__version__,
        },
        "machine": {"cpus": len(os.sched_getaffinity(0)), "architecture": platform.machine()},
        "settings": {"polars_threads": pl.thread_pool_size(), "file_rows": FILE_ROWS},
        "runs": runs,
    }


if __name__ == "__main__":
    main()
