"""CPU time of a training over two processes, against one process with the same batches.

    python benchmarks/process_overhead.py            # measure; write the results and the page
    python benchmarks/process_overhead.py --tables   # write the table of the page only

Both train on the same random data with the same batches, one thread each. A part of a step is
either divided over the processes (histories, loss) or repeated by each of them (the batch, the
sample, the vectors of candidates, the optimizer of whole tables), and two processes send messages.
Times are CPU milliseconds of all processes in one step: of a process with all its threads, the mean
over the quarter of its steps with the least CPU time, then summed over processes. Other programs
on the machine lengthen steps, also in CPU time. Parts do not contain each other: the time of a
collective inside a look-up counts as "collectives" alone. All runs take turns. Wall time is
reported, but depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from candid.distributed import open_group
from candid.training import Trainer
from page_blocks import with_block
from process_messages import on_processes
from process_trainings import make_trainer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "process_overhead.json"
DOCS = ROOT / "docs" / "guides" / "many_machines.md"
CASES = ("dense, in-batch", "row_adam, in-batch", "sharded_row_adam, in-batch")
SIZES = {"num_users": 3000, "num_items": 20_000, "width": 64, "length": 50, "batch_size": 128}
WARM_UP, STEPS = 3, 8
PARTS = {
    "batch": "the batch",
    "histories": "histories, forward",
    "sample": "the sample",
    "items": "item vectors, forward",
    "loss": "loss, forward",
    "backward": "backward",
    "gradients": "sums of gradients, except collectives",
    "optimizer": "optimizer",
    "collectives": "collectives",
    "rest": "rest",
}


class Parts:
    """CPU seconds of the parts of a step, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the block to a part."""
        started = time.process_time()
        self._inside.append(0.0)
        try:
            yield
        finally:
            taken = time.process_time() - started
            inside = self._inside.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + taken - inside
            if self._inside:
                self._inside[-1] += taken

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Add every call of a method of an object to a part."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **keywords: Any) -> Any:
            with self.part(name):
                return original(*args, **keywords)

        setattr(owner, method, timed)


def run(case: str, folder: Path) -> dict[str, Any]:
    """Train a case on this process; return seconds and traffic by step."""
    parts = Parts()
    snapshots: list[dict[str, Any]] = []

    class TimedTrainer(Trainer):
        def step(self, *args: Any, **keywords: Any) -> Any:
            traffic = self.group.traffic
            snapshots.append(
                {
                    "cpu": time.process_time(),
                    "wall": time.perf_counter(),
                    "bytes": sum(traffic.num_bytes.values()),
                    "messages": sum(traffic.messages.values()),
                    **parts.seconds,
                }
            )
            return super().step(*args, **keywords)

    trainer = make_trainer(
        folder, case, max_steps=WARM_UP + STEPS + 1, trainer_type=TimedTrainer, **SIZES
    )
    step = trainer._step
    parts.wrap(trainer.loader, "batch", "batch")
    parts.wrap(trainer.model, "encode_queries", "histories")
    parts.wrap(trainer.model, "encode_items", "items")
    parts.wrap(step.candidate_loss, "_sample", "sample")
    parts.wrap(step.candidate_loss, "_compare", "loss")
    parts.wrap(step._encoder, "backward", "backward")
    parts.wrap(step._sums, "add", "gradients")
    parts.wrap(trainer.optimizer, "step", "optimizer")
    collective = trainer.group.collective

    @contextmanager
    def timed_collective(*args: Any) -> Iterator[None]:
        with parts.part("collectives"), collective(*args):
            yield

    trainer.group.collective = timed_collective
    trainer.run()
    used = snapshots[WARM_UP:]
    keys = sorted({key for snapshot in used for key in snapshot})
    return {
        key: [after.get(key, 0) - before.get(key, 0) for before, after in pairwise(used)]
        for key in keys
    }


def _rank_main(rank: int, num_processes: int, case: str, folder: str) -> None:
    torch.set_num_threads(1)
    if num_processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_processes
        )
    with open_group(300):
        result = run(case, Path(folder))
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(result))


def summary(runs: Sequence[Sequence[Mapping[str, Sequence[float]]]]) -> dict[str, Any]:
    """Return milliseconds, bytes and messages of a step from the ranks of several runs."""
    num_processes = len(runs[0])
    means = []
    for rank in range(num_processes):
        joined = {key: [v for ranks in runs for v in ranks[rank][key]] for key in runs[0][rank]}
        order = np.argsort(joined["cpu"])[: max(1, len(joined["cpu"]) // 4)]
        means.append({key: float(np.mean(np.array(v)[order])) for key, v in joined.items()})

    parts = {key: 1e3 * sum(m.get(key, 0.0) for m in means) for key in PARTS if key != "rest"}
    cpu = 1e3 * sum(m["cpu"] for m in means)
    parts["rest"] = cpu - sum(parts.values())
    return {
        "processes": num_processes,
        "cpu_ms": round(cpu, 1),
        "wall_ms": round(1e3 * means[0]["wall"], 1),
        "bytes": round(means[0]["bytes"]),
        "messages": round(means[0]["messages"]),
        "parts_ms": {key: round(value, 1) for key, value in parts.items()},
    }


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure all cases; those of one process and of two take turns."""
    keys = [(case, num_processes) for case in CASES for num_processes in (1, 2)]
    runs: dict[tuple[str, int], list[Any]] = {key: [] for key in keys}
    for _ in range(repeats):
        for case, num_processes in keys:
            runs[case, num_processes].append(on_processes(num_processes, _rank_main, case))
    lines = []
    for case in CASES:
        one, two = (summary(runs[case, num_processes]) for num_processes in (1, 2))
        ratio = round(two["cpu_ms"] / one["cpu_ms"], 3)
        lines.append({"case": case, "one": one, "two": two, "ratio": ratio})
        print(json.dumps(lines[-1]), flush=True)
    return lines


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table of the page: a row for each part, two columns for each case."""
    names = [f"`{line['case'].split(',')[0]}`" for line in results]
    head = " | ".join(f"{name}, 1 | 2" for name in names)
    lines = [
        f"{SIZES['num_items']:,} items, D = {SIZES['width']}, {SIZES['batch_size']} histories of "
        f"at most {SIZES['length']} interactions, in-batch candidates.",
        "",
        f"| CPU ms a step | {head} |",
        f"|---|{'---:|' * (2 * len(results))}",
    ]
    for key, name in PARTS.items():
        cells = " | ".join(
            f"{line['one']['parts_ms'][key]:,.1f} | {line['two']['parts_ms'][key]:,.1f}"
            for line in results
        )
        lines.append(f"| {name} | {cells} |")
    cells = " | ".join(
        f"{line['one']['cpu_ms']:,.1f} | {line['two']['cpu_ms']:,.1f}" for line in results
    )
    lines.append(f"| **all** | {cells} |")
    cells = " | ".join(f"1 | {line['ratio']:.2f}" for line in results)
    lines.append(f"| relative | {cells} |")
    cells = " | ".join(f"0 | {line['two']['bytes'] / 1024:,.0f}" for line in results)
    lines.append(f"| KiB from a process | {cells} |")
    cells = " | ".join(f"0 | {line['two']['messages']}" for line in results)
    lines.append(f"| messages | {cells} |")
    return "\n".join([*lines, ""])


def with_table(content: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "process overhead", table(results))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="write the table only")
    given = parser.parse_args()
    if not given.tables:
        report = {
            "command": "python benchmarks/process_overhead.py",
            "what": "CPU milliseconds of one step, all processes together, one thread each; "
            "wall_ms, bytes and messages of process 0; the machine was shared",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "repeats": given.repeats,
            "steps": STEPS,
            "sizes": SIZES,
            "results": measure(given.repeats),
        }
        given.results.write_text(json.dumps(report, indent=1) + "\n")
    if given.results == RESULTS or given.tables:
        DOCS.write_text(with_table(DOCS.read_text(), json.loads(RESULTS.read_text())["results"]))


if __name__ == "__main__":
    main()
