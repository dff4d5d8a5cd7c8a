"""The comparison of corrections by ``candid demo``, with several seeds.

    python benchmarks/demo.py --out benchmarks/results/demo.json

Each seed trains every loss of both regimes; the data is the same. Seeds that are in the file
already are not run again. The table of docs/choosing.md is written from the file.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import candid
from candid.demo import run_demo
from candid.demo.report import ORACLE
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/demo.json"
PAGE = ROOT / "docs/choosing.md"
KEYS = (
    *("regime", "model", "n", "correction", "accidental_hits", "drift", "drift_se"),
    *("nll_over_full", "nll_over_full_low", "nll_over_full_high", "excess_nll", "nll"),
    *("ndcg@10", "recall@10", "popularity@10", "coverage@10", "train_seconds"),
)


def run(seed: int) -> dict[str, Any]:
    """Run the demo with one seed and return its rows and regimes."""
    with tempfile.TemporaryDirectory() as folder:
        document = run_demo(folder, seed=seed, note=print).report.to_json()
    rows = [{key: row[key] for key in KEYS} for row in document["rows"]]
    return {**document, "rows": rows, "seed": seed}


def table(runs: list[dict[str, Any]]) -> str:
    """Return the table of docs/choosing.md: mean and standard deviation over the seeds."""
    lines = [
        "| regime | n | loss | predicted drift | NLL over full softmax | NDCG@10 |",
        "|---|---|---|---|---|---|",
    ]
    for rows in zip(*(one["rows"] for one in runs), strict=True):
        first = rows[0]
        if first["model"] == ORACLE:
            continue
        drift, over = (_cell([row[key] for row in rows]) for key in ("drift", "nll_over_full"))
        if first["n"] is None:
            drift = over = "0"
        ndcg = _cell([row["ndcg@10"] for row in rows])
        n = "" if first["n"] is None else first["n"]
        lines.append(f"| {first['regime']} | {n} | {first['model']} | {drift} | {over} | {ndcg} |")
    return "\n".join(lines) + "\n"


def with_table(content: str, runs: list[dict[str, Any]]) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "demo", table(runs))


def _cell(values: list[float]) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    value = f"{round(mean(values), 3) + 0.0:.3f}"
    return value if len(values) < 2 else f"{value} ± {stdev(values):.3f}"


def main() -> None:
    """Run the missing seeds, then write the file and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    runs = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    for seed in arguments.seeds:
        if any(one["seed"] == seed for one in runs):
            continue
        runs.append(run(seed))
        document = {
            "command": "python benchmarks/demo.py",
            "versions": {
                "candid": candid.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "threads": 1,
            "runs": sorted(runs, key=lambda one: one["seed"]),
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), runs))


if __name__ == "__main__":
    main()
