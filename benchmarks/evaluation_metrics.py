"""CPU seconds of an evaluation by the metrics that it reports.

    CANDID_DATA=data python benchmarks/evaluation_metrics.py

For each recipe, an untrained model is evaluated on a sample of test users, with slices and
intervals, on one thread: with the metrics that need only the list of each user and its targets'
ranks (``basic``), with the default metrics, and with all (``intra_list_diversity`` by item
vectors). The three alternate; ratios are those of one round. The first round warms up; the users
of each item, which the first evaluation of a dataset counts for ``mean_inv_user_freq``, are
measured apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "evaluation_metrics.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
BASIC = ("recall", "hit_rate", "ndcg", "mrr", "popularity", "popularity_percentile", "coverage")


def measure(recipe: Path, data: Path, users: int, rounds: int) -> dict[str, Any]:
    """Return the figures of one recipe."""
    from candid.config import load_recipe
    from candid.data import open_dataset, prepare_folder
    from candid.evaluation import evaluate
    from candid.evaluation.metrics import DEFAULT_METRICS, METRICS
    from candid.runs.build import build_model
    from candid.runs.features import fit_features

    torch.set_num_threads(1)
    config = load_recipe(recipe, [])
    assert config.data is not None
    folder = data / config.name
    prepare_folder(config.data, folder)
    dataset = open_dataset(folder)
    features = fit_features(config.features, dataset)
    model = build_model(config, dataset, features)
    started = time.process_time()
    users_of_items = int(dataset.train_user_counts.sum())
    counting = time.process_time() - started
    sets = {"basic": BASIC, "default": DEFAULT_METRICS, "all": METRICS}
    seconds: dict[str, list[float]] = {name: [] for name in sets}
    values: dict[str, dict[str, float | None]] = {}
    for turn in range(rounds + 1):
        for name, metrics in sets.items():
            settings = config.evaluation.model_copy(update={"metrics": metrics, "max_users": users})
            started = time.process_time()
            report = evaluate(
                model,
                dataset,
                settings,
                max_length=config.batches.max_length,
                context=features.context_for(dataset),
            )
            taken = time.process_time() - started
            values[name] = {one: estimate.value for one, estimate in report.metrics.items()}
            if turn:
                seconds[name].append(taken)
    assert all(values["all"][name] == value for name, value in values["basic"].items())
    row = {
        "recipe": config.name,
        "users": report.counts["users"],
        "items": dataset.num_items,
        "training_pairs": users_of_items,
        "counting_cpu_seconds": round(counting, 3),
        "cpu_seconds": {name: round(float(np.median(s)), 3) for name, s in seconds.items()},
        "ratio_to_basic": {
            name: [round(a / b, 3) for a, b in zip(seconds[name], seconds["basic"], strict=True)]
            for name in ("default", "all")
        },
    }
    print(json.dumps(row), flush=True)
    return row


def with_table(content: str, results: list[dict[str, Any]]) -> str:
    """Replace the generated block of the docs by the table of the results."""
    lines = ["| recipe | basic | default | all |", "|---|---:|---:|---:|"]
    for row in results:
        cells = [f"{row['cpu_seconds']['basic']:.2f}"]
        for name, ratios in row["ratio_to_basic"].items():
            seconds = row["cpu_seconds"][name]
            cells.append(f"{seconds:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        lines.append(f"| {row['recipe']} | {' | '.join(cells)} |")
    return with_block(content, "evaluation metrics", "\n".join([*lines, ""]))


def main() -> None:
    """Measure the recipes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipes", nargs="+", default=["amazon-beauty", "ml1m-loo"])
    parser.add_argument("--users", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = [
            measure(ROOT / "recipes" / f"{name}.toml", Path(temporary), given.users, given.rounds)
            for name in given.recipes
        ]
    result = {
        "command": "CANDID_DATA=data python benchmarks/evaluation_metrics.py",
        "what": "CPU seconds of one process on one thread, medians; the machine was shared, so "
        "the ratios of a round count",
        "users": given.users,
        "rounds": given.rounds,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "results": rows,
    }
    given.results.write_text(json.dumps(result, indent=2) + "\n")
    if given.results == RESULTS:
        DOCS.write_text(with_table(DOCS.read_text(), rows))
    print(f"written to {given.results}")


if __name__ == "__main__":
    main()
