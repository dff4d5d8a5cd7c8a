"""Cost and variance of kernel samplers, which have a sample for each row.

    python benchmarks/kernel_samples.py --out benchmarks/results/kernel_samples.json

Items are in clusters on the unit sphere, queries near the clusters, scores are cosines over a
temperature of 0.1. ``variance`` is the relative variance of an estimate of Z from one sample, the
median over rows: the number of samples for a given precision is proportional to it. Times are
CPU time on one thread; ``full_ms`` is the matrix product with the whole catalog, which the tree
avoids.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

import candid
from candid.samplers import Quadratic, RandomFourier

WIDTH, ROWS, SAMPLES = 64, 256, 64


def cpu_ms(act: Callable[[], object], times: int = 3) -> float:
    """Return CPU milliseconds, the lowest of some runs after a first one."""
    act()
    milliseconds = []
    for _ in range(times):
        start = time.process_time()
        act()
        milliseconds.append((time.process_time() - start) * 1000)
    return round(min(milliseconds), 1)


def clustered(num_items: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return unit item vectors [V, D] and queries [B, D] of length 10."""
    centres = normalize(torch.randn(50, WIDTH, generator=generator), dim=1)

    def around(count: int) -> Tensor:
        cluster = centres[torch.randint(50, (count,), generator=generator)]
        return normalize(cluster + 0.1 * torch.randn(count, WIDTH, generator=generator), dim=1)

    return around(num_items), 10.0 * around(ROWS)


def variance(log_q: Tensor, scores: Tensor) -> float:
    """Return the median over rows of Σ P² / Q - 1."""
    log_p = scores.double().log_softmax(dim=1)
    return float((torch.exp(2 * log_p - log_q.double()).sum(dim=1) - 1).median())


def measure(num_items: int) -> list[dict[str, object]]:
    """Return the results for one size of catalog."""
    generator = torch.Generator().manual_seed(0)
    items, query = clustered(num_items, generator)
    positive_ids = torch.zeros(ROWS, dtype=torch.int64)
    scores = query[:32] @ items.T
    uniform = torch.full_like(scores, -math.log(num_items))
    full = cpu_ms(lambda: (query @ items.T).logsumexp(dim=1))
    results: list[dict[str, object]] = [
        {
            "items": num_items,
            "sampler": "uniform",
            "variance": round(variance(uniform, scores), 2),
            "full_ms": full,
        }
    ]
    for name, sampler in {
        "random_fourier": RandomFourier(num_items, num_candidates=SAMPLES),
        "quadratic": Quadratic(num_items, num_candidates=SAMPLES),
    }.items():
        line: dict[str, object] = {"items": num_items, "sampler": name}
        line["refresh_ms"] = cpu_ms(lambda p=sampler: p.refresh(items), 1)
        line["sample_ms"] = cpu_ms(
            lambda p=sampler: p.sample(positive_ids, query=query, generator=generator)
        )
        changed = torch.randperm(num_items, generator=generator)[:256]
        line["update_256_ms"] = cpu_ms(lambda p=sampler, c=changed: p.update(c, items[c]))
        catalog = torch.arange(num_items)[None]
        log_counts = sampler.log_expected_count_of(catalog, positive_ids[:32], query=query[:32])
        line["variance"] = round(variance(log_counts - math.log(SAMPLES), scores), 3)
        results.append(line)
    return results


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for num_items in options.items:
        for line in measure(num_items):
            print(line, flush=True)
            results.append(line)
    if options.out:
        report = {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "rows": ROWS,
            "samples": SAMPLES,
            "width": WIDTH,
            "results": results,
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
