"""Memory of a loader: what each process holds of its own, and what processes share.

    python benchmarks/loader_memory.py                      # 10⁷ and 10⁸ interactions, 3 GB of disk
    python benchmarks/loader_memory.py --rows 1000000       # another size, added to the results
    python benchmarks/loader_memory.py --tables             # write the table of the page only

The data are random and written in the format of a prepared dataset: 100 interactions and one item
for each user, with times. ``training`` is the most common kind, all interactions of a user but the
last two train; in ``mixed`` every third interaction is history only, as with event types. For each
case two processes open the dataset at once, count the targets, build a loader and make batches.
*Private* is the peak of a process's anonymous memory beyond that of its imports; *mapped* is the
size of the pages that it shares with the other one, of which the system keeps one copy. Both are
MiB, of the process with more; times are CPU seconds of one thread, without checksums.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "loader_memory.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
ROWS_PER_USER = 100
CHUNK = 1 << 20
CASES: dict[str, dict[str, Any]] = {
    "interactions": {"unit": "interaction", "batch_size": 8192},
    "histories": {"batch_size": 128, "max_length": 50, "windows": "all"},
}
KINDS = ("training", "mixed")
BATCHES = 200


def write_dataset(folder: Path, num_rows: int, kind: str) -> None:
    """Write a random dataset, whose arrays are made and written in chunks."""
    from candid.data import PreparedDataset, Role

    num_users = num_items = num_rows // ROWS_PER_USER
    raw = folder / "raw"
    raw.mkdir()
    arrays: dict[str, Any] = {
        name: np.lib.format.open_memmap(raw / f"{name}.npy", "w+", dtype, (num_rows,))
        for name, dtype in (("item_ids", np.int32), ("roles", np.uint8), ("timestamps", np.int64))
    }
    rng = np.random.default_rng(0)
    for start in range(0, num_rows, CHUNK):
        rows = np.arange(start, min(start + CHUNK, num_rows))
        place = rows % ROWS_PER_USER
        roles = np.full(len(rows), Role.TRAIN, np.uint8)
        if kind == "mixed":
            roles[place % 3 == 2] = Role.HISTORY
        roles[place == ROWS_PER_USER - 2] = Role.VALIDATION
        roles[place == ROWS_PER_USER - 1] = Role.TEST
        arrays["item_ids"][rows[0] : rows[-1] + 1] = rng.integers(0, num_items, len(rows))
        arrays["roles"][rows[0] : rows[-1] + 1] = roles
        arrays["timestamps"][rows[0] : rows[-1] + 1] = 10**15 + rows * 10**6
    dataset = PreparedDataset(
        **arrays,
        user_offsets=np.arange(num_users + 1, dtype=np.int64) * ROWS_PER_USER,
        users=pl.DataFrame({"source_id": np.arange(num_users)}),
        items=pl.DataFrame({"source_id": np.arange(num_items)}),
    )
    dataset.save(folder / "data")
    for file in raw.iterdir():
        file.unlink()


def status_mib(name: str) -> float:
    """Return a field of ``/proc/self/status`` in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {name}")


def rollup_mib() -> dict[str, float]:
    """Return the sums of ``/proc/self/smaps_rollup`` in MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}


class PeakMemory:
    """The most anonymous memory of this process, read every 5 ms."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_done.wait(0.005):
            self.mib = max(self.mib, status_mib("RssAnon"))

    def stop(self) -> float:
        """Stop, and return the peak in MiB."""
        self._is_done.set()
        self._thread.join()
        return self.mib


def measure(path: Path, case: str) -> None:
    """Work as one process of a training; print the measurements, then wait for the others."""
    from candid.batches import BatchesConfig, Loader, epoch_targets
    from candid.data.store import open_dataset

    before = status_mib("RssAnon")
    peak = PeakMemory()
    config = BatchesConfig(**CASES[case], num_workers=0)
    seconds = {}
    started = time.process_time()
    dataset = open_dataset(path, verify=False)
    seconds["open"] = time.process_time() - started
    started = time.process_time()
    targets = epoch_targets(dataset, config)
    seconds["targets"] = time.process_time() - started
    started = time.process_time()
    loader = Loader(dataset, config, seed=0)
    loader.batch(0, 0)
    seconds["build"] = time.process_time() - started
    started, rows = time.process_time(), 0
    steps = min(BATCHES, loader.num_batches)
    for step in range(steps):
        rows += len(loader.batch(0, step))
    seconds["batch"] = (time.process_time() - started) / steps
    private = peak.stop() - before
    print(
        json.dumps(
            {
                "seconds": {name: round(value, 6) for name, value in seconds.items()},
                "rows_per_batch": rows / steps,
                "targets": targets.summary.trained,
                "private_mib": round(private, 1),
                "imports_mib": round(before, 1),
            }
        ),
        flush=True,
    )
    sys.stdin.readline()
    # Both processes are alive here, so that pages of both count half in Pss.
    memory = rollup_mib()
    mapped = sum(memory[name] for name in ("Shared_Clean", "Shared_Dirty"))
    print(
        json.dumps({"shared_mib": round(mapped, 1), "pss_mib": round(memory["Pss"], 1)}),
        flush=True,
    )
    sys.stdin.readline()


def measure_pair(path: Path, case: str) -> dict[str, Any]:
    """Return the measurements of two processes at once, those of the one with more memory."""
    command = [sys.executable, __file__, "--measure", str(path), case]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results: list[dict[str, Any]] = [{} for _ in processes]
    for _ in range(2):
        for process, result in zip(processes, results, strict=True):
            assert process.stdout is not None
            result.update(json.loads(process.stdout.readline()))
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
    for process in processes:
        process.wait()
    return max(results, key=lambda result: result["private_mib"])


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table, a row per case."""
    lines = [
        "| interactions | unit | roles | private MiB | mapped MiB | s to count | s to build "
        "| ms a batch |",
        "|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    for rows, cases in sorted(results.items(), key=lambda entry: int(entry[0])):
        for name, result in cases.items():
            kind, case = name.split(" ")
            seconds = result["seconds"]
            lines.append(
                f"| {int(rows):,} | {case} | {kind} | {result['private_mib']:.0f} | "
                f"{result['shared_mib']:.0f} | {seconds['targets']:.2f} | "
                f"{seconds['build']:.2f} | {seconds['batch'] * 1e3:.2f} |"
            )
    return "\n".join(lines) + "\n"


def with_table(content: str, results: dict[str, Any]) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "loader-memory", table(results))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10**7, 10**8])
    parser.add_argument("--folder", type=Path, help="where to write the data (default: temporary)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="write the table only")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(Path(options.measure[0]), options.measure[1])
        return
    if not options.tables:
        import candid

        report = json.loads(options.out.read_text()) if options.out.exists() else {"results": {}}
        report |= {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "command": "python benchmarks/loader_memory.py --rows "
            + " ".join(map(str, options.rows)),
            "rows_per_user": ROWS_PER_USER,
        }
        for num_rows in options.rows:
            cases = report["results"].setdefault(str(num_rows), {})
            for kind in KINDS:
                with TemporaryDirectory(dir=options.folder) as folder:
                    write_dataset(Path(folder), num_rows, kind)
                    for case in CASES:
                        name = f"{kind} {case}"
                        cases[name] = measure_pair(Path(folder) / "data", case)
                        print(num_rows, name, cases[name], flush=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    if options.out == RESULTS:
        results = json.loads(RESULTS.read_text())["results"]
        DOCS.write_text(with_table(DOCS.read_text(), results))


if __name__ == "__main__":
    main()
