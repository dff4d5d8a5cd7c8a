"""Time and memory of an audit of a million items, of which docs/benchmarks/audit.md tells.

    python benchmarks/audit_million.py

A model of width 64 whose logits are log Q + 1.5·N(0, 1), Q the popularity by Zipf's law, audited
through a sample of users with the standard set on one thread.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from pathlib import Path

import torch

import candid
from candid.atomic import write_json
from candid.audit import Subject, affordable, audit, standard_plans

RESULTS = Path(__file__).parent / "results" / "audit_million.json"
ITEMS, USERS, WIDTH, SIZES = 1_000_000, 128, 64, (64, 256)


def subject(seed: int = 0) -> Subject:
    """The model and its training rows, as many of an item as its popularity says."""
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
    return Subject(
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
    """Most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    audited = subject()
    before = gigabytes()
    plans, left_out = affordable(standard_plans(SIZES, ITEMS), ITEMS)
    began = time.monotonic()
    report = audit(
        [audited],
        plans,
        progress=lambda done, total, what: print(
            f"{time.monotonic() - began:5.0f} s  {done + 1}/{total}  {what}", file=sys.stderr
        ),
    )
    seconds = time.monotonic() - began
    findings = [entry.findings["mid"]["all"] for entry in report.entries]
    document = {
        "command": "python benchmarks/audit_million.py",
        "candid": candid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "items": ITEMS,
        "users": USERS,
        "sizes": SIZES,
        "samplers": len(plans) // len(SIZES),
        "minutes": round(seconds / 60, 1),
        "gigabytes_before": round(before, 1),
        "gigabytes": round(gigabytes(), 1),
        "largest_bias_error": round(max(found.bias_error for found in findings), 4),
        "left_out": left_out,
    }
    write_json(RESULTS, document)


if __name__ == "__main__":
    main()
