"""Time and peak memory of ``prepare``, by format and number of interactions.

    python benchmarks/prepare_speed.py --out benchmarks/results/prepare_speed.json

Each measurement runs in a separate process on a generated log: users uniform, items Zipf,
times ascending, ids integers (``parquet``, ``csv``) or text of 15 characters with ISO dates
(``text-csv``). Peak memory is the maximum resident set of that process. ``cpu_s`` counts all
threads and does not depend on what else the machine does; ``wall_s`` does, so ``load`` (runnable
processes just before) is stated with it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import candid

CHILD = """
import json, resource, sys, time
from candid.data import DataConfig, prepare_folder
import_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = time.perf_counter()
result = prepare_folder(DataConfig.model_validate_json(sys.argv[1]), sys.argv[2])
wall = time.perf_counter() - start
usage = resource.getrusage(resource.RUSAGE_SELF)
start = time.perf_counter()
assert prepare_folder(DataConfig.model_validate_json(sys.argv[1]), sys.argv[2]).up_to_date
print(json.dumps({
    "wall_s": round(wall, 2),
    "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
    "peak_mib": round(usage.ru_maxrss / 1024),
    "imports_mib": round(import_mib),
    "up_to_date_s": round(time.perf_counter() - start, 3),
    "counts": result.report["counts"],
}))
"""


def write_log(folder: Path, rows: int, kind: str, seed: int) -> Path:
    """Write ``rows`` interactions and return the file."""
    generator = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "user_id": generator.integers(0, max(rows // 10, 10), rows),
            "item_id": generator.zipf(1.2, rows) % max(rows // 20, 10),
            "timestamp": 1_500_000_000 + np.sort(generator.integers(0, 10**8, rows)),
        }
    )
    if kind == "text-csv":
        frame = frame.with_columns(
            pl.format("user-{}", pl.col("user_id").cast(pl.String).str.zfill(10)).alias("user_id"),
            pl.format("item-{}", pl.col("item_id").cast(pl.String).str.zfill(10)).alias("item_id"),
            pl.from_epoch("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
    path = folder / ("log.parquet" if kind == "parquet" else "log.csv")
    if kind == "parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path)
    return path


def measure(rows: int, kind: str, settings: dict[str, object], seed: int) -> dict[str, object]:
    """Prepare one generated log in a fresh process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_log(folder, rows, kind, seed)
        config = {"interactions": str(path), "time": "timestamp", **settings}
        load = os.getloadavg()[0]
        command = [sys.executable, "-c", CHILD, json.dumps(config), str(folder / "out")]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        size = path.stat().st_size
    return {
        "rows": rows,
        "kind": kind,
        "settings": settings,
        "file_mib": round(size / 2**20),
        "load": round(load, 1),
        **json.loads(output),
    }


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--kinds", nargs="+", default=["parquet", "csv", "text-csv"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the document to this file")
    arguments = parser.parse_args()
    runs = [
        measure(rows, kind, {}, arguments.seed)
        for rows in arguments.rows
        for kind in arguments.kinds
    ]
    everything = {"k_core": 5, "deduplicate": "last", "split": {"kind": "temporal"}}
    runs.append(measure(max(arguments.rows), "parquet", everything, arguments.seed))
    document = {
        "benchmark": "prepare_speed",
        "versions": {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "polars": pl.__version__,
            "numpy": np.__version__,
        },
        "machine": {"cpus": len(os.sched_getaffinity(0)), "architecture": platform.machine()},
        "settings": {"seed": arguments.seed, "polars_threads": pl.thread_pool_size()},
        "runs": runs,
    }
    text = json.dumps(document, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
