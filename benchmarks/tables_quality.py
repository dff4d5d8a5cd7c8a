"""Quality of row-wise trained tables against dense Adam.

    CANDID_DATA=... python benchmarks/tables_quality.py

A transformer over histories on MovieLens-1M (leave-one-out, the split of
``recipes/ml1m-loo.toml``), refined sampled softmax, the same steps for every rule. The rate of the
tables is chosen by the validation NLL of seed 0 for every rule; then every rule has three seeds.
Test metrics with their standard deviation over seeds, and the difference to dense AdamW by user
(each user's value is the mean over the seeds) with its 95 % interval and sign-flip p-value, are
written to ``benchmarks/results`` and ``docs/benchmarks/speed.md``. Finished runs stay in
``--work``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from candid import __version__
from candid.config import RunConfig, load_recipe, parse_config
from candid.data import prepare_folder
from candid.evaluation import PerUser, compare
from candid.runs import load_run, train_run
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "tables_quality.json"
PAGE = ROOT / "docs" / "benchmarks" / "speed.md"
SEEDS, DIM, LR, STEPS = (0, 1, 2), 64, 5e-3, 1600
FACTORS = {"dense": (0.5, 1.0, 2.0), "row_adam": (1.0, 2.0, 4.0), "row_adagrad": (4.0, 8.0, 16.0)}
"""Rates tried, as multiples of ``LR``: only of the tables if they train by row."""
METRICS = ("ndcg@10", "recall@100", "nll")


def config_of(tables: str, factor: float, seed: int) -> RunConfig:
    """Return the config of a run."""
    rates = {"lr": LR, "table_lr": LR * factor} if tables != "dense" else {"lr": LR * factor}
    return parse_config(
        {
            "name": f"{tables}-{factor}-{seed}",
            "seed": seed,
            "device": "cpu",
            "threads": 1,
            "batches": {"batch_size": 16, "max_length": 50, "windows": "last"},
            "model": {
                "query_tower": {"type": "causal_transformer", "dim": DIM, "positions": "rotary"},
                "item_tower": {"type": "item_embedding", "dim": DIM},
            },
            "sampler": {"type": "popularity", "num_candidates": 256, "exponent": 0.75},
            "loss": {"type": "sampled_softmax", "correction": "refined"},
            "training": rates
            | {
                "tables": tables,
                "softmax_over": "trained",
                "schedule": "linear",
                "betas": [0.9, 0.98],
                "num_groups": 4,
                "epochs": 100,
                "max_steps": STEPS,
                "patience": None,
                "trackers": ["jsonl"],
            },
            "evaluation": {"intervals": False, "popularity_slices": 0, "history_slices": []},
        },
        "tables_quality",
    )


def run(work: Path, tables: str, factor: float, seed: int) -> tuple[dict[str, Any], PerUser]:
    """Train and test, unless that was done; return the numbers of the run and of its users."""
    config = config_of(tables, factor, seed)
    folder = work / config.name
    manifest = folder / "run.json"
    if not (manifest.exists() and "result" in json.loads(manifest.read_text())):
        shutil.rmtree(folder, ignore_errors=True)
        train_run(config, work / "data", folder)
    trained = load_run(folder, work / "data")
    report = trained.evaluate()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = {
        "seed": seed,
        "factor": factor,
        "validation_nll": min(one["validation/nll"] for one in lines if "validation/nll" in one),
        "cpu_seconds": trained.manifest["result"]["cpu_seconds"],
        **{metric: report.metrics[metric].value for metric in METRICS},
    }
    return numbers, report.per_user


def measure(work: Path) -> dict[str, Any]:
    """Return for every rule the rates tried, the seeds, and the difference to dense."""
    results: dict[str, Any] = {}
    users: dict[str, PerUser] = {}
    for tables, factors in FACTORS.items():
        tried = [run(work, tables, factor, SEEDS[0])[0] for factor in factors]
        best = min(tried, key=lambda one: one["validation_nll"])["factor"]
        runs = [run(work, tables, best, seed) for seed in SEEDS]
        mean = np.mean([per_user.numerators for _, per_user in runs], axis=0)
        users[tables] = replace(runs[0][1], numerators=mean)
        results[tables] = {"tried": tried, "factor": best, "runs": [numbers for numbers, _ in runs]}
    for tables in FACTORS:
        if tables != "dense":
            results[tables]["against"] = {
                metric: asdict(compare(users[tables], users["dense"], metric)) for metric in METRICS
            }
    return results


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table."""
    lines = [
        "| tables | rate | NDCG@10 | recall@100 | NLL | NDCG@10 minus dense | NLL minus dense |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for tables, one in results.items():
        cells = [tables, f"{LR * one['factor']:g}"]
        for metric in METRICS:
            values = [numbers[metric] for numbers in one["runs"]]
            cells.append(f"{statistics.mean(values):.4f} ±{statistics.stdev(values):.4f}")
        for metric in ("ndcg@10", "nll"):
            difference = one.get("against", {}).get(metric)
            cells.append("" if difference is None else _difference(difference))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(test: dict[str, Any]) -> str:
    return (
        f"{test['difference']:+.4f} ({test['low']:+.4f} to {test['high']:+.4f}; "
        f"p {test['p_value']:.3f})"
    )


def with_table(content: str, results: dict[str, Any]) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "table quality", table(results) + "\n")


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/tables_quality"))
    work = parser.parse_args().work
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    movies = load_recipe(ROOT / "recipes" / "ml1m-loo.toml").data
    assert movies is not None
    prepare_folder(movies, work / "data")
    results = measure(work)
    document = {
        "command": "python benchmarks/tables_quality.py",
        "versions": {"candid": __version__, "torch": torch.__version__},
        "python": platform.python_version(),
        "settings": {"dim": DIM, "lr": LR, "steps": STEPS, "seeds": SEEDS},
        "results": results,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), results))
    print(table(results))


if __name__ == "__main__":
    main()
