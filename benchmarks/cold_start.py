"""Item ids, features, or both: metrics on items that training never saw.

    python benchmarks/cold_start.py --seeds 0 1

The models differ only in the item tower and in the user features of the query: a table of ids,
with all items as negatives (the usual model) or only the trained ones; features without an id;
features with the id added ("both"); ids, with features for items without one ("id, else
features"). Each is trained by ``candid train`` in a separate process and can be resumed. The result
under ``benchmarks/results`` has, by seed, the test metrics on warm and on cold targets, among all
items and among the items of the same part, and the differences from the usual model: by user,
each user's value the mean over the seeds, with an interval and the p-value of a sign-flip test.
The tables in ``docs/benchmarks/cold_start.md`` are written from it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from candid.evaluation import EvaluationReport, PerUser, Slice, compare
from candid.runs import Run, load_run
from candid.synthetic import SyntheticConfig, SyntheticData
from page_blocks import with_block
from recipe_figures import candid

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "cold_start.json"
PAGE = ROOT / "docs" / "benchmarks" / "cold_start.md"
DATASETS = {
    "synthetic": ROOT / "benchmarks" / "cold_start.toml",
    "ml1m-positives": ROOT / "recipes" / "ml1m-features.toml",
    "ml1m-withheld": ROOT / "recipes" / "ml1m-features.toml",
}
WITHHELD, CUTS, SEED = 0.1, (0.8, 0.9), 0
"""Settings of ``ml1m-withheld``: share of items without interactions before validation, quantiles
of time at which validation and test begin, and seed of the choice of items."""
SYNTHETIC = {
    "num_users": 20_000,
    "num_items": 5_000,
    "interactions_mean": 20.0,
    "released_share": 0.5,
}
IDS = [
    "features.item=",
    "features.user=",
    "model.item_tower.type=item_embedding",
    "model.query_tower={query}",
]
MODELS = {
    "ids": [*IDS, "training.softmax_over=all"],
    "ids, new items no negatives": IDS,
    "features": ["model.item_tower.id_mode=none"],
    "both": ["model.item_tower.id_mode=residual", "model.item_tower.id_dropout=0.3"],
    "id, else features": [],
}
METRICS = ("ndcg@10", "recall@20", "recall@100", "nll")
PARTS = ("all", "warm", "warm, among warm items", "cold", "cold, among cold items")
"""Targets, and the items among which they are ranked (all items by default)."""
USUAL = "ids"
COMPARED = ("features", "both", "id, else features")


def overrides(recipe: Path, model: str) -> list[str]:
    """Return the settings of a model; models with ids keep the recipe's transformer."""
    text = recipe.read_text()
    start = text.index('{ type = "causal_transformer"')
    transformer = text[start : text.index("}", start) + 1]
    return [setting.format(query=transformer) for setting in MODELS[model]]


def withhold(work: Path) -> list[str]:
    """Write MovieLens without the early interactions of some items; return the split settings."""
    source, folder = Path(os.environ["CANDID_DATA"]) / "ml-1m-positives", work / "ml-1m-positives"
    events = pl.read_parquet(source / "interactions.parquet")
    times, items = events["timestamp"].sort(), events["item_id"].unique().sort()
    validation, test = (times[int(cut * len(times))] for cut in CUTS)
    chosen = np.random.default_rng(SEED).random(len(items)) < WITHHELD
    is_early = pl.col("item_id").is_in(items.filter(pl.Series(chosen)).implode()) & (
        pl.col("timestamp") < validation
    )
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "interactions.parquet").exists():
        events.filter(~is_early).write_parquet(folder / "interactions.parquet")
    for name in ("items", "users"):
        (folder / f"{name}.parquet").unlink(missing_ok=True)
        (folder / f"{name}.parquet").symlink_to((source / f"{name}.parquet").resolve())
    os.environ["CANDID_DATA"] = str(work)
    return [f"data.split.validation={validation}", f"data.split.test={test}"]


def run(recipe: Path, work: Path, model: str, seed: int, more: list[str]) -> dict[str, Any]:
    """Train and test one model, unless that is done."""
    folder = folder_of(work, model, seed)
    done = folder / "evaluation-test.json"
    if not done.exists():
        settings = [f"seed={seed}", "threads=1", *overrides(recipe, model), *more]
        candid(
            "train",
            str(recipe),
            *("--out", str(folder), "--data", str(work / "data"), "--json"),
            *(["--resume"] if (folder / "last.safetensors").exists() else []),
            *(flag for setting in settings for flag in ("--set", setting)),
        )
    manifest = json.loads((folder / "run.json").read_text())
    return {"seed": seed, "result": manifest["result"], "machine": manifest["machine"]}


def folder_of(work: Path, model: str, seed: int) -> Path:
    """Return the folder of a run."""
    return work / f"{model.replace(', ', '-').replace(' ', '_')}-{seed}"


