"""Blocks of the causal transformer compared for equal CPU seconds of training.

    CANDID_DATA=../shared/data nice python benchmarks/blocks.py            # all datasets, hours
    CANDID_DATA=../shared/data nice python benchmarks/blocks.py --datasets ml-100k
    python benchmarks/blocks.py --tables                 # write the docs page from the results only

A variant is a set of keys of ``query_tower``. First the CPU seconds of a training step are measured
for all variants of a dataset, in turn, in one process. The budget of the dataset divided by them is
the number of steps of each variant; the learning rate decays linearly to zero over these steps.
Seed 0 runs with every learning rate; the other seeds run with the rate of the highest validation
NDCG@10. The table has test figures: mean and standard deviation over the seeds, and the difference
to the plain blocks by user (each user's value is the mean over the seeds) with its 95 % interval
and the p-value of a sign-flip test.

Every finished training has a file in ``WORK/cells`` and is not repeated. Stop at any time with
Ctrl-C or SIGTERM: the same command continues, from the last checkpoint of the training that it
interrupted. Results and page are written after each dataset; only datasets with all seeds are in
the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import candid
from candid.batches import Loader, epoch_targets
from candid.config import RunConfig, parse_config
from candid.data import PreparedDataset, open_dataset, prepare
from candid.errors import Interrupted
from candid.evaluation import PerUser, compare
from candid.runs import load_run, train_run
from candid.runs.build import build_model, build_objective
from candid.runs.features import fit_features
from candid.training import Trainer, bound_kernel_cache
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "blocks.json"
PAGE = ROOT / "docs" / "benchmarks" / "blocks.md"
DIM, SEEDS, RATES = 64, (0, 1, 2), (1e-3, 2e-3, 4e-3)
METRICS = ("ndcg@10", "recall@10", "nll")
METRIC = "ndcg@10"
VALIDATIONS = 8
"""Validations of one training, about."""
PLAIN = "plain"
LIGR: dict[str, Any] = {"gated_residual": True, "feed_forward": "swiglu", "hidden": 4 * DIM}
TIME: dict[str, Any] = {"read_time_gaps": True, "time_bias": True}
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "plain, wide": {"hidden": 4 * DIM},
    "ligr": LIGR,
    "ligr, small": LIGR | {"hidden": DIM},
    "plain, time": TIME,
    "ligr, time": LIGR | TIME,
}
"""Keys of ``query_tower`` beside those that all variants share."""
SESSIONS = {"user": "session_id", "order": "position"}
BY_SPLIT = {"split": {"kind": "column", "column": "split"}}
FULL: dict[str, Any] = {"loss": {"type": "full_softmax", "precision": "bfloat16"}}
SAMPLED: dict[str, Any] = {
    "sampler": {
        "type": "mixture",
        "components": [
            {"type": "popularity", "num_candidates": 256},
            {"type": "uniform", "num_candidates": 256},
        ],
    },
    "loss": {"type": "sampled_softmax"},
}


@dataclass(frozen=True)
class Dataset:
    """A dataset with its settings.

    Attributes:
        data: section ``data`` of the recipe, without the file.
        seconds: CPU seconds of training steps of one run.
        recipe: further sections of the recipe.
        batch_size: histories of a batch.
        max_length: longest history.
        filter_seen: whether items of the history are not recommended.
    """

    data: dict[str, Any]
    seconds: float
    recipe: dict[str, Any] = field(default_factory=lambda: dict(SAMPLED))
    batch_size: int = 128
    max_length: int = 50
    filter_seen: bool = True


DATASETS = {
    "ml-100k": Dataset({"time": "timestamp"}, 60, FULL, 32, 200),
    "ml-1m-positives": Dataset({"time": "timestamp"}, 240, FULL, 32, 200),
    "ml-1m": Dataset({"order": "position", "drop_nulls": True}, 240, FULL, 32, 200),
    "amazon-beauty": Dataset({"order": "position"}, 600),
    "nowplaying": Dataset(SESSIONS | BY_SPLIT, 600, filter_seen=False),
    "diginetica": Dataset(SESSIONS | BY_SPLIT, 600, filter_seen=False),
    "retailrocket": Dataset(SESSIONS | BY_SPLIT, 600, filter_seen=False),
}


def variants_of(name: str) -> dict[str, dict[str, Any]]:
    """Return the variants that a dataset has what they read for."""
    has_times = "time" in DATASETS[name].data
    return {key: keys for key, keys in VARIANTS.items() if has_times or "time" not in key}


def config_of(
    name: str,
    variant: str,
    *,
    rate: float,
    seed: int,
    steps: int = 1,
    seconds: float = 0,
    num_batches: int = 1,
) -> RunConfig:
    """Return the config of a run of ``steps`` steps; an epoch has ``num_batches`` steps."""
    dataset = DATASETS[name]
    epochs = -(-steps // num_batches)
    table: dict[str, Any] = {
        "name": cell_name(name, variant, rate, seed, seconds),
        "seed": seed,
        "device": "cpu",
        "threads": 1,
        "data": dataset.data | {"interactions": f"${{CANDID_DATA}}/{name}/interactions.parquet"},
        "batches": {"batch_size": dataset.batch_size, "max_length": dataset.max_length},
        "model": {
            "query_tower": {
                "type": "causal_transformer",
                "dim": DIM,
                "num_heads": 2,
                "positions": "rotary",
            }
            | VARIANTS[variant],
            "item_tower": {"type": "item_embedding", "dim": DIM},
        },
        "training": {
            "lr": rate,
            "schedule": "linear",
            "max_steps": steps,
            "epochs": epochs,
            "validate_every": max(1, epochs // VALIDATIONS),
            "patience": None,
        },
        "evaluation": {
            "ks": [10],
            "metric": METRIC,
            "filter_seen": dataset.filter_seen,
            "intervals": False,
            "popularity_slices": 0,
            "history_slices": [],
        },
    }
    if "sampler" in dataset.recipe:
        table["training"] |= {"tables": "row_adam", "table_lr": 4 * rate}
    return parse_config(table | dataset.recipe, "blocks")


def cell_name(name: str, variant: str, rate: float, seed: int, seconds: float) -> str:
    """Return the name of a run's files."""
    short = variant.replace(", ", "-").replace(" ", "-")
    return f"{name}-{short}-{seconds:g}s-{rate:g}-{seed}"


