"""Measurement of recipes over several seeds; writes the figures into their headers.

    python benchmarks/recipe_figures.py recipes/ml1m-loo.toml --seeds 0 1 2

Each seed is one ``candid train`` (which also measures the test split), in a process of its
own, so that seconds and peak memory are of that run alone. A seed whose run is complete in the
work folder is not run again; an interrupted one is resumed. The result, one JSON file a recipe
under ``benchmarks/results/recipes``, holds the command, versions, settings and every seed; the
lines of the recipe that begin with ``#:`` are written from it.
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


def run_seed(recipe: Path, work: Path, seed: int, threads: list[str]) -> dict[str, Any]:
    """One complete run of a recipe, now or earlier; ``threads`` is its override, if any."""
    run = work / f"seed-{seed}"
    done = run / "evaluation-test.json"
    if not done.exists():
        settings = [f"seed={seed}", *threads]
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


def stated(document: dict[str, Any]) -> list[str]:
    """Return the measured figures in the header of a recipe: the lines that begin with ``#:``."""
    figures, machine = document["figures"], document["machine"]
    lines = [f"#: Measured by {document['command']}"]
    for name, values in figures.items():
        if "@10" in name or name == "test nll":
            what = f"{name}, best epoch" if name.startswith("validation") else name
            lines.append(f"#:   {what}: {values['mean']:.4f} ± {values['sd']:.4f} (sd over seeds)")
    seconds, memory = figures["train_seconds"], figures["peak_memory_mib"]
    threads = f"{machine['threads']} thread" + ("s" if machine["threads"] > 1 else "")
    lines.append(
        f"#:   {figures['cpu_seconds']['mean']:.0f} CPU s ({seconds['mean']:.0f} s of training, "
        f"{threads}), best after epoch {figures['best_epoch']['low']:.0f} to "
        f"{figures['best_epoch']['high']:.0f}, peak memory {memory['high']:.0f} MiB"
    )
    return lines


def restate(recipe: Path, lines: list[str]) -> None:
    """Put the measured lines after the recipe's opening comment, in place of older ones."""
    rest = [line for line in recipe.read_text().splitlines() if not line.startswith("#:")]
    opening = next(i for i, line in enumerate(rest) if not line.startswith("#"))
    recipe.write_text("\n".join([*rest[:opening], *lines, *rest[opening:]]) + "\n")


def main() -> None:
    """Run every recipe named and write its file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--work", type=Path, default=Path("build/figures"), help="folder for data and runs"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of each run")
    arguments = parser.parse_args()
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for recipe in arguments.recipes:
        work = arguments.work / recipe.stem
        candid("prepare", str(recipe), "--out", str(work / "data"), "--json")
        threads = [] if arguments.threads is None else [f"threads={arguments.threads}"]
        runs = [run_seed(recipe, work, seed, threads) for seed in arguments.seeds]
        settings = runs[0]["run"]["config"]
        command = f"python benchmarks/recipe_figures.py {recipe} --seeds " + " ".join(
            map(str, arguments.seeds)
        )
        command += f" --threads {arguments.threads}" if threads else ""
        document = {
            "command": command,
            "candid": runs[0]["run"]["candid"],
            "machine": runs[0]["run"]["machine"],
            "config": {
                key: value for key, value in settings.items() if key not in ("seed", "threads")
            },
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
        restate(recipe, stated(document))
        print(recipe, json.dumps(document["figures"], indent=1))


if __name__ == "__main__":
    main()
