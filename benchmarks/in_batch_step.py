"""CPU time and memory of steps with candidates from the batch: two source trees in turn.

    git worktree add ../before 974dd33
    python benchmarks/in_batch_step.py --before ../before

Data: MovieLens-1M (folder ml-1m-sequences of ``CANDID_DATA``). Each tree runs in a process of its
own; the two take turns, and a turn is two steps, of which the second is timed. ``seconds`` is CPU
time on one thread: the median of the turns and the range; ``ratio`` is the median of the ratios of
a turn. A step is: sample, look up, softmax, backward to queries and table; width 64. ``peak_mib``
is the growth of the resident set in two steps, in a process of its own; small ones vary between
runs. ``masks`` is the share of a step that disappears if nothing is masked, the median of further
turns.

Cases (3,416 items):

- histories: 13,800 positives, the last 200 of users in random order.
- rows: 8,192 random interactions, with vectors of their own for each row (``in_batch_softmax``), so
  that samples are not merged.
- memory: 4,096 random interactions and 8,192 in the cross-batch memory.
- mixture: 8,192 random interactions, in-batch candidates and 4,096 uniform ones.

``shares`` compares merged with single samples in this tree, 8,192 rows, by the share of distinct
items: the limit ``MAX_SHARE`` of ``candid.losses.merged_samples``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import candid
from candid.losses import in_batch_softmax, sampled_softmax, tiled_softmax
from candid.losses.blockwise.accidental_hits import AccidentalHits, IdMatch
from candid.losses.blockwise.native import native_pass
from candid.samplers import CrossBatchMemory, InBatch, Mixture, Uniform
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "in_batch_step.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
WIDTH, HISTORY, HISTORY_ROWS, ROWS, SEED = 64, 200, 13_800, 8192, 0
CASES = ("histories", "rows", "memory", "mixture")
PRECISIONS = ("float32", "bfloat16")
SHARES = (0.5, 0.8, 0.9, 1.0)

Step = Callable[[str], None]


def batches(data: Path) -> tuple[int, torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Return the number of items, their counts, and items and users of batches by case."""
    table = pl.read_parquet(data / "ml-1m-sequences" / "interactions.parquet")
    table = table.filter(pl.col("split") == "train").sort("user_id", "position")
    items, users = (
        torch.from_numpy(table[name].to_numpy().astype(np.int64)) for name in ("item_id", "user_id")
    )
    num_items = int(items.max()) + 1
    counts = torch.bincount(items, minlength=num_items).double()
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randperm(len(items), generator=generator)
    recent = table.with_row_index().group_by("user_id", maintain_order=True).tail(HISTORY)
    recent = torch.from_numpy(recent["index"].to_numpy().astype(np.int64))
    order = torch.rand(int(users.max()) + 1, generator=generator)
    recent = recent[torch.argsort(order[users[recent]], stable=True)][:HISTORY_ROWS]
    chosen = {
        "histories": recent,
        "rows": rows[:ROWS],
        "memory": rows[: ROWS // 2],
        "mixture": rows[:ROWS],
        "small": rows[:400],
        "remembered": rows[ROWS : 2 * ROWS],
    }
    return num_items, counts, {name: (items[at], users[at]) for name, at in chosen.items()}


def stepper(case: str, data: Path) -> Step:
    """Return a function that runs one step of a case in a precision."""
    num_items, counts, of_case = batches(data)
    ids, users = of_case[case]
    generator = torch.Generator().manual_seed(SEED)
    query, table = (
        (0.3 * torch.randn(size, WIDTH, generator=generator)).requires_grad_()
        for size in (len(ids), num_items)
    )
    sampler: Any = InBatch(counts)
    if case == "memory":
        sampler = CrossBatchMemory(counts, size=ROWS)
        sampler.observe(*of_case["remembered"])
    if case == "mixture":
        sampler = Mixture([InBatch(counts), Uniform(num_items, num_candidates=ROWS // 2)])

    def step(precision: str) -> None:
        if case == "rows":
            vectors = torch.nn.functional.embedding(ids, table)
            out = in_batch_softmax(
                query,
                vectors,
                ids,
                frequency=sampler,
                user_ids=users,
                correction="refined",
                precision=precision,
            )
        else:
            candidates = sampler.sample(ids, users, generator=generator)
            out = sampled_softmax(
                query, table, ids, candidates, correction="refined", precision=precision
            )
        out.loss.mean().backward()
        query.grad = table.grad = None

    return step


def nothing_masked(comparison: Any, *_: Any) -> AccidentalHits:
    """Stand for a comparison without masks."""
    ids = comparison.positive_ids
    return AccidentalHits(IdMatch(ids, torch.full_like(comparison.candidates.ids, -1)))


def seconds_of(work: Callable[[], None]) -> float:
    """Run twice and measure the CPU seconds of the second run."""
    work()
    started = time.process_time()
    work()
    return time.process_time() - started


def peak_mib(work: Callable[[], None]) -> float:
    """Measure the growth of the resident set over two runs, in MiB (Linux only).

    In a process that has not run a step of this size: freed memory would be used again.
    """

    def status(key: str) -> int:
        match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert match
        return int(match[1])

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    work()
    work()
    return (status("VmHWM") - before) / 1024


def serve(data: Path) -> None:
    """Run what the lines of standard input name: measure, case, precision."""
    torch.set_num_threads(1)
    steps = {case: stepper(case, data) for case in CASES}
    stepper("small", data)("float32")  # loads what the first step of any process needs
    masked = tiled_softmax._masked
    for line in sys.stdin:
        kind, case, precision = line.split()

        def work(step: Step = steps[case], precision: str = precision) -> None:
            step(precision)

        tiled_softmax._masked = nothing_masked if kind == "unmasked" else masked
        print(peak_mib(work) if kind == "peak" else seconds_of(work), flush=True)


class Tree:
    """A process that runs steps with the source of one tree."""

    def __init__(self, tree: Path, data: Path) -> None:
        self._tree, self._data = tree, data
        source = (tree / "src").resolve()
        settings = {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "CANDID_DATA": str(data)}
        environment = os.environ | settings
        command = [sys.executable, __file__, "--serve"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measure(self, kind: str, case: str, precision: str) -> float:
        """Return seconds or MiB."""
        assert self._process.stdin
        assert self._process.stdout
        print(kind, case, precision, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def peak_mib(self, case: str, precision: str) -> float:
        """Return the peak of two steps in a new process."""
        other = Tree(self._tree, self._data)
        peak = other.measure("peak", case, precision)
        other.close()
        return peak

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(trees: dict[str, Tree], repeats: int) -> Iterator[dict[str, Any]]:
    """Measure every case in turn: one line per case and precision."""
    for case in CASES:
        for precision in PRECISIONS:
            peaks = {name: tree.peak_mib(case, precision) for name, tree in trees.items()}
            turns: list[dict[str, float]] = []
            for _ in range(repeats):
                turn = {}
                for name, tree in trees.items():
                    turn[name] = tree.measure("step", case, precision)
                    if case == "rows":
                        turn[f"{name} unmasked"] = tree.measure("unmasked", case, precision)
                turns.append(turn)
            line: dict[str, Any] = {"case": case, "precision": precision, "repeats": repeats}
            for name in trees:
                seconds = [turn[name] for turn in turns]
                line[name] = {
                    "seconds": round(statistics.median(seconds), 4),
                    "range": [round(min(seconds), 4), round(max(seconds), 4)],
                    "peak_mib": round(peaks[name], 1),
                }
                if case == "rows":
                    shares = [1.0 - turn[f"{name} unmasked"] / turn[name] for turn in turns]
                    line[name]["masks"] = round(statistics.median(shares), 3)
            ratios = [turn["before"] / turn["now"] for turn in turns]
            line["ratio"] = round(statistics.median(ratios), 2)
            print(line, flush=True)
            yield line


def measure_shares(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure merged and single samples in turn, by the share of distinct items."""
    from candid.losses import merged_samples

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    for share in SHARES:
        num_items = round(share * ROWS)
        ids = torch.arange(ROWS) % num_items
        users = torch.arange(ROWS) // 8
        sampler = InBatch(torch.ones(num_items))
        query, table = (
            (0.3 * torch.randn(size, WIDTH, generator=generator)).requires_grad_()
            for size in (ROWS, num_items)
        )
        for precision in PRECISIONS:

            def work(
                limit: float, step: Any = (query, table, ids, users, sampler, precision)
            ) -> float:
                query, table, ids, users, sampler, precision = step
                merged_samples.MAX_SHARE = limit
                started = time.process_time()
                candidates = sampler.sample(ids, users)
                loss = sampled_softmax(
                    query, table, ids, candidates, correction="refined", precision=precision
                )
                loss.loss.mean().backward()
                return time.process_time() - started

            ratios = []
            for turn in range(repeats + 1):
                merged, single = work(1.0), work(0.0)
                if turn:
                    ratios.append(merged / single)
            line = {"share": share, "precision": precision, "repeats": repeats}
            line["merged to single"] = round(statistics.median(ratios), 3)
            print(line, flush=True)
            yield line


def table(results: list[dict[str, Any]]) -> str:
    """Write the Markdown table: a row per case and precision."""
    rows = ["| candidates | precision | before, s / MiB | now, s / MiB | before to now |"]
    rows.append("|---|---|---:|---:|---:|")
    for line in results:
        cells = [
            f"{line[name]['seconds']:.2f} / {line[name]['peak_mib']:.0f}"
            for name in ("before", "now")
        ]
        rows.append(
            f"| {line['case']} | {line['precision']} | {' | '.join(cells)} | {line['ratio']:.1f} |"
        )
    return "\n".join(rows) + "\n"


def with_table(content: str, results: list[dict[str, Any]]) -> str:
    """Replace the generated block of the docs."""
    return with_block(content, "in-batch step", table(results))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="the other source tree")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = Path(os.environ.get("CANDID_DATA", "../shared/data"))
    if options.serve:
        return serve(data)
    trees = {"before": Tree(options.before, data), "now": Tree(ROOT, data)}
    commit = ["git", "-C", str(options.before), "rev-parse", "--short", "HEAD"]
    report: dict[str, Any] = {
        "candid": candid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native_kernel": native_pass() is not None,
        "command": f"python benchmarks/in_batch_step.py --before BEFORE "
        f"--repeats {options.repeats}",
        "before": subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip(),
        "note": "CPU seconds on one thread; the machine ran other programs, so read the ratios",
        "width": WIDTH,
        "results": [],
        "shares": [],
    }
    for name, lines in (
        ("results", measure(trees, options.repeats)),
        ("shares", measure_shares(options.repeats)),
    ):
        for line in lines:
            report[name].append(line)
            RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    for tree in trees.values():
        tree.close()
    DOCS.write_text(with_table(DOCS.read_text(), report["results"]))


if __name__ == "__main__":
    main()