def measure_costs(name: str, data: PreparedDataset, work: Path, steps: int = 12) -> dict[str, Any]:
    """Measure the CPU seconds of a step of each variant, in turn; the median of five turns."""
    torch.set_num_threads(1)
    bound_kernel_cache()
    trainers, loaders = {}, {}
    for variant in variants_of(name):
        config = config_of(name, variant, rate=RATES[0], seed=0)
        targets = epoch_targets(data, config.batches)
        loss, sampler = build_objective(config, data, targets.counts)
        loaders[variant] = Loader(data, config.batches, seed=0)
        trainers[variant] = Trainer(
            model=build_model(config, data, fit_features(config.features, data)),
            loader=loaders[variant],
            loss=loss,
            sampler=sampler,
            config=config.training,
            folder=work,
            item_is_trained=torch.from_numpy(targets.counts > 0),
        )
    num_batches = loaders[PLAIN].num_batches
    seconds: dict[str, list[float]] = {variant: [] for variant in trainers}
    for turn in range(6):
        for variant, trainer in trainers.items():
            started = time.process_time()
            for step in range(turn * steps, (turn + 1) * steps):
                trainer.step(loaders[variant].batch(0, step % num_batches))
            if turn:  # the first turn warms up
                seconds[variant].append((time.process_time() - started) / steps)
    return {
        "num_batches": num_batches,
        "seconds": {variant: round(statistics.median(s), 5) for variant, s in seconds.items()},
        "quartiles": {
            variant: [round(q, 5) for q in statistics.quantiles(s, n=4)[::2]]
            for variant, s in seconds.items()
        },
    }


def costs_of(name: str, data: PreparedDataset, work: Path) -> dict[str, Any]:
    """Return the costs of the steps, measured once and stored in ``work``."""
    path = work / f"costs-{name}.json"
    costs: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seconds": {}}
    if set(costs["seconds"]) != set(variants_of(name)):
        costs = measure_costs(name, data, work)
        path.write_text(json.dumps(costs, indent=1) + "\n")
        print(name, json.dumps(costs["seconds"]), flush=True)
    return costs


def run(config: RunConfig, data: PreparedDataset, work: Path) -> dict[str, Any]:
    """Train and test, unless that was done; return the figures of the run."""
    path = work / "cells" / f"{config.name}.json"
    if not path.exists():
        folder = work / "runs" / config.name
        train_run(config, data, folder, resume=(folder / "run.json").exists())
        trained = load_run(folder, data)
        report = trained.evaluate()
        result = trained.manifest["result"]
        cell = {
            "cell": config.name,
            "rate": config.training.lr,
            "seed": config.seed,
            "steps": config.training.max_steps,
            "parameters": trained.manifest["parameters"],
            "cpu_seconds": round(result["cpu_seconds"], 1),
            "best_epoch": result["best_epoch"],
            "epochs": result["epochs"],
            "validation": result["best"],
            **{metric: report.metrics[metric].value for metric in METRICS},
        }
        users = report.per_user
        np.savez(
            path.with_suffix(".npz"),
            user_ids=users.user_ids,
            names=np.array(users.names),
            numerators=users.numerators,
            denominators=users.denominators,
        )
        path.write_text(json.dumps(cell, indent=1) + "\n")
        shutil.rmtree(folder)
        print(json.dumps(cell), flush=True)
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def users_of(cells: list[dict[str, Any]], work: Path) -> PerUser:
    """Return each user's metrics, averaged over the seeds."""
    parts = [np.load(work / "cells" / f"{cell['cell']}.npz") for cell in cells]
    numerators = np.mean([part["numerators"] for part in parts], axis=0)
    first = parts[0]
    return PerUser(
        first["user_ids"],
        tuple(map(str, first["names"])),
        numerators,
        first["denominators"],
    )


