"""Cost of a training step as the catalog grows: tables trained densely and by row.

    python benchmarks/tables.py            # measure; write the results and the page
    python benchmarks/tables.py --tables   # write the tables of docs/benchmarks/speed.md only

A step is a training step: sample candidates uniformly, look up vectors, compute the sampled
softmax, backward, clip, update. The ids of the positives are uniform too, so most of them are
distinct and their rows far apart: the most expensive case for row-wise training. Queries come
from a small linear layer, so that the table dominates the time.

``ms`` is the whole step, ``table_ms`` a step with as many ids that only looks up, goes backward,
clips and updates. All rules take turns within one process, with a new batch each; times are CPU
milliseconds on one thread, medians. ``peak_mib`` is the growth of the resident set in four steps
beyond the table itself, in a separate process: gradients, state and temporary tensors. Rules
whose table, gradient and state exceed ``LIMIT`` are left out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import candid
from candid.samplers import Uniform
from candid.towers import RowTable
from candid.training import TrainingConfig
from candid.training.optimizer import make_optimizer
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tables.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
WIDTH, CANDIDATES, SIZES, ROWS = 64, 1024, (10**4, 10**5, 10**6, 10**7), (1024, 8192)
LIMIT = 4 << 30
RULES: dict[str, tuple[str, int]] = {
    "dense AdamW": ("dense", 16),
    "SparseAdam of torch": ("sparse_adam", 12),
    "row_adam": ("row_adam", 4),
    "row_adagrad": ("row_adagrad", 4),
    "row_adam, bfloat16": ("row_adam", 2),
}
"""By name: optimizer of the table, and bytes per weight of table, gradient and state."""


class Model(nn.Module):
    """A table of items, and a linear layer that makes queries."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.table = RowTable(num_items, WIDTH)
        # One block of random numbers, repeated: 10⁷ rows of random numbers take long.
        self.table.to_empty(device="cpu")
        blocks = self.table.weight.data.view(-1, min(num_items, SIZES[0]), WIDTH)
        blocks.copy_(0.02 * torch.randn(blocks.shape[1:]))
        self.query = nn.Linear(WIDTH, WIDTH)


def stepper(model: Model, rule: str, num_rows: int, *, alone: bool = False) -> Callable[[], None]:
    """Return a function that takes one step; ``alone``: without sample and loss."""
    num_items = model.table.num_embeddings
    generator = torch.Generator().manual_seed(0)
    sampler = Uniform(num_items, num_candidates=CANDIDATES)
    inputs = torch.randn(num_rows, WIDTH)
    weights = torch.randn(num_rows + CANDIDATES, WIDTH)
    advance = _advance(model, rule)

    def look_up() -> None:
        ids = torch.randint(num_items, (len(weights),), generator=generator)
        advance((model.table(ids) * weights).sum())

    def step() -> None:
        positives = torch.randint(num_items, (num_rows,), generator=generator)
        query = model.query(inputs)
        candidates = sampler.sample(positives, generator=generator)
        out = candid.sampled_softmax(
            query, model.table, positives, candidates, correction="refined"
        )
        advance(out.loss.mean())

    return look_up if alone else step


