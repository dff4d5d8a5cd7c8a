"""Time and memory of an audit of a million items, for docs/benchmarks/audit.md.

    python benchmarks/audit_million.py

A model of width 64 whose logits are log Q + 1.5·N(0, 1), Q the popularity by Zipf's law, audited
through a sample of users with the standard set on one thread.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from pathlib import Path

import torch

import candid
from candid.atomic import write_json
from candid.audit import (
    AuditInput,
    Estimator,
    SamplingBudget,
    affordable_cases,
    audit,
    standard_cases,
)

RESULTS = Path(__file__).parent / "results" / "audit_million.json"
ITEMS, USERS, WIDTH, SIZES = 1_000_000, 32, 64, (64,)
ACCURACY = 0.01
"""Requested standard error of a bias."""


def make_input(seed: int = 0) -> AuditInput:
    """Make the model and its training rows, in proportion to the popularity of each item."""
    generator = torch.Generator().manual_seed(seed)
    q = 1.0 / torch.arange(1, ITEMS + 1, dtype=torch.float64)
    q /= q.sum()
    items = torch.randn(ITEMS, WIDTH, generator=generator)
    items[:, -1] = q.log()
    query = torch.randn(USERS, WIDTH, generator=generator)
    query *= 1.5 / query[:, :-1].norm(dim=1, keepdim=True)
    query[:, -1] = 1.0
    positives = torch.multinomial((query @ items.T).softmax(dim=1), 1, generator=generator)
    counts = (q / q[-1]).round().long()
    training = torch.arange(ITEMS).repeat_interleave(counts)
    return AuditInput(
        name="mid",
        query=query,
        item_vectors=items,
        positive_ids=positives[:, 0],
        user_ids=torch.arange(USERS),
        counts=counts,
        training_positive_ids=training,
        training_user_ids=USERS + torch.arange(len(training)),
    )


def gigabytes() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measure and write the result."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    audited = make_input()
    before = gigabytes()
    cases, not_measured = affordable_cases(standard_cases(SIZES, ITEMS), ITEMS)
    began, cpu_before = time.monotonic(), time.process_time()
    report = audit(
        [audited],
        cases,
        sampling=SamplingBudget(accuracy=ACCURACY),
        progress=lambda done, total, name: print(
            f"{time.monotonic() - began:5.0f} s  {done + 1}/{total}  {name}", file=sys.stderr
        ),
    )
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_before
    measurements = [entry.inputs["mid"] for entry in report.entries]
    document = {
        "command": "python benchmarks/audit_million.py",
        "candid": candid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "items": ITEMS,
        "users": USERS,
        "sizes": SIZES,
        "accuracy": ACCURACY,
        "samplers": len(cases) // len(SIZES),
        "minutes": round(seconds / 60, 1),
        "cpu_minutes": round(cpu_seconds / 60, 1),
        "gigabytes_before": round(before, 1),
        "gigabytes": round(gigabytes(), 1),
        "drift_users": len(measurements[0].drift.by_user),
        "largest_bias_error": round(max(one.statistics.bias_error for one in measurements), 4),
        "largest_drift_error_of_logq": round(
            max(
                one.drift.error
                for one, entry in zip(measurements, report.entries, strict=True)
                if entry.estimator == Estimator("logq")
            ),
            4,
        ),
        "not_measured": not_measured,
    }
    write_json(RESULTS, document)


if __name__ == "__main__":
    main()
