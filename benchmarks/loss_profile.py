"""Profile of the full softmax over 10⁵ items in bfloat16, forward and backward, by part.

    python benchmarks/loss_profile.py     # results/loss_profile.json, docs/benchmarks/speed.md

1,024 rows, width 64, one thread, CPU milliseconds per step by Python's profiler, the median of
``REPEATS`` profiles. ``in caches``: the three products of the same tiles, each repeated with one
tile that never leaves the caches.
"""

from __future__ import annotations

import cProfile
import json
import platform
import pstats
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from candid.losses.blockwise.accidental_hits import AccidentalHits, IdMatch
from candid.losses.blockwise.tiles import Tiles
from loss_kernel import WIDTH, stepper
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "loss_profile.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
ROWS, ITEMS, REPEATS = 1024, 100_000, 9
PARTS = {
    "products": ("torch.mm", "_C.TensorBase.__matmul__", "add", "_add_to_vectors"),
    "exponentials": ("run",),
    "adding to the gradients": ("'add_'", "'addcmul_'", "'addmm_'"),
    "copies in bfloat16": ("'to'",),
    "masking the positives": ("mask",),
}
"""Functions of each part; their own time. A product by ``@`` counts for its caller."""


def profile_step(step: Callable[[str], None]) -> dict[str, float]:
    """Measure CPU milliseconds of a step, by part."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(step, "bfloat16")
    own: dict[str, float] = {}
    for (_, _, name), (_, _, seconds, *_) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        part = next(
            (p for p, names in PARTS.items() if any(_is(name, known) for known in names)),
            "all else",
        )
        own[part] = own.get(part, 0.0) + seconds * 1e3
    return own


def _is(name: str, known: str) -> bool:
    return name == known or (not known.isidentifier() and known in name)


def in_caches() -> float:
    """Measure CPU milliseconds of all products with every tile in the caches."""
    hits = AccidentalHits(IdMatch(torch.arange(ROWS)))
    query, vectors = torch.zeros(ROWS, WIDTH), torch.zeros(ITEMS, WIDTH)
    tiles = Tiles(query, vectors, hits, None, None, None, "bfloat16")
    rows, columns = (
        blocks[0].stop - blocks[0].start for blocks in (tiles.row_blocks, tiles.column_blocks)
    )
    query, vectors = (torch.randn(n, WIDTH).bfloat16() for n in (rows, columns))
    tile = torch.empty(rows, columns, dtype=torch.bfloat16)
    total = 0.0
    for product in (
        lambda: torch.mm(query, vectors.T, out=tile),
        lambda: tile @ vectors,
        lambda: tile.T @ query,
    ):
        product()
        times = []
        for _ in range(50):
            started = time.process_time()
            product()
            times.append(time.process_time() - started)
        total += statistics.median(times) * 1e3
    return total * len(tiles.row_blocks) * len(tiles.column_blocks)


def table(parts: dict[str, float]) -> str:
    """Write a Markdown table."""
    whole = sum(value for name, value in parts.items() if name != "in caches")
    lines = ["| | ms | share |", "|---|---:|---:|"]
    for name, value in parts.items():
        if name != "in caches":
            note = f" (in the caches: {parts['in caches']:.0f})" if name == "products" else ""
            lines.append(f"| {name}{note} | {value:.0f} | {value / whole:.0%} |")
    return "\n".join([*lines, ""])


def with_table(content: str, parts: dict[str, float]) -> str:
    """Replace the generated block of the docs."""
    return with_block(content, "loss profile", table(parts))


def main() -> None:
    """Profile and write."""
    torch.set_num_threads(1)
    step = stepper("full", ROWS, ITEMS)
    for _ in range(3):
        step("bfloat16")
    profiles = [profile_step(step) for _ in range(REPEATS)]
    names = [*PARTS, "all else"]
    parts = {n: round(statistics.median(one.get(n, 0.0) for one in profiles), 1) for n in names}
    parts["in caches"] = round(in_caches(), 1)
    report = {"python": platform.python_version(), "torch": torch.__version__, "results": parts}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    DOCS.write_text(with_table(DOCS.read_text(), parts))
    print(table(parts))


if __name__ == "__main__":
    main()
