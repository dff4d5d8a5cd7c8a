"""Error and cost of item frequencies learnt from a stream, against exact counts.

    python benchmarks/frequency.py --out benchmarks/results/frequency.json

A Zipf stream of rows in batches: "steady" keeps its popularity, in "moved" every item gets the
popularity of another half-way, and the truth is that of the second half. Errors are relative,
weighted by how often an item occurs; head, middle and tail hold a third of the occurrences
each. Times are CPU time on one thread, for each batch.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

import candid
from candid.samplers import (
    CountMinFrequency,
    ExactFrequency,
    StreamFrequency,
    StreamingFrequency,
    frequency_error,
)


def zipf(num_items: int, generator: torch.Generator) -> torch.Tensor:
    """Probabilities [V] in an order of chance."""
    weights = 1.0 / torch.arange(1, num_items + 1, dtype=torch.float64)
    return (weights / weights.sum())[torch.randperm(num_items, generator=generator)]


def rows_of(q: torch.Tensor, num_rows: int, generator: torch.Generator) -> torch.Tensor:
    """Items [R] drawn from ``q``."""
    points = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    return torch.searchsorted(q.cumsum(0), points).clamp(max=len(q) - 1)


def learners(num_items: int) -> dict[str, StreamFrequency]:
    """What is measured, by name."""
    return {
        "streaming": StreamingFrequency(num_items),
        "streaming, rate 0.001": StreamingFrequency(num_items, rate=0.001),
        "streaming, 1 hash of 65,536": StreamingFrequency(num_items, 65_536, 1),
        "streaming, 4 hashes of 65,536": StreamingFrequency(num_items, 65_536, 4),
        "count_min": CountMinFrequency(num_items),
        "count_min, 4 hashes of 16,384": CountMinFrequency(num_items, 16_384),
    }


def learn(frequency: StreamFrequency, stream: torch.Tensor, batch_size: int) -> float:
    """Observe a stream; returns CPU milliseconds a batch."""
    batches = stream.split(batch_size)
    start = time.process_time()
    for batch in batches:
        frequency.observe(batch)
    return (time.process_time() - start) / len(batches) * 1000


def ask(frequency: StreamFrequency, ids: torch.Tensor) -> float:
    """CPU milliseconds of a look-up."""
    start = time.process_time()
    for _ in range(20):
        frequency.log_q(ids)
    return (time.process_time() - start) / 20 * 1000


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    before, after = (zipf(options.items, generator) for _ in range(2))
    half = options.rows // 2
    first = rows_of(before, half, generator)
    streams = {
        "steady": torch.cat([first, rows_of(before, half, generator)]),
        "moved": torch.cat([first, rows_of(after, half, generator)]),
    }
    results = []
    for kind, stream in streams.items():
        truth = torch.bincount(
            stream if kind == "steady" else stream[half:], minlength=options.items
        )
        whole = ExactFrequency(torch.bincount(stream, minlength=options.items))
        named = {"counts of the whole stream": whole} | learners(options.items)
        for name, frequency in named.items():
            line = {"stream": kind, "frequency": name}
            if isinstance(frequency, StreamFrequency):
                line["observe_ms"] = round(learn(frequency, stream, options.batch_size), 2)
                line["log_q_ms"] = round(ask(frequency, stream[: options.batch_size]), 2)
            error = frequency_error(frequency, truth)
            line["error"] = round(error.weighted, 4)
            line |= {band: round(value, 4) for band, value in error.by_band.items()}
            results.append(line)
            print(line, flush=True)
    if options.out:
        report = {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "items": options.items,
            "rows": options.rows,
            "batch_size": options.batch_size,
            "results": results,
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
