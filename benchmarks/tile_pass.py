"""Designs of the softmax of a tile of scores, between the matrix products of a loss.

    python benchmarks/tile_pass.py    # writes benchmarks/results/tile_pass.json

A tile of 512 × 2,048 bfloat16 scores becomes exponentials, in place, with the log-sum of each row;
or only the log-sums are computed. Contenders, in turn within one process on one thread:

- native kernel: ``losses/blockwise/tile_pass.c``, compiled for this CPU.
- torch alone: the fallback without a compiler.
- torch, written out: the same sums without scratch memory, a new tile each time.
- torch.compile: the written-out form through Inductor (C++): the fastest of the forms tried, which
  were exp and sum or softmax, into the same tile or a new one.

``ns`` is the median of CPU nanoseconds per score; ``first_s`` the wall seconds of the first call,
compilation included (nothing cached); ``product_ns`` the time of the product that makes a score.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import candid
from candid.losses.blockwise.native import native_pass
from candid.losses.blockwise.tile_pass import TorchTilePass, make_tile_pass

RESULTS = Path(__file__).parent / "results" / "tile_pass.json"
ROWS, COLUMNS, WIDTH = 512, 2048, 64

Pass = Callable[[Tensor, Tensor], object]


def log_sums(scores: Tensor, shift: Tensor) -> Tensor:
    """Compute the log-sums only, written out."""
    x = scores.float() - shift
    highest = x.amax(dim=1, keepdim=True)
    return highest[:, 0] + torch.exp(x - highest).sum(dim=1).log()


def exponentials(scores: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a softmax in the scores' dtype, and the log-sums."""
    x = scores.float() - shift
    shares = torch.softmax(x, dim=1)
    return shares.to(scores.dtype), x.amax(dim=1) - shares.amax(dim=1).log()


def designs(like: Tensor, *, compiled: bool = True) -> dict[str, dict[str, Pass]]:
    """List designs by name and purpose; ``compiled``: with those of torch.compile."""
    size = like.numel()
    native = make_tile_pass(like, torch.float32, size, 2**30)
    alone = TorchTilePass(like, torch.float32, size)
    by_name: dict[str, dict[str, Pass]] = {
        "native kernel": {
            "in place": partial(native, keep=True),
            "sums": partial(native, keep=False),
        },
        "torch alone": {"in place": partial(alone, keep=True), "sums": partial(alone, keep=False)},
        "torch, written out": {"in place": exponentials, "sums": log_sums},
    }
    if compiled:
        by_name["torch.compile"] = {
            purpose: torch.compile(once) for purpose, once in by_name["torch, written out"].items()
        }
    return by_name


def measure(repeats: int) -> list[dict[str, object]]:
    """Measure one line per design and purpose."""
    # After a large block is freed, malloc reuses blocks instead of requesting new ones, as in any
    # process that has run for a while.
    large = torch.ones(7 * 2**20)
    del large
    scores = (4.0 * torch.randn(ROWS, COLUMNS)).bfloat16()
    shift = torch.randn(COLUMNS)
    expected = (scores.double() - shift.double()).logsumexp(dim=1)
    tile = scores.clone()
    work: dict[tuple[str, str], Callable[[], object]] = {}
    first: dict[tuple[str, str], float] = {}
    started = time.perf_counter()
    native_pass()
    compiled_in = time.perf_counter() - started
    for name, purposes in designs(scores).items():
        for purpose, once in purposes.items():
            started = time.perf_counter()
            result = once(tile.copy_(scores), shift)
            first[name, purpose] = time.perf_counter() - started
            log_sum = result[1] if isinstance(result, tuple) else result
            torch.testing.assert_close(log_sum.double(), expected, rtol=1e-5, atol=1e-5)
            work[name, purpose] = partial(once, tile, shift)
    first["native kernel", "in place"] += compiled_in
    query, vectors = torch.randn(ROWS, WIDTH).bfloat16(), torch.randn(COLUMNS, WIDTH).bfloat16()
    work["product", ""] = partial(torch.mm, query, vectors.T, out=torch.empty_like(tile))
    times: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    for _ in range(repeats):
        for key, once in work.items():
            tile.copy_(scores)
            started = time.process_time()
            once()
            times[key].append((time.process_time() - started) / scores.numel() * 1e9)
    medians = {key: round(statistics.median(each), 3) for key, each in times.items()}
    return [
        {
            "design": name,
            "purpose": purpose,
            "ns": medians[name, purpose],
            "first_s": round(first[name, purpose], 2),
            "product_ns": medians["product", ""],
        }
        for name, purpose in first
    ]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as empty:
        os.environ |= {"XDG_CACHE_HOME": empty, "TORCHINDUCTOR_CACHE_DIR": empty}
        results = measure(options.repeats)
        has_kernel = native_pass() is not None
    for line in results:
        print(line)
    report = {
        "candid": candid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native_kernel": has_kernel,
        "command": f"python benchmarks/tile_pass.py --repeats {options.repeats}",
        "rows": ROWS,
        "columns": COLUMNS,
        "width": WIDTH,
        "results": results,
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
