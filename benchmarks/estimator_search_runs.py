"""Trainings of ``estimator_search.py``: a small transformer on MovieLens-1M, two splits."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from candid.config import RunConfig, load_recipe, parse_config
from candid.data import PreparedDataset, open_dataset, prepare_folder
from candid.evaluation import EvaluationConfig
from candid.runs import load_run, train_run

ROOT = Path(__file__).parents[1]
RECIPES = {"temporal": "ml1m-temporal", "leave-one-out": "ml1m-loo"}
STEPS = 400
RATES = {"temporal": (5e-4, 1e-3, 2e-3), "leave-one-out": (2e-3, 5e-3, 1e-2)}
N, SEEDS = 16, 3
NUM_GROUPS = 32  # 25 rows of a full batch share a sample
BATCHES = {"batch_size": 16, "max_length": 50, "windows": "all"}
MEASURED = EvaluationConfig(
    ks=(10,), metric="ndcg@10", intervals=False, popularity_slices=0, history_slices=()
)


Tables = dict[str, dict[str, Any]]
SOFTMAX = {"type": "sampled_softmax"}
TRAINED: dict[str, Tables] = {
    "refined": {"loss": SOFTMAX | {"correction": "refined"}},
    "logq": {"loss": SOFTMAX | {"correction": "logq"}},
    "learnt partition function, cap 3": {"loss": {"type": "learnt_partition"}},
}
FULL = "full softmax"


def config_of(split: str, name: str, n: int, lr: float, seed: int) -> RunConfig:
    """Return the config of one training."""
    training: dict[str, Any] = {
        "lr": lr,
        "precision": "float32",
        "schedule": "linear",
        "softmax_over": "trained",
        "patience": None,
        "epochs": 100,
        "max_steps": STEPS,
        "trackers": ["jsonl"],
    }
    table: dict[str, Any] = {
        "name": f"{split}-{name}-{n}-{lr:g}-{seed}".replace(", ", "-").replace(" ", "_"),
        "device": "cpu",
        "threads": 1,
        "seed": seed,
        "batches": BATCHES,
        "model": {
            "query_tower": {
                "type": "causal_transformer",
                "dim": 32,
                "positions": "rotary",
                "dropout": 0.2,
            },
            "item_tower": {"type": "item_embedding", "dim": 32},
        },
        "evaluation": MEASURED.model_dump(mode="json"),
    }
    if name == FULL:
        table["loss"] = {"type": "full_softmax"}
    else:
        table["sampler"] = {"type": "popularity", "num_candidates": n}
        table |= TRAINED[name]
        training["num_groups"] = NUM_GROUPS
    return parse_config(table | {"training": training}, "estimator_search")


def trained(work: Path, data: PreparedDataset, config: RunConfig) -> dict[str, float]:
    """Train and evaluate, unless that is done."""
    folder = work / "runs" / config.name
    result = folder / "test.json"
    if not result.exists():
        shutil.rmtree(folder, ignore_errors=True)
        start = time.process_time()
        train_run(config, data, folder)
        seconds = time.process_time() - start
        report = load_run(folder, data).evaluate("test", MEASURED)
        validation = [
            line["validation/nll"]
            for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            if "validation/nll" in line
        ]
        values = {name: report.metrics[name].value for name in ("nll", "ndcg@10")}
        values |= {"validation_nll": min(validation), "cpu_seconds": round(seconds, 1)}
        result.write_text(json.dumps(values))
        print(config.name, values, flush=True)
    values = json.loads(result.read_text())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return dict(values)


def trained_experiment(work: Path) -> list[dict[str, Any]]:
    """Train every estimator: three learning rates with one seed, the best one with all seeds."""
    results = []
    data = {split: dataset(work, recipe) for split, recipe in RECIPES.items()}
    cells = [(split, name, N) for split in data for name in TRAINED]
    cells.append(("temporal", FULL, 0))
    for split, name, n in cells:
        first = {
            lr: trained(work, data[split], config_of(split, name, n, lr, 0)) for lr in RATES[split]
        }
        best = min(RATES[split], key=lambda lr: first[lr]["validation_nll"])
        seeds = [first[best]] + [
            trained(work, data[split], config_of(split, name, n, best, seed))
            for seed in range(1, SEEDS)
        ]
        results.append(
            {
                "split": split,
                "estimator": name,
                "n": n,
                "lr": best,
                "validation_nll_by_lr": {
                    f"{lr:g}": one["validation_nll"] for lr, one in first.items()
                },
                "nll": [one["nll"] for one in seeds],
                "ndcg@10": [one["ndcg@10"] for one in seeds],
                "cpu_seconds": round(fmean(one["cpu_seconds"] for one in seeds), 1),
            }
        )
    return results


def dataset(work: Path, recipe: str) -> PreparedDataset:
    """Prepare the data of a recipe, unless that is done."""
    config = load_recipe(ROOT / "recipes" / f"{recipe}.toml").data
    assert config is not None
    prepare_folder(config, work / recipe)
    return open_dataset(work / recipe)
