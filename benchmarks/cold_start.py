"""Ids, features, or both: who knows items that training never saw?

    python benchmarks/cold_start.py --seeds 0 1 2

Models alike but for the item tower and the query's user features: a table of ids, with all items
as negatives, as is usual, or only those that are ever trained; features without an id; features
with the id added ("both"). Each is one ``candid train``
in a process of its own, resumable. The result under ``benchmarks/results`` holds, by seed, the
test metrics on warm and on cold targets with their bootstrap intervals over users.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from candid.world import World, WorldConfig
from recipe_figures import candid

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "cold_start.json"
DATASETS = {
    "world": ROOT / "benchmarks" / "cold_start.toml",
    "ml1m-positives": ROOT / "recipes" / "ml1m-features.toml",
}
WORLD = {"num_users": 20_000, "num_items": 5_000, "interactions_mean": 20.0, "released_share": 0.5}
IDS = [
    "features.item=",
    "features.user=",
    "model.item_tower.type=item_embedding",
    "model.query_tower={query}",
]
MODELS = {
    "ids": [*IDS, "training.catalog=all"],
    "ids, new items no negatives": IDS,
    "features": ["model.item_tower.id_mode=none"],
    "both": [],
}
METRICS = ("ndcg@10", "recall@100", "nll")


def overrides(recipe: Path, model: str) -> list[str]:
    """Settings that turn the recipe's model into another: the ids keep the same transformer."""
    text = recipe.read_text()
    start = text.index('{ type = "causal_transformer"')
    transformer = text[start : text.index("}", start) + 1]
    return [setting.format(query=transformer) for setting in MODELS[model]]


def run(recipe: Path, work: Path, model: str, seed: int) -> dict[str, Any]:
    """Train and test one model, unless that is done already."""
    folder = work / f"{model.replace(', ', '-').replace(' ', '_')}-{seed}"
    done = folder / "evaluation-test.json"
    if not done.exists():
        settings = [f"seed={seed}", "threads=1", *overrides(recipe, model)]
        candid(
            "train",
            str(recipe),
            *("--out", str(folder), "--data", str(work / "data"), "--json"),
            *(["--resume"] if (folder / "last.safetensors").exists() else []),
            *(flag for setting in settings for flag in ("--set", setting)),
        )
    manifest = json.loads((folder / "run.json").read_text())
    report = json.loads(done.read_text())
    slices = {
        part["label"]: {name: part["metrics"][name] for name in METRICS}
        | {"targets": part["targets"], "queries": part["queries"]}
        for part in report["slices"]["target_warmth"]
    }
    return {"seed": seed, **slices, "result": manifest["result"], "machine": manifest["machine"]}


def measure(name: str, work: Path, seeds: list[int]) -> dict[str, Any]:
    """All models of one dataset."""
    recipe = DATASETS[name]
    candid("prepare", str(recipe), "--out", str(work / "data"), "--json")
    return {model: [run(recipe, work, model, seed) for seed in seeds] for model in MODELS}


def table(results: dict[str, Any]) -> str:
    """Means over seeds, with their standard deviation."""
    lines = [f"{'data':<16}{'items':<7}{'model':<30}" + "".join(f"{m:>18}" for m in METRICS)]
    for name, models in results.items():
        for warmth in ("warm", "cold"):
            for model, runs in models.items():
                cells = []
                for metric in METRICS:
                    values = [one[warmth][metric]["value"] for one in runs]
                    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                    cells.append(f"{statistics.mean(values):.4f} ±{deviation:.4f}")
                lines.append(
                    f"{name:<16}{warmth:<7}{model:<30}" + "".join(f"{cell:>18}" for cell in cells)
                )
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--work", type=Path, default=Path("build/cold_start"))
    arguments = parser.parse_args()
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    os.environ["CANDID_WORLD"] = str(arguments.work / "world")
    if not (arguments.work / "world" / "users.parquet").exists():
        World(WorldConfig(**WORLD)).write(arguments.work / "world")
    earlier = json.loads(RESULT.read_text())["results"] if RESULT.exists() else {}
    results = earlier | {
        name: measure(name, arguments.work / name, arguments.seeds) for name in arguments.datasets
    }
    command = "python benchmarks/cold_start.py --seeds " + " ".join(map(str, arguments.seeds))
    document = {"command": command, "world": WORLD, "results": results}
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