def measure(name: str, work: Path, seeds: list[int]) -> dict[str, Any]:
    """Measure all models of one dataset and their differences from the usual model."""
    recipe = DATASETS[name]
    more = withhold(work) if name == "ml1m-withheld" else []
    flags = (flag for setting in more for flag in ("--set", setting))
    candid("prepare", str(recipe), "--out", str(work / "data"), "--json", *flags)
    runs = {model: [run(recipe, work, model, seed, more) for seed in seeds] for model in MODELS}
    values = {}
    for model, of_seeds in runs.items():
        parts = [parts_of(load_run(folder_of(work, model, seed), work / "data")) for seed in seeds]
        values[model] = over_seeds([{name: one.per_user for name, one in p.items()} for p in parts])
        for one, part in zip(of_seeds, parts, strict=True):
            one["parts"] = {name: summary(metrics) for name, metrics in part.items()}
    differences = {
        model: {
            part: {metric: asdict(compare(one, values[USUAL][part], metric)) for metric in METRICS}
            for part, one in values[model].items()
        }
        for model in COMPARED
    }
    return {"runs": runs, "against": differences}


def parts_of(loaded: Run) -> dict[str, EvaluationReport | Slice]:
    """Return the test metrics of each of ``PARTS``."""
    settings = loaded.config.evaluation.model_copy(update={"intervals": False})
    whole, warm, cold = (
        loaded.evaluate(config=settings.model_copy(update={"catalog": catalog}))
        for catalog in ("all", "warm", "cold")
    )
    slices = {part.label: part for part in whole.slices["target_warmth"]}
    return dict(zip(PARTS, (whole, slices["warm"], warm, slices["cold"], cold), strict=True))


def summary(part: EvaluationReport | Slice) -> dict[str, float | int | None]:
    """Return the means over users and the number of targets."""
    targets = part.targets if isinstance(part, Slice) else part.counts["targets"]
    return {"targets": targets} | {metric: part.metrics[metric].value for metric in METRICS}


def over_seeds(by_seed: list[dict[str, PerUser]]) -> dict[str, PerUser]:
    """Return each user's values, averaged over the seeds."""
    return {
        part: replace(first, numerators=np.mean([one[part].numerators for one in by_seed], axis=0))
        for part, first in by_seed[0].items()
    }


def table(results: dict[str, Any]) -> str:
    """Return Markdown tables: means and standard deviations over seeds, and differences."""
    lines = []
    for name, result in results.items():
        seeds = len(result["runs"][USUAL])
        lines += [f"### {name}, {seeds} seeds", ""]
        lines += _rows("targets", "model", *METRICS)
        for part in PARTS:
            for model, runs in result["runs"].items():
                cells = (
                    _mean_and_deviation([one["parts"][part][metric] for one in runs])
                    for metric in METRICS
                )
                targets = runs[0]["parts"][part]["targets"]
                lines.append(_row(f"{part} ({targets:,})", model, *cells))
        lines += ["", f"Minus `{USUAL}`, with the 95 % interval over users and the p-value:", ""]
        lines += _rows("targets", "model", *METRICS)
        for part in PARTS:
            for model, parts in result["against"].items():
                lines.append(_row(part, model, *(_difference(parts[part][m]) for m in METRICS)))
        lines.append("")
    return "\n".join(lines)


def _rows(*head: str) -> list[str]:
    return [_row(*head), _row(*["---"] * 2, *["---:"] * (len(head) - 2))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean_and_deviation(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ±{deviation:.4f}"


def _difference(one: dict[str, Any]) -> str:
    return (
        f"{one['difference']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f}; "
        f"p {one['p_value']:.3f})"
    )


def with_tables(content: str, results: dict[str, Any]) -> str:
    """Return the page with its generated block filled from the results."""
    return with_block(content, "tables", table(results))


def main() -> None:
    """Measure, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--work", type=Path, default=Path("build/cold_start"))
    arguments = parser.parse_args()
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    files = arguments.work / "synthetic-files"
    os.environ["CANDID_SYNTHETIC"] = str(files)
    if not (files / "users.parquet").exists():
        SyntheticData(SyntheticConfig(**SYNTHETIC)).write(files)
    earlier = json.loads(RESULT.read_text())["results"] if RESULT.exists() else {}
    results = earlier | {
        name: measure(name, arguments.work / name, arguments.seeds) for name in arguments.datasets
    }
    command = "python benchmarks/cold_start.py --seeds " + " ".join(map(str, arguments.seeds))
    document = {"command": command, "synthetic": SYNTHETIC, "results": results}
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    PAGE.write_text(with_tables(PAGE.read_text(), results))
    print(table(results))


if __name__ == "__main__":
    main()
