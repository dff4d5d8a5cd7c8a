"""Cost of a position in batches of 32 to 512 sequences, with one copy into padding or many.

    python benchmarks/attention.py            # measure; write the results and the page
    python benchmarks/attention.py --tables   # write the table of docs/benchmarks/speed.md only

A causal transformer of two blocks and two heads, dropout 0.2, forward and backward, without loss
and optimizer; histories of 2 to 200 items, 85 on average, the same lengths in every 32. *Many* is
attention that gathers each group of four sequences from the packed tokens: the backward of each
gather fills and adds a tensor of all tokens. Both have the same outputs and gradients, bit for bit,
which is checked.

All shapes of a width and both ways run in turn in one process on one thread, after one step each
that does not count. Times are medians of CPU seconds of the process, as other work may share the
machine. Memory is the largest
growth of the process during a step, which frees its memory before.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import candid
from candid.batches import Queries, pack_histories
from candid.towers import CausalTransformer
from candid.towers.length_groups import LengthGroups, length_groups
from candid.towers.rotary import rotate
from candid.towers.transformer_block import Block, causal_attention
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "attention.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
SEQUENCES, WIDTHS = (32, 128, 512), (64, 128)
ITEMS, LENGTH = 3417, 200

Groups = list[tuple[Tensor, tuple[int, int], Tensor]]
"""Packed position of each cell [S · L], (S, L), and the cells that are tokens, of each group."""


def separate(groups: LengthGroups) -> tuple[Groups, Tensor]:
    """Return the groups one by one, and the positions [T] that undo their concatenation."""
    sizes = [size * length for size, length in groups.shapes]
    cells = groups.cells.sort().values
    parts, begin = [], 0
    for gather, shape in zip(groups.gather.split(sizes), groups.shapes, strict=True):
        inside = cells[(cells >= begin) & (cells < begin + len(gather))] - begin
        parts.append((gather, shape, inside))
        begin += len(gather)
    return parts, groups.cells.argsort().argsort()


def many_gathers(groups: LengthGroups) -> Callable[..., Tensor]:
    """Return a replacement of ``Block._attend`` that gathers each group from all tokens."""
    parts, unpad = separate(groups)

    def attend(
        block: Block, tokens: Tensor, _: LengthGroups, factors: Tensor | None, __: object
    ) -> Tensor:
        qkv = block.qkv(block.attention_norm(tokens))
        if factors is not None:
            qkv = rotate(qkv, factors, block.num_heads)
        outputs = []
        for gather, (size, length), cells in parts:
            padded = qkv.index_select(0, gather).view(size, length, 3, block.num_heads, -1)
            query, key, value = padded.permute(2, 0, 3, 1, 4).unbind(0)
            heads = causal_attention(query, key, value)
            outputs.append(heads.transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, cells))
        out: Tensor = block.out(torch.cat(outputs).index_select(0, unpad))
        return out

    return attend


def histories(count: int) -> Queries:
    """Return packed histories, each token a query; the same 32 lengths again and again."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.4, 0.8, 32), 2, LENGTH).astype(np.int64)
    lengths = np.tile(lengths, count // 32)
    items = rng.integers(0, ITEMS, int(lengths.sum()))
    queries = pack_histories(np.zeros(count, np.int64), items, lengths)
    assert queries.history is not None
    positions = torch.arange(len(items))
    history = replace(queries.history, query_positions=positions)
    return Queries(user_ids=torch.zeros_like(positions), history=history)


def step(tower: CausalTransformer, queries: Queries) -> list[Tensor]:
    """Return the outputs and the gradients of a forward and a backward pass."""
    tower.zero_grad()
    torch.manual_seed(0)
    vectors = tower(queries)
    vectors.square().sum().backward()
    return [vectors.detach(), *(p.grad for p in tower.parameters() if p.grad is not None)]


def memory_kib(name: str) -> int:
    """Return a field of the status of this process, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]


def peak_mib(run: Callable[[], object]) -> float:
    """Return how much the process grows during a call."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_kib("VmRSS")
    run()
    return (memory_kib("VmHWM") - before) / 1024


@contextmanager
def attention(way: Callable[..., Tensor] | None) -> Iterator[None]:
    """Replace the attention of all blocks; None: leave it."""
    ours = Block._attend
    try:
        Block._attend = way or ours  # type: ignore[method-assign]
        yield
    finally:
        Block._attend = ours  # type: ignore[method-assign]


class Case:
    """One shape: the batch, the tower, and the times of both ways."""

    def __init__(self, count: int, width: int) -> None:
        torch.manual_seed(0)
        self.count, self.width = count, width
        self.tower = CausalTransformer(
            num_items=ITEMS,
            dim=width,
            num_blocks=2,
            num_heads=2,
            max_length=LENGTH,
            hidden=None,
            feed_forward="gelu",
            gated_residual=False,
            dropout=0.2,
            attention_dropout=0.0,
            positions="learned",
        )
        self.queries = histories(count)
        assert self.queries.history is not None
        self.groups = length_groups(self.queries.history.offsets, len(self.queries))
        self.ways = {"one": None, "many": many_gathers(self.groups)}
        self.seconds: dict[str, list[float]] = {name: [] for name in self.ways}
        self.peaks: dict[str, float] = {}

    def check(self) -> None:
        """Compare results, which warms up, and measure memory."""
        outputs = []
        for way in self.ways.values():
            with attention(way):
                outputs.append(step(self.tower, self.queries))
        assert all(map(torch.equal, *outputs)), "the two ways disagree"
        outputs.clear()
        for name, way in self.ways.items():
            self.tower.zero_grad()
            with attention(way):
                self.peaks[name] = peak_mib(lambda: step(self.tower, self.queries))

    def turn(self) -> None:
        """Time both ways."""
        for name, way in self.ways.items():
            with attention(way):
                started = time.process_time()
                step(self.tower, self.queries)
                self.seconds[name].append(time.process_time() - started)

    def results(self) -> dict[str, Any]:
        """Return the medians."""
        scale = 1e6 / len(self.queries)
        shape = {"sequences": self.count, "width": self.width, "positions": len(self.queries)}
        return shape | {
            name: {
                "microseconds": round(scale * statistics.median(times), 2),
                "quartiles": [round(scale * q, 2) for q in statistics.quantiles(times, n=4)[::2]],
                "peak_mib": round(self.peaks[name], 1),
            }
            for name, times in self.seconds.items()
        }


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table, a row per shape."""
    lines = [
        "| width | sequences | positions | many gathers: µs a position | one copy: µs a position | "
        "many to one | MiB, many | MiB, one |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results:
        one, many = row["one"], row["many"]
        lines.append(
            f"| {row['width']} | {row['sequences']} | {row['positions']:,} | "
            f"{many['microseconds']:.1f} | {one['microseconds']:.1f} | "
            f"{many['microseconds'] / one['microseconds']:.2f} | {many['peak_mib']:,.0f} | "
            f"{one['peak_mib']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def with_table(content: str, results: list[dict[str, Any]]) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "attention", table(results))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tables", action="store_true", help="write the table only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        results = []
        for width in WIDTHS:
            cases = [Case(count, width) for count in SEQUENCES]
            for case in cases:
                case.check()
            for _ in range(options.repeats):
                for case in cases:
                    case.turn()
            results += [case.results() for case in cases]
            print(*results[-len(cases) :], sep="\n", flush=True)
        report = {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": 1,
            "clock": "CPU seconds of the process; other work shared the machine",
            "command": f"python benchmarks/attention.py --repeats {options.repeats}",
            "results": results,
        }
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    DOCS.write_text(with_table(DOCS.read_text(), json.loads(RESULTS.read_text())["results"]))


if __name__ == "__main__":
    main()
