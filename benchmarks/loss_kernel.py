"""Time and memory of softmax losses, forward and backward: dense scores in plain torch, and tiles.

    python benchmarks/loss_kernel.py           # measures what results/loss_kernel.json lacks
    python benchmarks/loss_kernel.py --again   # measures everything again
    python benchmarks/loss_kernel.py --tables  # only writes the tables of docs/benchmarks/speed.md

Two losses at width 64: the positives of a batch against each other, B from 256 to 65,536, and 1,024
rows against a whole catalog, from 10⁴ to 10⁶ items. Contenders, in turn within one process:

- plain: ``logits = q @ k.T - log_q``, ``F.cross_entropy``; dense float32 scores.
- plain, masked: the same, with the row's own item at other rows masked first.
- plain, bfloat16: plain under autocast to bfloat16.
- float32, bfloat16: ``candid.in_batch_softmax``, ``candid.full_softmax`` in that precision.
- bfloat16, torch alone: the same without the native kernel (``CANDID_NATIVE=0``).

``ms`` is the median of CPU milliseconds on one thread. Up to ``LIMIT`` scores a turn is two steps,
of which the second is timed: it reuses the memory of the first, as in training. ``peak_mib`` is the
growth of the resident set in two steps (one in the largest case) beyond the inputs, gradients
included, in a separate process. ``fraction`` is the share of the time that three products of these
shapes would take at the speed of a product of 2048 × 2048 matrices of the same dtype, measured in
turn with the contenders. Dense scores stop at ``LIMIT``; a contender computes ``MOST_SCORES`` in
all its repeats, which leaves two for the largest case.
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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import candid
from candid.losses.blockwise import tile_pass
from candid.losses.blockwise.native import NativePass, native_pass
from candid.samplers import ExactFrequency, InBatch
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "loss_kernel.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
WIDTH, CATALOG, LIMIT, MOST_SCORES = 64, 100_000, 2**27, 2**33
CASES = [("in-batch", size, size) for size in (256, 1024, 4096, 8192, 16_384)]
CASES += [("full", 1024, size) for size in (10**4, 10**5, 10**6)]
CASES += [("in-batch", 65_536, 65_536)]
DENSE = ("plain", "plain, masked", "plain, bfloat16")
TILED = ("float32", "bfloat16", "bfloat16, torch alone")
TORCH_ALONE = "torch alone"


def no_kernel() -> NativePass | None:
    """Stand for a machine without a compiler."""
    return None


def contenders(kind: str, num_rows: int, num_candidates: int) -> list[str]:
    """List the contenders of a case."""
    dense = DENSE if num_rows * num_candidates <= LIMIT else ()
    return [name for name in (*dense, *TILED) if kind == "in-batch" or name != "plain, masked"]


def stepper(kind: str, num_rows: int, num_candidates: int) -> Callable[[str], None]:
    """Return a function that runs one forward and backward pass of a contender."""
    generator = torch.Generator().manual_seed(0)
    query, vectors = (
        (0.3 * torch.randn(size, WIDTH, generator=generator)).requires_grad_()
        for size in (num_rows, num_candidates)
    )
    if kind == "full":
        positives = torch.randint(num_candidates, (num_rows,), generator=generator)
        log_q, ids = torch.zeros(1), positives
    else:
        # Zipf-like popularity: a few per mille of the pairs are of one item.
        counts = 1.0 / (30.0 + torch.arange(CATALOG, dtype=torch.float64))
        ids = torch.multinomial(counts, num_rows, replacement=True, generator=generator)
        positives = torch.arange(num_rows)
        sampler = InBatch(ExactFrequency(counts))
        log_q = (counts / counts.sum()).log()[ids].float()

    def plain(*, masked: bool = False) -> torch.Tensor:
        logits = query @ vectors.T - log_q
        if masked:
            same = ids[:, None] == ids
            logits = logits.masked_fill(same.fill_diagonal_(False), -torch.inf)
        return functional.cross_entropy(logits, positives)

    def candid_loss(precision: Any) -> torch.Tensor:
        if kind == "full":
            return candid.full_softmax(query, vectors, ids, precision=precision).loss.mean()
        out = candid.in_batch_softmax(
            query,
            vectors,
            ids,
            frequency=sampler,
            correction="refined",
            precision=precision,
            check_finite=False,
        )
        return out.loss.mean()

    def step(name: str) -> None:
        # As CANDID_NATIVE=0 does for a process.
        tile_pass.native_pass = no_kernel if name.endswith(TORCH_ALONE) else native_pass
        if name in TILED:
            candid_loss(name.split(",")[0]).backward()
        elif name.endswith("bfloat16"):
            with torch.autocast("cpu", torch.bfloat16):
                loss = plain()
            loss.backward()
        else:
            plain(masked=name.endswith("masked")).backward()
        query.grad = vectors.grad = None

    return step


def product(dtype: torch.dtype) -> Callable[[], None]:
    """Return a product of 2048 × 2048 matrices, the upper limit of speed."""
    a, b = torch.randn(2, 2048, 2048).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def seconds_of(work: Callable[[], None]) -> float:
    """Measure CPU seconds."""
    started = time.process_time()
    work()
    return time.process_time() - started


def dtype_of(name: str) -> str:
    """Return the dtype of the products of a contender."""
    return "bfloat16" if "bfloat16" in name else "float32"


def measure(kind: str, num_rows: int, num_candidates: int, repeats: int) -> list[dict[str, Any]]:
    """Measure a case: one line per contender."""
    names = contenders(kind, num_rows, num_candidates)
    repeats = min(repeats, max(1, MOST_SCORES // (num_rows * num_candidates)))
    peaks = {name: peak_mib(kind, num_rows, num_candidates, name) for name in names}
    step = stepper(kind, num_rows, num_candidates)
    work = {name: partial(step, name) for name in names}
    products = {name: product(getattr(torch, name)) for name in ("float32", "bfloat16")}
    times: dict[str, list[float]] = {name: [] for name in work}
    limits: dict[str, list[float]] = {name: [] for name in products}
    for turn in range(repeats + 1):
        for seconds_by_name, each in ((times, work), (limits, products)):
            for name, once in each.items():
                if num_rows * num_candidates <= LIMIT:
                    once()
                seconds = seconds_of(once)
                if turn:  # the first is a warm-up
                    seconds_by_name[name].append(seconds)
    rates = {name: 2 * 2048**3 / statistics.median(values) for name, values in limits.items()}
    lines = []
    for name in names:
        seconds = statistics.median(times[name])
        ideal = 3 * 2 * WIDTH * num_rows * num_candidates / rates[dtype_of(name)]
        line = {
            "loss": kind,
            "rows": num_rows,
            "candidates": num_candidates,
            "contender": name,
            "ms": round(seconds * 1e3, 2),
            "peak_mib": peaks[name],
            "fraction": round(ideal / seconds, 3),
            "limit_gflops": round(rates[dtype_of(name)] / 1e9, 1),
            "repeats": repeats,
        }
        print(line, flush=True)
        lines.append(line)
    return lines


def peak_mib(kind: str, num_rows: int, num_candidates: int, name: str) -> float:
    """Measure the growth of the resident set over two steps, in MiB (Linux only)."""
    # Not a fork: it would reuse memory that this process has freed.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    child = context.Process(target=_peak, args=(sender, kind, num_rows, num_candidates, name))
    child.start()
    peak = float(receiver.recv())
    child.join()
    return round(peak, 1)


def _peak(pipe: Any, kind: str, num_rows: int, num_candidates: int, name: str) -> None:
    torch.set_num_threads(1)
    step = stepper(kind, num_rows, num_candidates)
    stepper(kind, 400, 400)(name)  # loads what the first step of any process needs
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory freed before would be reused
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for _ in range(2 if num_rows * num_candidates <= 2**30 else 1):
        step(name)
    pipe.send((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1])


def tables(results: list[dict[str, Any]]) -> str:
    """Write a Markdown table per loss: a row per case, a column per contender."""
    by_case = {
        (line["loss"], line["rows"], line["candidates"], line["contender"]): line
        for line in results
    }
    parts = []
    for kind, title in (("in-batch", "In-batch"), ("full", "Full, B = 1,024")):
        names = [name for name in (*DENSE, *TILED) if kind == "in-batch" or "masked" not in name]
        parts.append(f"{title}; ms / MiB / fraction of the products' limit\n")
        first_column = "B" if kind == "in-batch" else "items"
        parts.append(f"| {first_column} | {' | '.join(names)} | plain to bfloat16 |")
        parts.append(f"|---:|{'---:|' * (len(names) + 1)}")
        for case in (case for case in CASES if case[0] == kind):
            lines = [by_case.get((*case, name)) for name in names]
            cells = [
                f"{line['ms']:,.1f} / {line['peak_mib']:,.0f} / {line['fraction']:.2f}"
                if line
                else "–"
                for line in lines
            ]
            plain, fast = lines[0], by_case[(*case, "bfloat16")]
            cells.append(f"{plain['ms'] / fast['ms']:.1f}" if plain else "–")
            parts.append(f"| {case[2]:,} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def with_tables(content: str, results: list[dict[str, Any]]) -> str:
    """Replace the generated block of the docs."""
    return with_block(content, "loss kernel", tables(results))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="measure existing cases again")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    old = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    results = [] if options.again else old
    if not options.tables:
        for case in CASES:
            if case in {(line["loss"], line["rows"], line["candidates"]) for line in results}:
                continue
            results = [*results, *measure(*case, options.repeats)]
            report = {
                "candid": candid.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "native_kernel": native_pass() is not None,
                "command": f"python benchmarks/loss_kernel.py --repeats {options.repeats}",
                "width": WIDTH,
                "results": results,
            }
            RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    DOCS.write_text(with_tables(DOCS.read_text(), results))


if __name__ == "__main__":
    main()
