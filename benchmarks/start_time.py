"""CPU time of the command line before work begins, and of ``candid prepare``.

    python benchmarks/start_time.py

CPU seconds (user and system) of ``python -m candid`` processes in turn: the best and the median.
``tests/cli/test_help.py`` checks that none of them imports torch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "start_time.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
PYTHON = [sys.executable, "-m", "candid"]


def cpu_seconds(command: list[str]) -> float:
    """Return the CPU seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_log(file: Path, num_rows: int, seed: int = 0) -> None:
    """Write interactions of a tenth as many users with a hundredth as many items."""
    rng = np.random.default_rng(seed)
    pl.DataFrame(
        {
            "user_id": rng.integers(0, max(1, num_rows // 10), num_rows),
            "item_id": (rng.random(num_rows) ** 2 * max(1, num_rows // 100)).astype(np.int64),
            "time": np.arange(num_rows),
        }
    ).write_parquet(file)


def with_table(content: str, results: dict[str, dict[str, float]]) -> str:
    """Replace the generated block of the docs by the table of the results."""
    lines = ["| | best, CPU s | median, CPU s |", "|---|---:|---:|"]
    lines += [
        f"| `{name}` | {row['best']:.2f} | {row['median']:.2f} |" for name, row in results.items()
    ]
    return with_block(content, "start", "\n".join([*lines, ""]))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rows", type=int, default=1_000_000, help="interactions to prepare")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(temporary) / "log.parquet"
        write_log(log, given.rows)
        prepare = [*PYTHON, "prepare", "--interactions", str(log), "--order", "time", "--quiet"]
        seconds: dict[str, list[float]] = {}
        for turn in range(given.repeats):
            commands = {
                "python": [sys.executable, "-c", "pass"],
                "candid --help": [*PYTHON, "--help"],
                "candid train --help": [*PYTHON, "train", "--help"],
                "candid prepare": [*prepare, "--out", str(Path(temporary) / f"data{turn}")],
                "import torch": [sys.executable, "-c", "import torch"],
            }
            for name, command in commands.items():
                seconds.setdefault(name, []).append(cpu_seconds(command))
    rows: dict[str, Any] = {
        name: {"best": round(min(values), 3), "median": round(statistics.median(values), 3)}
        for name, values in seconds.items()
    }
    print(json.dumps(rows, indent=2))
    result = {
        "command": "python benchmarks/start_time.py",
        "what": "CPU seconds of a process, user and system; the machine was shared",
        "repeats": given.repeats,
        "rows_to_prepare": given.rows,
        "threads": os.environ.get("POLARS_MAX_THREADS", "default"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "results": rows,
    }
    given.results.write_text(json.dumps(result, indent=2) + "\n")
    if given.results == RESULTS:
        DOCS.write_text(with_table(DOCS.read_text(), rows))
    print(f"written to {given.results}")


if __name__ == "__main__":
    main()
