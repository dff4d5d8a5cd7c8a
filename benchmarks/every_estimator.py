"""Every estimator trains: each proposal, at bfloat16, on two datasets.

    python benchmarks/every_estimator.py

Short runs of a small transformer on MovieLens-1M (``CANDID_DATA``) and on a synthetic world, with
plain dot products and with cosines at a learnt temperature, under ``refined``; draws by popularity
under every correction. It asks whether any combination diverges, not which is best: for that the
steps are far too few. A run that is complete in the work folder is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from candid import __version__
from candid.audit import ALL, Plan, Variant, standard_plans
from candid.config import load_recipe, parse_config
from candid.data import DataConfig, PreparedDataset, Role, open_dataset, prepare
from candid.errors import CandidError
from candid.evaluation import EvaluationConfig
from candid.proposals import PROPOSALS
from candid.runs import evaluate_run, load_run, train_run
from candid.world import World, WorldConfig

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "every_estimator.json"
N, STEPS, DIM = 64, 400, 32
WORLD = {"num_users": 4_000, "num_items": 3_000, "interactions_mean": 20.0}
SIMILARITIES: dict[str, dict[str, Any]] = {
    "dot": {"similarity": "dot"},
    "cosine": {"similarity": "cosine", "temperature": 0.1, "learn_temperature": True},
}
MEMORY: dict[str, Any] = {"type": "memory", "size": 1024}
STREAM: dict[str, Any] = {"type": "in_batch", "frequency": {"type": "streaming"}}
SKETCH: dict[str, Any] = {"type": "in_batch", "frequency": {"type": "count_min"}}
MEASURED = EvaluationConfig(
    ks=(10,), metric="ndcg@10", bootstrap=0, popularity_slices=0, history_slices=()
)


def datasets(work: Path) -> dict[str, PreparedDataset]:
    """The two datasets, prepared now or earlier."""
    movies = load_recipe(ROOT / "recipes" / "ml1m-loo.toml").data
    assert movies is not None
    prepare(movies, work / "ml1m")
    if not (work / "files" / "interactions.parquet").exists():
        World(WorldConfig(**WORLD)).write(work / "files")
    prepare(
        DataConfig(interactions=str(work / "files" / "interactions.parquet"), time="timestamp"),
        work / "world",
    )
    return {name: open_dataset(work / name) for name in ("ml1m", "world")}


def proposals(num_items: int) -> dict[str, tuple[dict[str, Any], list[Variant]]]:
    """By name: a proposal as a recipe's table, and the corrections to train with."""
    refined = [Variant("refined")]
    found = {plan.name: (table_of(plan), refined) for plan in standard_plans([N], num_items)}
    found["popularity"] = (found["popularity"][0], list(ALL))
    found["memory"] = (MEMORY, refined)
    found["in-batch, streaming frequency"] = (STREAM, refined)
    found["in-batch, count-min frequency"] = (SKETCH, refined)
    return found


def table_of(plan: Plan) -> dict[str, Any]:
    """The proposal section of a plan."""
    kind = next(k for k, one in PROPOSALS.items() if isinstance(plan.config, one.Config))
    return {"type": kind, **plan.config.model_dump(mode="json", exclude_none=True)}


def run(
    folder: Path,
    data: PreparedDataset,
    similarity: str,
    proposal: dict[str, Any],
    variant: Variant,
) -> dict[str, Any]:
    """Train one combination and measure it; a run that fails says why."""
    config = parse_config(
        {
            "name": folder.name,
            "device": "cpu",
            "threads": 1,
            "batches": {"batch_size": 32, "max_length": 50},
            "model": {
                "query_tower": {"type": "causal_transformer", "dim": DIM, "positions": "rotary"},
                "item_tower": {"type": "item_embedding", "dim": DIM},
                **SIMILARITIES[similarity],
            },
            "proposal": proposal,
            "loss": {
                "type": "sampled_softmax",
                "correction": variant.correction,
                "jackknife": variant.jackknife,
            },
            "training": {
                "precision": "bfloat16",
                "max_steps": STEPS,
                "lr": 3e-3,
                "patience": None,
                "epochs": 100,
                "validate_every": 10_000,
                "trackers": ["jsonl"],
            },
            "evaluation": MEASURED.model_dump(mode="json"),
        },
        "every_estimator",
    )
    try:
        if not (folder / "last.safetensors").exists():
            train_run(config, data, folder)
        report = evaluate_run(load_run(folder, data), Role.TEST, MEASURED)
    except CandidError as error:
        return {"failed": str(error)}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "largest_gradient_norm": max(line["gradient_norm"] for line in lines if "loss" in line),
        "test_nll": report.metrics["nll"].value,
        "test_ndcg@10": report.metrics["ndcg@10"].value,
    }


def main() -> None:
    """Run everything, write, and say what diverged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/every_estimator"))
    work = parser.parse_args().work
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    data = datasets(work)
    todo = [
        (name, similarity, proposal, variant)
        for name, dataset in data.items()
        for similarity in SIMILARITIES
        for proposal, (_, variants) in proposals(dataset.num_items).items()
        for variant in variants
    ]
    results = []
    for name, similarity, proposal, variant in track(todo, console=Console(stderr=True)):
        label = f"{name}-{similarity}-{proposal}-{variant.label}"
        folder = work / "runs" / label.replace(", ", "-").replace(" + ", "-").replace(" ", "_")
        table = proposals(data[name].num_items)[proposal][0]
        found = run(folder, data[name], similarity, table, variant)
        results.append(
            {
                "data": name,
                "similarity": similarity,
                "proposal": proposal,
                "correction": variant.label,
                "log_num_items": math.log(data[name].num_items),
                **found,
            }
        )
    document = {
        "command": "python benchmarks/every_estimator.py",
        "versions": {"candid": __version__, "torch": torch.__version__},
        "settings": {"n": N, "steps": STEPS, "dim": DIM, "world": WORLD},
        "results": results,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    bad = [one for one in results if "failed" in one or not math.isfinite(one["test_nll"])]
    worse = [one for one in results if one not in bad and one["test_nll"] > one["log_num_items"]]
    print(f"{len(results)} runs, {len(bad)} failed, {len(worse)} end above log V")
    for one in bad + worse:
        print(one)


if __name__ == "__main__":
    main()
