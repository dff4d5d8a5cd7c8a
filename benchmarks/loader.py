"""Cost of batches: interactions per second, and the loader's share of a training step.

    python benchmarks/loader.py            # measure; write the results and the page
    python benchmarks/loader.py --tables   # write the table of docs/benchmarks/speed.md only

The data are random: 10⁷ interactions of 10⁵ users and 10⁵ items. Batches are made in the training
thread (``num_workers = 0``), so that their full cost is visible; times are CPU seconds of whole
epochs on one thread with shuffling, medians. The share is that of real steps at width 64, with
the cheapest loss in use.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch

import candid
from candid.batches import Batch, BatchesConfig, Loader
from candid.config import parse_config
from candid.data import PreparedDataset
from candid.runs import build_model, build_objective
from candid.training import Trainer
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "loader.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
INTERACTIONS, USERS, ITEMS = 10**7, 10**5, 10**5
CASES: dict[str, dict[str, Any]] = {
    "ids": {"unit": "interaction", "batch_size": 8192},
    "histories": {"batch_size": 128, "max_length": 50, "windows": "all"},
}
QUERY_TOWERS = {
    "ids": {"type": "user_embedding", "dim": 64},
    "histories": {"type": "causal_transformer", "dim": 64, "num_heads": 2},
}


def dataset() -> PreparedDataset:
    """Return users with 1 to 199 interactions, all of them training targets."""
    rng = np.random.default_rng(0)
    inner = np.sort(rng.choice(INTERACTIONS - 1, USERS - 1, replace=False)) + 1
    return PreparedDataset(
        item_ids=rng.integers(0, ITEMS, INTERACTIONS).astype(np.int32),
        user_offsets=np.concatenate([[0], inner, [INTERACTIONS]]),
        roles=np.zeros(INTERACTIONS, np.uint8),
        users=pl.DataFrame({"source_id": np.arange(USERS)}),
        items=pl.DataFrame({"source_id": np.arange(ITEMS)}),
    )


def rates(data: PreparedDataset, case: str, repeats: int) -> list[float]:
    """Return training targets per second, for each of several epochs."""
    loader = Loader(data, BatchesConfig(**CASES[case], num_workers=0), seed=0)
    rates_of_epochs = []
    for _ in range(repeats):
        started, rows = time.process_time(), 0
        for batch in loader.epoch():
            rows += len(batch)
        rates_of_epochs.append(rows / (time.process_time() - started))
    return rates_of_epochs


def share(data: PreparedDataset, case: str, steps: int) -> dict[str, float]:
    """Return median CPU milliseconds of a batch and of its step, and their ratio."""
    config = parse_config(
        {
            "name": "loader",
            "batches": CASES[case] | {"num_workers": 0},
            "model": {
                "query_tower": QUERY_TOWERS[case],
                "item_tower": {"type": "item_embedding", "dim": 64},
            },
            "sampler": {"type": "uniform", "num_candidates": 256},
            "loss": {"type": "sampled_softmax", "correction": "refined"},
            "training": {"tables": "row_adam"},
        },
        "the benchmark's settings",
    )
    torch.manual_seed(0)
    model = build_model(config, data)
    loss, sampler = build_objective(config, data)
    loader = Loader(data, config.batches, seed=0)
    loader.batch(0, 0)  # makes the permutation, which the rates include
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            loader=loader,
            loss=loss,
            sampler=sampler,
            config=config.training,
            folder=Path(folder),
        )
        making, using = [], []
        for number in range(steps + 3):
            batch, milliseconds = timed_batch(loader, number)
            started = time.process_time()
            trainer.step(batch)
            if number >= 3:
                making.append(milliseconds)
                using.append((time.process_time() - started) * 1e3)
    made, used = statistics.median(making), statistics.median(using)
    return {"batch_ms": round(made, 3), "step_ms": round(used, 2), "share": made / (made + used)}


def timed_batch(loader: Loader, number: int) -> tuple[Batch, float]:
    """Return a batch and its CPU milliseconds."""
    started = time.process_time()
    batch = loader.batch(0, number)
    return batch, (time.process_time() - started) * 1e3


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table, a row per case."""
    lines = [
        "| | interactions/s | ms a batch | ms a step | share |",
        "|---|---:|---:|---:|---:|",
    ]
    for case, result in results.items():
        settings = CASES[case]
        name = f"{case}, batches of {settings['batch_size']:,}"
        lines.append(
            f"| {name} | {result['rate'] / 1e6:.1f} million | {result['batch_ms']:.2f} | "
            f"{result['step_ms']:.1f} | {result['share']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def with_table(content: str, results: dict[str, Any]) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "loader", table(results))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--tables", action="store_true", help="write the table only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tables:
        data = dataset()
        results = {}
        for case in CASES:
            measured = rates(data, case, options.repeats)
            results[case] = {
                "rate": round(statistics.median(measured)),
                "rates": [round(rate) for rate in measured],
                **share(data, case, options.steps),
            }
            print(case, results[case], flush=True)
        report = {
            "candid": candid.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "command": "python benchmarks/loader.py "
            f"--repeats {options.repeats} --steps {options.steps}",
            "results": results,
        }
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    results = json.loads(RESULTS.read_text())["results"]
    DOCS.write_text(with_table(DOCS.read_text(), results))


if __name__ == "__main__":
    main()
