"""Time and memory of candid index by one process and by two, on a run with random vectors.

    python benchmarks/index_processes.py              # 200,000 items × 128
    python benchmarks/index_processes.py --tables     # write the table of the page only

The run is trained for a few steps, so that its vectors are nearly random. Each case builds one
index with 100 queries and a given number of lists. "In memory" encodes all vectors first and builds
the index from them, in one process, as candid index --compare does. *Private* is the peak of a
process's anonymous memory beyond that of its imports, in MiB: pages of mapped files, which the
system can drop, do not count. CPU seconds are those of all processes, one thread each, imports
included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "index_processes.json"
DOCS = ROOT / "docs" / "guides" / "many_machines.md"
SIZES = {"items": 200_000, "dim": 128, "queries": 100, "num_lists": 447}
KINDS = ("pq", "ivf")
IMPORTS = "import faiss, polars, candid.runs.index_build, candid.cli.progress, torch.distributed"
IN_MEMORY = """
import sys, torch
from candid.index import FaissIndex
from candid.runs import load_run
from candid.runs.indexing import encode_benchmark_data
data = encode_benchmark_data(load_run(sys.argv[1]), num_queries=int(sys.argv[2]))
FaissIndex.Config(kind=sys.argv[3], num_lists=int(sys.argv[4])).build(data.item_vectors)
"""


def make_run(folder: Path) -> Path:
    """Train a run of a few steps."""
    from serve_run import make_run

    return make_run(folder, SIZES["items"], 5000, SIZES["dim"], steps=5)


def measure(command: Sequence[str]) -> dict[str, Any]:
    """Run a command to its end; MiB of anonymous memory of its processes that use torch."""
    environment = {name: os.environ[name] for name in os.environ if name != "RANK"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    before, begin = os.times(), time.perf_counter()
    peaks: dict[int, float] = {}
    call = [sys.executable, *command]
    with subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            for pid in (process.pid, *ranks(process.pid)):
                peaks[pid] = max(peaks.get(pid, 0.0), anonymous(pid))
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    seconds, after = time.perf_counter() - begin, os.times()
    # Of several processes the first only launches the others.
    working = list(peaks.values())[min(1, len(peaks) - 1) :]
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"anonymous_mib": working, "cpu_seconds": round(cpu, 1), "seconds": round(seconds, 1)}


def ranks(pid: int) -> list[int]:
    """Return the children of a launcher that it has given a rank, in this order."""
    found = {}
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            for variable in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                if variable.startswith(b"RANK="):
                    found[int(variable[5:])] = int(child)
    except OSError:
        pass  # A process has ended.
    return [found[rank] for rank in sorted(found)]


def anonymous(pid: int) -> float:
    """Return the anonymous memory of a process now, in MiB; 0 after its end."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
    return sum(sizes) / 1024


def run_cases(folder: Path) -> list[dict[str, Any]]:
    """Measure every case."""
    run = make_run(folder)
    imports = max(measure(["-c", f"{IMPORTS}; import time; time.sleep(.1)"])["anonymous_mib"])
    results = []
    for kind in KINDS:
        lists, queries = str(SIZES["num_lists"]), str(SIZES["queries"])
        commands = {"in memory": ["-c", IN_MEMORY, str(run), queries, kind, lists]}
        for processes in (1, 2):
            settings = ("index.type=faiss", f"index.kind={kind}", f"index.num_lists={lists}")
            commands[f"{processes}"] = [
                *("-m", "candid", "index", str(run), "--out", str(folder / f"{kind}-{processes}")),
                *(argument for setting in settings for argument in ("--set", setting)),
                *("--queries", queries, "--processes", str(processes), "--json", "--quiet"),
            ]
        for case, command in commands.items():
            measured = measure(command)
            private = [round(size - imports, 1) for size in measured.pop("anonymous_mib")]
            results.append({"kind": kind, "processes": case, "private_mib": private, **measured})
            print(json.dumps(results[-1]), flush=True)
        index = next((folder / f"{kind}-1").glob("index-*.bin"))
        for result in results[-len(commands) :]:
            result["index_mib"] = round(index.stat().st_size / 2**20, 1)
    return results


def with_table(page: str, report: dict[str, Any]) -> str:
    """Return the page with the table of the results."""
    sizes = report["sizes"]
    vectors = sizes["items"] * sizes["dim"] * 4 / 2**20
    lines = [
        f"{sizes['items']:,} items × {sizes['dim']}, {vectors:,.0f} MiB of vectors; FAISS, "
        f"{sizes['num_lists']} lists. The machine had other work.",
        "",
        "| kind | index, MiB | processes | private MiB, rank 0 | rank 1 | CPU s | s |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for result in report["results"]:
        first, second = [*(f"{size:,.0f}" for size in result["private_mib"]), "–"][:2]
        times = f"{result['cpu_seconds']:,.0f} | {result['seconds']:,.0f}"
        lines.append(
            f"| `{result['kind']}` | {result['index_mib']:,.0f} | {result['processes']} | "
            f"{first} | {second} | {times} |"
        )
    return with_block(page, "index processes", "\n".join(lines) + "\n")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="write the table only")
    given = parser.parse_args()
    if not given.tables:
        with TemporaryDirectory() as folder:
            results = run_cases(Path(folder))
        report = {
            "command": "python benchmarks/index_processes.py",
            "what": "peak of private memory of each process, beyond its imports; CPU seconds of "
            "all processes, one thread each; the machine was shared",
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "sizes": SIZES,
            "results": results,
        }
        given.results.write_text(json.dumps(report, indent=1) + "\n")
    if given.results == RESULTS or given.tables:
        DOCS.write_text(with_table(DOCS.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
