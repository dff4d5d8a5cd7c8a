"""Run recipes over several seeds and write the figures that they state.

    python benchmarks/recipe_figures.py recipes/ml1m-loo.toml --seeds 0 1 2 --work /tmp/figures

Each seed is one ``candid train`` (which also measures the test split), in a process of its
own, so that seconds and peak memory are of that run alone. A seed whose run is complete in the
work folder is not run again; an interrupted one is resumed. The result, one JSON file a recipe
under ``benchmarks/results/recipes``, holds the command, versions, settings and every seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "recipes"
METRICS = ("ndcg@10", "recall@10", "recall@20", "coverage@10", "popularity@10", "nll")
COSTS = ("best_epoch", "epochs", "train_seconds", "seconds", "cpu_seconds", "peak_memory_mib")


def candid(*arguments: str) -> str:
    """Run the command line; its stdout."""
    command = [str(Path(sys.executable).with_name("candid")), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def run_seed(recipe: Path, work: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One complete run of a recipe, now or earlier."""
    run = work / f"seed-{seed}"
    done = run / "evaluation-test.json"
    if not done.exists():
        settings = [f"seed={seed}", *overrides]
        candid(
            "train",
            str(recipe),
            *("--out", str(run), "--data", str(work / "data"), "--json"),
            *(["--resume"] if (run / "last.safetensors").exists() else []),
            *(flag for setting in settings for flag in ("--set", setting)),
        )
    return {
        "seed": seed,
        "run": json.loads((run / "run.json").read_text()),
        "test": json.loads(done.read_text()),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation over seeds, and range."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    found = {"mean": statistics.mean(values), "sd": deviation, "low": min(values)}
    return {name: round(value, 5) for name, value in (found | {"high": max(values)}).items()}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a recipe over its seeds."""
    results = [run["run"]["result"] for run in runs]
    metric = results[0]["metric"]
    figures = {"seeds": len(runs), f"validation {metric}": spread([r["best"] for r in results])}
    for name in METRICS:
        values = [run["test"]["metrics"][name]["value"] for run in runs]
        figures[f"test {name}"] = spread(values)
    return figures | {name: spread([result[name] for result in results]) for name in COSTS}


def main() -> None:
    """Run every recipe named and write its file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for recipe in arguments.recipes:
        work = arguments.work / recipe.stem
        candid("prepare", str(recipe), "--out", str(work / "data"), "--json")
        runs = [run_seed(recipe, work, seed, arguments.overrides) for seed in arguments.seeds]
        settings = runs[0]["run"]["config"]
        command = f"python benchmarks/recipe_figures.py {recipe} --seeds " + " ".join(
            map(str, arguments.seeds)
        )
        document = {
            "command": command,
            "candid": runs[0]["run"]["candid"],
            "machine": runs[0]["run"]["machine"],
            "config": {key: value for key, value in settings.items() if key != "seed"},
            "figures": summary(runs),
            "runs": [
                {
                    "seed": run["seed"],
                    "result": run["run"]["result"],
                    "test": run["test"]["metrics"],
                    "counts": run["test"]["counts"],
                }
                for run in runs
            ],
        }
        path = RESULTS / f"{recipe.stem}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(recipe, json.dumps(document["figures"], indent=1))


if __name__ == "__main__":
    main()