def _advance(model: Model, rule: str) -> Callable[[Tensor], None]:
    kind = RULES[rule][0]
    if kind == "sparse_adam":
        model.table.train_by_row()
        parts = [
            torch.optim.SparseAdam([model.table.weight]),
            torch.optim.AdamW(model.query.parameters(), fused=True),
        ]

        def with_torch(loss: Tensor) -> None:
            for part in parts:
                part.zero_grad()
            loss.backward()
            for part in parts:
                part.step()

        return with_torch
    dtype = "bfloat16" if rule.endswith("bfloat16") else "float32"
    optimizer = make_optimizer(model, TrainingConfig(tables=kind, table_dtype=dtype))

    def with_ours(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(1e-3, 1.0)

    return with_ours


def rules_at(num_items: int) -> list[str]:
    """Return the rules that fit into memory, one at a time."""
    return [rule for rule, (_, size) in RULES.items() if num_items * WIDTH * size <= LIMIT]


def times(num_items: int, num_rows: int, repeats: int, *, alone: bool) -> dict[str, float]:
    """Return median CPU milliseconds of a step by rule; the rules take turns."""
    # As many models as fit at once: the largest catalog takes one rule after the other.
    rules = rules_at(num_items)
    at_once = sum(num_items * WIDTH * RULES[rule][1] for rule in rules) <= LIMIT
    measured: dict[str, list[float]] = {rule: [] for rule in rules}
    for group in [rules] if at_once else [[rule] for rule in rules]:
        steps = {rule: stepper(Model(num_items), rule, num_rows, alone=alone) for rule in group}
        for turn in range(repeats + 3):
            for rule, step in steps.items():
                started = time.process_time()
                step()
                if turn >= 3:
                    measured[rule].append((time.process_time() - started) * 1e3)
    return {rule: round(statistics.median(each), 2) for rule, each in measured.items()}


def peak_mib(num_items: int, rule: str, num_rows: int) -> float:
    """Return the growth of the resident set over four steps, in MiB (Linux only)."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=_peak, args=(theirs, num_items, rule, num_rows))
    child.start()
    mib = float(ours.recv())
    child.join()
    return round(mib, 1)


def _peak(pipe: Any, num_items: int, rule: str, num_rows: int) -> None:
    torch.set_num_threads(1)
    stepper(Model(1000), rule, 8)()  # loads the libraries of the first step
    model = Model(num_items)
    step = stepper(model, rule, num_rows)
    ctypes.CDLL(None).malloc_trim(0)  # freed memory would be reused without being counted
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for _ in range(4):
        step()
    pipe.send((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1])


def measure(repeats: int) -> list[dict[str, Any]]:
    """Return one line for each size of catalog, batch and rule."""
    lines = []
    for num_items in SIZES:
        for num_rows in ROWS:
            peaks = {rule: peak_mib(num_items, rule, num_rows) for rule in rules_at(num_items)}
            alone = times(num_items, num_rows, repeats, alone=True)
            for rule, milliseconds in times(num_items, num_rows, repeats, alone=False).items():
                line = {
                    "items": num_items,
                    "rows": num_rows,
                    "rule": rule,
                    "ms": milliseconds,
                    "table_ms": alone[rule],
                    "peak_mib": peaks[rule],
                }
                print(line, flush=True)
                lines.append(line)
    return lines


def tables(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table for each batch size: a row per rule, a column per catalog."""
    parts = []
    for num_rows in ROWS:
        by_size = {
            (line["rule"], line["items"]): line for line in results if line["rows"] == num_rows
        }
        head = " | ".join(f"{size:,} items" for size in SIZES)
        parts.append(f"B = {num_rows:,}, n = {CANDIDATES:,}; ms a step / ms of its table / MiB\n")
        parts.append(f"| | {head} | 10⁶ to 10⁴ |\n|---|{'---:|' * (len(SIZES) + 1)}")
        for rule in RULES:
            cells = []
            for size in SIZES:
                line = by_size.get((rule, size))
                cells.append(
                    f"{line['ms']:.1f} / {line['table_ms']:.1f} / {line['peak_mib']:,.0f}"
                    if line
                    else "–"
                )
            ratio = by_size[rule, 10**6]["ms"] / by_size[rule, 10**4]["ms"]
            parts.append(f"| {rule} | {' | '.join(cells)} | {ratio:.2f} |")
        parts.append("")
    return "\n".join(parts)


def with_tables(content: str, results: list[dict[str, Any]]) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "row tables", tables(results))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tables", action="store_true", help="write the tables only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        report = {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "command": f"python benchmarks/tables.py --repeats {options.repeats}",
            "width": WIDTH,
            "candidates": CANDIDATES,
            "results": measure(options.repeats),
        }
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    results = json.loads(RESULTS.read_text())["results"]
    DOCS.write_text(with_tables(DOCS.read_text(), results))


if __name__ == "__main__":
    main()
