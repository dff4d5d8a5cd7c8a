"""Error and cost of item frequencies estimated from a stream, against exact counts.

    python benchmarks/frequency.py --out benchmarks/results/frequency.json

A Zipf stream of rows in batches: "steady" keeps its popularity; in "moved" every item gets the
popularity of another item half-way, and the exact counts are those of the second half. Errors
are relative and weighted by occurrences; head, middle and tail have a third of the occurrences
each. Times are CPU time on one thread per batch.
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
    Frequency,
    StreamingFrequency,
    frequency_error,
)


def zipf(num_items: int, generator: torch.Generator) -> torch.Tensor:
    """Return Zipf probabilities [V] in random order."""
    weights = 1.0 / torch.arange(1, num_items + 1, dtype=torch.float64)
    return (weights / weights.sum())[torch.randperm(num_items, generator=generator)]


def rows_of(q: torch.Tensor, num_rows: int, generator: torch.Generator) -> torch.Tensor:
    """Return items [R] sampled from ``q``."""
    points = torch.rand(num_rows, generator=generator, dtype=torch.float64)
    return torch.searchsorted(q.cumsum(0), points).clamp(max=len(q) - 1)


def estimators(num_items: int) -> dict[str, Frequency]:
    """Return the measured frequencies, by name."""
    return {
        "streaming": StreamingFrequency(num_items),
        "streaming, rate 0.001": StreamingFrequency(num_items, rate=0.001),
        "streaming, 1 hash of 65,536": StreamingFrequency(
            num_items, num_buckets=65_536, num_hashes=1
        ),
        "streaming, 4 hashes of 65,536": StreamingFrequency(
            num_items, num_buckets=65_536, num_hashes=4
        ),
        "count_min": CountMinFrequency(num_items),
        "count_min, 4 hashes of 16,384": CountMinFrequency(num_items, num_buckets=16_384),
    }


def observe(frequency: Frequency, stream: torch.Tensor, batch_size: int) -> float:
    """Observe a stream and return CPU milliseconds per batch."""
    batches = stream.split(batch_size)
    start = time.process_time()
    for batch in batches:
        frequency.observe(batch)
    return (time.process_time() - start) / len(batches) * 1000


def look_up(frequency: Frequency, ids: torch.Tensor) -> float:
    """Return CPU milliseconds of a look-up."""
    start = time.process_time()
    for _ in range(20):
        frequency.log_q(ids)
    return (time.process_time() - start) / 20 * 1000


def main() -> None:
    """Measure, print and write."""
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
        exact = torch.bincount(
            stream if kind == "steady" else stream[half:], minlength=options.items
        )
        whole = ExactFrequency(torch.bincount(stream, minlength=options.items))
        measured = estimators(options.items)
        for name, frequency in ({"counts of the whole stream": whole} | measured).items():
            line = {"stream": kind, "frequency": name}
            if name in measured:
                line["observe_ms"] = round(observe(frequency, stream, options.batch_size), 2)
                line["log_q_ms"] = round(look_up(frequency, stream[: options.batch_size]), 2)
            error = frequency_error(frequency, exact)
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