def measure(
    name: str,
    work: Path,
    seeds: list[int],
    rates: list[float],
    seconds: float | None,
    names: list[str],
) -> dict[str, Any]:
    """Run variants of a dataset; return its costs, the rates tried, and the seeds.

    Args:
        name: of the dataset.
        work: folder of runs.
        seeds: of the runs; rates are chosen with the first one.
        rates: learning rates tried.
        seconds: CPU seconds of a run; None: of the dataset.
        names: of the variants; the plain one is always run.
    """
    section = config_of(name, PLAIN, rate=rates[0], seed=0).data
    assert section is not None
    prepare(section, work / "data" / name)
    data = open_dataset(work / "data" / name)
    costs = costs_of(name, data, work)
    budget = seconds or DATASETS[name].seconds

    def trained(variant: str, rate: float, seed: int) -> dict[str, Any]:
        steps = max(1, round(budget / costs["seconds"][variant]))
        config = config_of(
            name,
            variant,
            rate=rate,
            seed=seed,
            steps=steps,
            seconds=budget,
            num_batches=costs["num_batches"],
        )
        return run(config, data, work)

    variants: dict[str, Any] = {}
    for variant in variants_of(name):
        if variant not in (PLAIN, *names):
            continue
        tried = [trained(variant, rate, seeds[0]) for rate in rates]
        best = max(tried, key=lambda cell: cell["validation"])["rate"]
        runs = [trained(variant, best, seed) for seed in seeds]
        variants[variant] = {"tried": tried, "rate": best, "runs": runs}
    users = {variant: users_of(one["runs"], work) for variant, one in variants.items()}
    for variant, one in variants.items():
        if variant != PLAIN:
            one["against_plain"] = {
                metric: asdict(compare(users[variant], users[PLAIN], metric))
                for metric in (METRIC, "nll")
            }
    return {"seconds": budget, "costs": costs, "variants": variants}


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table, a row for each dataset and variant."""
    lines = [
        "| dataset | blocks | ms a step | steps | rate | NDCG@10 | recall@10 | NLL | "
        "NDCG@10 minus plain |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, result in results.items():
        for variant, one in result["variants"].items():
            cells = [
                f"{name}, {result['seconds']:g} s" if variant == PLAIN else "",
                variant,
                f"{1000 * result['costs']['seconds'][variant]:.1f}",
                f"{one['runs'][0]['steps']:,}",
                f"{one['rate']:g}",
            ]
            for metric in METRICS:
                values = [cell[metric] for cell in one["runs"]]
                cells.append(f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
            cells.append(_difference(one["against_plain"][METRIC]) if variant != PLAIN else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(test: dict[str, Any]) -> str:
    return (
        f"{test['difference']:+.4f} ({test['low']:+.4f} to {test['high']:+.4f}; "
        f"p {test['p_value']:.3f})"
    )


def with_table(content: str, report: dict[str, Any] | None) -> str:
    """Return the page with its generated block filled from the results."""
    if report is None:
        return with_block(content, "blocks", "No dataset has been measured yet.\n")
    return with_block(content, "blocks", table(report["results"]) + "\n")


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument(
        "--seconds", type=float, help="CPU seconds of training of a run; default: of the dataset"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "blocks")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--tables", action="store_true", help="write the docs page only")
    options = parser.parse_args()
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    report = json.loads(options.results.read_text()) if options.results.exists() else None
    if not options.tables:
        (options.work / "cells").mkdir(parents=True, exist_ok=True)
        for name in options.datasets:
            try:
                result = measure(
                    name,
                    options.work,
                    options.seeds,
                    options.rates,
                    options.seconds,
                    options.variants,
                )
            except Interrupted:
                sys.exit(f"stopped during {name}; the same command continues")
            earlier = {} if report is None else report["results"]
            results = earlier | {name: result}
            report = {
                "command": "python benchmarks/blocks.py",
                "versions": {"candid": candid.__version__, "torch": torch.__version__},
                "python": platform.python_version(),
                "clock": "CPU seconds of one process on one thread; other work shared the machine",
                "settings": {"dim": DIM, "seeds": options.seeds, "rates": options.rates},
                "variants": VARIANTS,
                "results": {key: results[key] for key in DATASETS if key in results},
            }
            options.results.write_text(json.dumps(report, indent=1) + "\n")
    if options.results == RESULTS:
        PAGE.write_text(with_table(PAGE.read_text(), report))
    elif report is not None:
        print(json.dumps(report["results"], indent=1))


if __name__ == "__main__":
    main()
