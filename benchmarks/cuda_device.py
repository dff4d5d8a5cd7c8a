"""Tests and speed on a CUDA device: softmax losses, tables and transfers, in less than 8 minutes.

    python benchmarks/cuda_device.py            # tests and measures; writes results and page
    python benchmarks/cuda_device.py --tables   # writes the tables of docs/benchmarks/speed.md only
    python benchmarks/cuda_device.py --tune     # only times other block sizes of the kernels

Without a CUDA device it prints one sentence and exits with status 2.

- Tests: those marked ``cuda``, and those of the Triton kernels, which compile there.
- Losses, forward and backward, width 64, as in ``loss_kernel.py``: *plain* is
  ``F.cross_entropy`` of dense scores, *torch tiles* the losses without Triton.
- Tables, as in ``tables.py``: a step of a sampled softmax over 1,024 uniform samples.
- Row optimizers: a step of the optimizer alone, the sum over repeated ids included, by torch
  operations and by the Triton kernel.
- Transfers: a batch of 128 histories of 200 items, blocking from pageable memory, and not blocking
  from page-locked memory.

``ms`` is the median of CUDA events around ``STEPS`` steps, divided by their number; contenders take
turns. ``peak_mib`` is the growth of the memory that torch allocates on the device. Work that does
not fit into ``SECONDS`` is left out and named in the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import candid
from candid.batches import Batch, History
from candid.losses.blockwise import triton_softmax
from candid.samplers import ExactFrequency, InBatch, Uniform
from candid.towers import RowTable
from candid.training import RowAdagrad, RowAdam, TrainingConfig, triton_rows
from candid.training.optimizer import make_optimizer
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cuda_device.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
SECONDS, TEST_SECONDS, STEPS, TURNS, WIDTH = 450, 240, 5, 5, 64
LIMIT = 2**30
"""Most scores of dense contenders."""
LOSSES = [("in-batch", n, n) for n in (1024, 8192, 65_536)]
LOSSES += [("full", 1024, n) for n in (10**5, 10**6)]
TABLES = [(10**5, 8192), (10**6, 8192)]
ROW_RULES = {"row_adam": RowAdam, "row_adagrad": RowAdagrad}
ROW_OPTIMIZERS = list(itertools.product(ROW_RULES, ("float32", "bfloat16"), TABLES[-1:]))
CONTENDERS = {
    "plain": ("float32", False),
    "plain, bfloat16": ("bfloat16", False),
    "torch tiles, float32": ("float32", False),
    "torch tiles, bfloat16": ("bfloat16", False),
    "Triton, float32": ("float32", True),
    "Triton, bfloat16": ("bfloat16", True),
}
"""By name: precision of the products, and whether Triton kernels are used."""
KERNEL_TESTS = [
    "tests/losses/blockwise/test_triton_softmax.py",
    "tests/training/test_triton_rows.py",
]
Step = Callable[[], object]


def loss_steps(
    kind: str, num_rows: int, num_candidates: int, device: torch.device
) -> dict[str, Step]:
    """Return one forward and backward pass of each contender."""
    generator = torch.Generator().manual_seed(0)
    query, vectors = (
        (0.3 * torch.randn(n, WIDTH, generator=generator)).to(device).requires_grad_()
        for n in (num_rows, num_candidates)
    )
    # Zipf-like popularity: a few per mille of the pairs are of one item.
    counts = 1.0 / (30.0 + torch.arange(100_000, dtype=torch.float64))
    if kind == "full":
        ids = torch.randint(num_candidates, (num_rows,), generator=generator).to(device)
        positives, log_q = ids, torch.zeros(1, device=device)
    else:
        ids = torch.multinomial(counts, num_rows, replacement=True, generator=generator).to(device)
        positives = torch.arange(num_rows, device=device)
        log_q = (counts / counts.sum()).log().float().to(device)[ids]
    sampler = InBatch(ExactFrequency(counts)).to(device)

    def plain(precision: str) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = functional.cross_entropy(query @ vectors.T - log_q, positives)
        loss.backward()

    def ours(precision: Any, uses_triton: bool) -> None:
        with only_triton(uses_triton):
            if kind == "full":
                out = candid.full_softmax(query, vectors, ids, precision=precision)
            else:
                out = candid.in_batch_softmax(
                    query, vectors, ids, frequency=sampler, precision=precision
                )
            out.loss.mean().backward()

    def step_of(name: str) -> Step:
        precision, uses_triton = CONTENDERS[name]

        def step() -> None:
            query.grad = vectors.grad = None
            if name.startswith("plain"):
                plain(precision)
            else:
                ours(precision, uses_triton)

        return step

    is_small = num_rows * num_candidates <= LIMIT
    return {name: step_of(name) for name in CONTENDERS if is_small or "plain" not in name}


class only_triton:
    """Allow the Triton kernels, or torch operations alone, on CUDA devices."""

    _settings = (triton_softmax.DEVICES, triton_rows.DEVICES)

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed

    def __enter__(self) -> None:
        """Remember the setting."""
        self._before = [(devices, set(devices)) for devices in self._settings]
        for devices in [] if self._allowed else self._settings:
            devices.clear()

    def __exit__(self, *error: object) -> None:
        """Restore the setting."""
        for devices, before in self._before:
            devices.update(before)


class Model(nn.Module):
    """A table of items, and a linear layer that makes queries."""

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.items = RowTable(num_items, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)


def table_steps(num_items: int, num_rows: int, device: torch.device) -> dict[str, Step]:
    """Return a training step of each rule for tables."""

    def step_of(rule: str) -> Step:
        model = Model(num_items).to(device)
        optimizer = make_optimizer(model, TrainingConfig(tables=rule))
        sampler = Uniform(num_items, num_candidates=1024).to(device)
        inputs = torch.randn(num_rows, WIDTH, device=device)

        def step() -> None:
            optimizer.zero_grad()
            positives = torch.randint(num_items, (num_rows,), device=device)
            candidates = sampler.sample(positives)
            query = model.out(inputs)
            out = candid.sampled_softmax(query, model.items, positives, candidates)
            out.loss.mean().backward()
            optimizer.step(1e-3, 1.0)

        return step

    return {rule: step_of(rule) for rule in ("dense", "row_adam", "row_adagrad")}


def row_optimizer_steps(
    rule: str, dtype: str, num_items: int, num_rows: int, device: torch.device
) -> dict[str, Step]:
    """Return a step of a row-wise optimizer with a gradient of ``num_rows`` look-ups."""

    def step_of(uses_triton: bool) -> Step:
        table = nn.Embedding(num_items, WIDTH, sparse=True, dtype=getattr(torch, dtype)).to(device)
        optimizer = ROW_RULES[rule]([table.weight], lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(num_items, (num_rows,), generator=generator).to(device)
        table(ids).float().square().sum().backward()

        def step() -> None:
            with only_triton(uses_triton):
                optimizer.step()

        return step

    return {"torch operations": step_of(False), "Triton": step_of(True)}


def transfer_steps(device: torch.device) -> dict[str, Step]:
    """Return the transfer of one batch, in the two ways."""
    ids = torch.arange(128 * 200)
    history = History(item_ids=ids, offsets=torch.arange(129) * 200, query_positions=ids)
    batch = Batch(user_ids=ids, positive_ids=ids, weights=torch.ones(len(ids)), history=history)
    tensors = [ids, ids, batch.weights, ids, history.offsets, ids]
    return {
        "pageable, blocking": lambda: [tensor.to(device) for tensor in tensors],
        "page-locked, not blocking": lambda: batch.to(device),
    }


def milliseconds(step: Step, device: torch.device) -> float:
    """Time ``STEPS`` steps; return the milliseconds of one."""
    if device.type != "cuda":
        started = time.process_time()
        for _ in range(STEPS):
            step()
        return (time.process_time() - started) * 1e3 / STEPS
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(STEPS):
        step()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / STEPS


def measure(
    table: str, case: str, steps: dict[str, Step], device: torch.device, turns: int = TURNS
) -> list[dict[str, Any]]:
    """Measure contenders in turn: one line for each."""
    peaks = {}
    for name, step in steps.items():
        step()  # compiles, and fills caches
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            step()
            torch.cuda.synchronize(device)
            peaks[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            times[name].append(milliseconds(step, device))
    return [
        {
            "table": table,
            "case": case,
            "contender": name,
            "ms": round(statistics.median(values), 4),
            "ms_min": round(min(values), 4),
            "ms_max": round(max(values), 4),
            "peak_mib": round(peaks.get(name, 0.0), 1),
        }
        for name, values in times.items()
    ]


def cases(device: torch.device) -> list[tuple[str, str, Callable[[], dict[str, Step]]]]:
    """List the table, the name and the steps of each case."""
    listed: list[tuple[str, str, Callable[[], dict[str, Step]]]] = [
        (
            "losses",
            f"{kind}, {rows:,} × {columns:,}",
            _call(loss_steps, kind, rows, columns, device),
        )
        for kind, rows, columns in LOSSES
    ]
    listed += [
        ("tables", f"{items:,} items, B = {rows:,}", _call(table_steps, items, rows, device))
        for items, rows in TABLES
    ]
    listed += [
        (
            "row optimizers",
            f"{rule}, {dtype}, {items:,} items, {rows:,} look-ups",
            _call(row_optimizer_steps, rule, dtype, items, rows, device),
        )
        for rule, dtype, (items, rows) in ROW_OPTIMIZERS
    ]
    return [*listed, ("transfers", "128 × 200", _call(transfer_steps, device))]


def _call(make: Callable[..., dict[str, Step]], *arguments: Any) -> Callable[[], dict[str, Step]]:
    return lambda: make(*arguments)


def run_tests() -> dict[str, Any]:
    """Run the tests that need a CUDA device, and those of the kernels."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    results = {}
    for name, arguments in (
        ("cuda", ["-m", "cuda", "tests"]),
        ("kernels", ["-m", "not slow", *KERNEL_TESTS]),
    ):
        try:
            done = subprocess.run(
                [*command, *arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=TEST_SECONDS / 2,
                check=False,
            )
            lines = done.stdout.strip().splitlines() or ["no output"]
            failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            results[name] = {"status": done.returncode, "summary": lines[-1], "failed": failed}
        except subprocess.TimeoutExpired:
            results[name] = {"status": -1, "summary": "did not finish in time", "failed": []}
        print(name, results[name], flush=True)
    return results


def tune(device: torch.device) -> None:
    """Print the time of other block sizes for one case of each precision."""
    _, rows, columns = LOSSES[1]
    for item_bytes, name in ((2, "Triton, bfloat16"), (4, "Triton, float32")):
        step = loss_steps("in-batch", rows, columns, device)[name]
        for outer, inner, warps, stages in itertools.product(
            (32, 64, 128), (32, 64), (4, 8), (1, 2, 3)
        ):
            sizes = triton_softmax.BlockSizes(outer, inner, warps, stages)
            triton_softmax.SIZES[item_bytes, 64] = sizes
            triton_softmax._is_usable.cache_clear()
            try:
                step()
                print(name, sizes, f"{milliseconds(step, device):.3f} ms", flush=True)
            except Exception as error:  # sizes that do not fit are part of the search
                print(name, sizes, type(error).__name__, flush=True)


def page(report: dict[str, Any] | None) -> str:
    """Write the tables, or a sentence where the script has never run."""
    if report is None:
        return "No table yet: this script has never run on a GPU.\n"
    summaries = "; ".join(f"{name}: {test['summary']}" for name, test in report["tests"].items())
    parts = [f"{report['device']}, torch {report['torch']}. Tests: {summaries}.\n"]
    for table in ("losses", "tables", "row optimizers", "transfers"):
        lines = [line for line in report["results"] if line["table"] == table]
        names = list(dict.fromkeys(line["contender"] for line in lines))
        parts.append(f"{table.capitalize()}; ms / MiB\n")
        parts.append(f"| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
        for case in dict.fromkeys(line["case"] for line in lines):
            by_name = {line["contender"]: line for line in lines if line["case"] == case}
            cells = [
                f"{by_name[name]['ms']:,.2f} / {by_name[name]['peak_mib']:,.0f}"
                if name in by_name
                else "–"
                for name in names
            ]
            parts.append(f"| {case} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def write_page(report: dict[str, Any] | None) -> None:
    """Replace the generated block of the docs."""
    DOCS.write_text(with_block(DOCS.read_text(), "cuda", page(report)))


def main() -> None:
    """Test, measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    parser.add_argument("--tune", action="store_true", help="only time other block sizes")
    options = parser.parse_args()
    if options.tables:
        write_page(json.loads(RESULTS.read_text()) if RESULTS.exists() else None)
        return
    if not torch.cuda.is_available():
        print("there is no CUDA device: run this script on a machine with one", file=sys.stderr)
        raise SystemExit(2)
    device, started = torch.device("cuda"), time.monotonic()
    if options.tune:
        tune(device)
        return
    tests, results, left_out = run_tests(), [], []
    for table, case, make in cases(device):
        if time.monotonic() - started > SECONDS * 0.9:
            left_out.append(f"{table}: {case}")
            continue
        lines = measure(table, case, make(), device)
        torch.cuda.empty_cache()
        print(*lines, sep="\n", flush=True)
        results += lines
    report = {
        "candid": candid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device),
        "command": "python benchmarks/cuda_device.py",
        "settings": {"width": WIDTH, "steps": STEPS, "turns": TURNS},
        "seconds": round(time.monotonic() - started),
        "left_out": left_out,
        "tests": tests,
        "results": results,
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    write_page(report)
    if any(test["status"] for test in tests.values()):
        raise SystemExit("tests failed: see the summary above")


if __name__ == "__main__":
    main()
