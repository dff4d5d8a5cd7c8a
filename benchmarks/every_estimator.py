"""Short trainings with every sampler and correction, in bfloat16, on two datasets.

    python benchmarks/every_estimator.py

Short runs of a small transformer on MovieLens-1M (``CANDID_DATA``) and on synthetic data, with
three seeds. With popularity samples every correction and the loss ``learnt_partition`` are
trained, with in-batch candidates and a mixture ``refined`` and ``logq``, with the rest ``refined``.
The runs show whether a combination diverges and whether it is better than item popularity. They
are too short to show which one is best after hours of training. A run that is complete in the work
folder is not repeated. The tables of docs/benchmarks/estimators.md are
rewritten.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from candid import __version__
from candid.audit import (
    AuditCase,
    DriftSampling,
    Estimator,
    SamplingBudget,
    audit,
    standard_cases,
)
from candid.audit.run_inputs import recipe_case, run_inputs
from candid.component import type_name
from candid.config import RunConfig, load_recipe, parse_config
from candid.data import DataConfig, PreparedDataset, Role, open_dataset, prepare_folder
from candid.demo.oracle import OracleModel
from candid.errors import CandidError
from candid.evaluation import EvaluationConfig, evaluate
from candid.runs import (
    Run,
    build_model,
    load_run,
    train_run,
)
from candid.samplers import SAMPLERS
from candid.synthetic import SyntheticConfig, SyntheticData
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "every_estimator.json"
DOCS = ROOT / "docs" / "benchmarks" / "estimators.md"
N, DIM = 64, 32
BATCHES = {"batch_size": 16, "max_length": 30, "windows": "last"}
TRAINING: dict[str, Any] = {
    "precision": "bfloat16",
    "lr": 5e-3,
    "schedule": "linear",
    "betas": [0.9, 0.98],
    "num_groups": 32,  # up to 15 rows share a sample
    "softmax_over": "trained",  # a few synthetic items have no training interaction
    "patience": None,
    "epochs": 100,
    "trackers": ["jsonl"],
}
STEPS = {"ml1m": 800, "synthetic": 400}
SEEDS = (0, 1, 2)
SYNTHETIC = {"num_users": 4_000, "num_items": 3_000, "interactions_mean": 20.0}
ESTIMATORS = (
    Estimator("none"),
    Estimator("logq", accidental_hits="keep"),
    Estimator("logq", accidental_hits="mask"),
    Estimator("refined"),
    Estimator("published_code"),
    Estimator("refined", jackknife=True),
)
"""Estimators of popularity samples."""
MEMORY: dict[str, Any] = {"type": "cross_batch_memory", "size": 1024}
STREAM: dict[str, Any] = {"type": "in_batch", "frequency": {"type": "streaming"}}
SKETCH: dict[str, Any] = {"type": "in_batch", "frequency": {"type": "count_min"}}
MEASURED = EvaluationConfig(
    ks=(10,), metric="ndcg@10", intervals=False, popularity_slices=0, history_slices=()
)
MEASURED_ON = {
    "ml1m": MEASURED,
    # Synthetic users choose items again.
    "synthetic": MEASURED.model_copy(update={"filter_seen": False}),
}
EXACT = ("exact popular", "exact nearest, shared", "exact nearest, per row")
LOSS_BIAS = [(sampler, "refined") for sampler in ("uniform", "popularity", *EXACT)]
"""Combinations whose loss bias is measured too."""
NOISY = "exact nearest, shared"
NAMES = {"ml1m": "MovieLens-1M", "synthetic": "synthetic"}


def datasets(work: Path) -> dict[str, PreparedDataset]:
    """Prepare the two datasets, unless that is done."""
    movies = load_recipe(ROOT / "recipes" / "ml1m-loo.toml").data
    assert movies is not None
    prepare_folder(movies, work / "ml1m")
    if not (work / "files" / "interactions.parquet").exists():
        SyntheticData(SyntheticConfig(**SYNTHETIC)).write(work / "files")
    prepare_folder(
        DataConfig(interactions=str(work / "files" / "interactions.parquet"), time="timestamp"),
        work / "synthetic",
    )
    return {name: open_dataset(work / name) for name in ("ml1m", "synthetic")}


@dataclass(frozen=True)
class Combination:
    """A sampler and a loss to train with.

    Attributes:
        sampler: name of the sampler.
        correction: name of the correction, or of the loss.
        sampler_table: the sampler as a recipe table.
        loss_table: the loss as a recipe table.
    """

    sampler: str
    correction: str
    sampler_table: dict[str, Any]
    loss_table: dict[str, Any]


def combinations(num_items: int) -> list[Combination]:
    """Return every combination of a sampler and a loss."""
    tables = {case.name: table_of(case) for case in standard_cases([N], num_items)}
    tables["cross-batch memory"] = MEMORY
    tables["in-batch, streaming frequency"] = STREAM
    tables["in-batch, count-min frequency"] = SKETCH
    refined = Estimator("refined")
    both = (Estimator("logq"), refined)
    by_sampler = {"popularity": ESTIMATORS, "in-batch": both, "popularity + uniform": both}
    result = []
    for sampler, table in tables.items():
        for one in by_sampler.get(sampler, (refined,)):
            loss = loss_of(one)
            result.append(Combination(sampler, one.label, table, loss))
        if sampler == "popularity":
            learnt = {"type": "learnt_partition"}
            result.append(Combination(sampler, "learnt partition", table, learnt))
    return result


def loss_of(estimator: Estimator) -> dict[str, Any]:
    """Return the loss table of an estimator."""
    return {
        "type": "sampled_softmax",
        "correction": estimator.correction,
        "accidental_hits": estimator.accidental_hits,
        "jackknife": estimator.jackknife,
    }


def table_of(case: AuditCase) -> dict[str, Any]:
    """Return the sampler table of a case."""
    settings = case.sampler.model_dump(mode="json", exclude_none=True)
    return {"type": type_name(SAMPLERS, "sampler", case.sampler), **settings}


def config_of(name: str, steps: int, combination: Combination, seed: int) -> RunConfig:
    """Return the config of one run."""
    return parse_config(
        {
            "name": name,
            "seed": seed,
            "device": "cpu",
            "threads": 1,
            "batches": BATCHES,
            "model": {
                "query_tower": {"type": "causal_transformer", "dim": DIM, "positions": "rotary"},
                "item_tower": {"type": "item_embedding", "dim": DIM},
                "similarity": "dot",
            },
            "sampler": combination.sampler_table,
            "loss": combination.loss_table,
            "training": TRAINING | {"max_steps": steps},
            "evaluation": MEASURED.model_dump(mode="json"),
        },
        "every_estimator",
    )


def run(
    folder: Path, data: PreparedDataset, config: RunConfig, evaluation: EvaluationConfig
) -> dict[str, Any]:
    """Train one combination, unless that is done, and evaluate it; or return the failure."""
    try:
        if not is_complete(folder, config):
            shutil.rmtree(folder, ignore_errors=True)
            train_run(config, data, folder)
        trained = load_run(folder, data)
        report = trained.evaluate("test", evaluation)
    except CandidError as error:
        return {"failed": str(error)}
    lines = logged(folder)
    steps = [line for line in lines if "loss" in line]
    nll = [line["validation/nll"] for line in lines if "validation/nll" in line]
    losses, norms = ([line[key] for line in steps] for key in ("loss", "gradient_norm"))
    manifest = json.loads((folder / "run.json").read_text())
    return {
        "cpu_seconds": manifest["result"]["cpu_seconds"],
        "logged_steps": len(steps),
        "all_finite": all(math.isfinite(value) for value in losses + norms + nll),
        "largest_gradient_norm": max(norms),
        "first_losses": fmean(losses[:10]),
        "last_losses": fmean(losses[-20:]),
        "best_validation_nll": min(nll),
        "last_validation_nll": nll[-1],
        "test_nll": report.metrics["nll"].value,
        "test_ndcg@10": report.metrics["ndcg@10"].value,
    }


def logged(folder: Path) -> list[dict[str, Any]]:
    """Read a run's metrics log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def is_complete(folder: Path, config: RunConfig) -> bool:
    """Return whether the folder holds a complete run of this config."""
    manifest = folder / "run.json"
    if not manifest.exists():
        return False
    stored = json.loads(manifest.read_text())
    return "result" in stored and stored["config"] == config.model_dump(mode="json")


def loss_bias(trained: Run, estimator: Estimator) -> dict[str, float]:
    """Return the mean estimated loss minus the exact one, before and after training, in nats."""
    case = recipe_case(trained.config, trained.dataset)
    assert case is not None
    report = audit(
        run_inputs(trained, 64),
        [replace(case, estimators=(estimator,))],
        sampling=SamplingBudget(repeats=256),
        drift=DriftSampling(users=1, repeats=16),
        cost_rows=16,
    )
    (entry,) = report.entries
    return {name: one.statistics.loss_bias for name, one in entry.inputs.items()}


def by_popularity(data: PreparedDataset, evaluation: EvaluationConfig) -> dict[str, float]:
    """Evaluate a model that ranks by item popularity."""
    one = {"dim": 1}
    model = build_model(
        parse_config(
            {
                "name": "popularity",
                "model": {
                    "query_tower": {"type": "user_embedding"} | one,
                    "item_tower": {"type": "item_embedding"} | one,
                },
                "loss": {"type": "full_softmax"},
            },
            "popularity",
        ),
        data,
    ).eval()
    weights: Any = [model.query_tower.embedding.weight, model.item_tower.embedding.weight]
    with torch.no_grad():
        weights[0].fill_(1.0)
        weights[1][:, 0] = torch.from_numpy(data.train_counts).clamp(min=1).log()
    report = evaluate(model, data, evaluation, role=Role.TEST, max_length=1)
    return {name: report.metrics[name].value for name in ("nll", "ndcg@10")}


def by_oracle(data: PreparedDataset) -> dict[str, float]:
    """Evaluate the true distribution of the synthetic data."""
    oracle = OracleModel(SyntheticData(SyntheticConfig(**SYNTHETIC)), data)
    report = evaluate(oracle, data, MEASURED_ON["synthetic"], role=Role.TEST, max_length=1000)
    return {name: report.metrics[name].value for name in ("nll", "ndcg@10")}


def noise_of_one_sample(folder: Path, data: PreparedDataset) -> dict[str, Any]:
    """Return the losses of a run where all 1,600 rows of a step share one sample of 32 items."""
    (noisy,) = (one for one in combinations(data.num_items) if one.sampler == NOISY)
    config = config_of(folder.name, 400, noisy, SEEDS[0])
    batches = config.batches.model_copy(update={"batch_size": 32, "max_length": 50})
    one_sample = {"lr": 3e-3, "schedule": "constant", "num_groups": 1, "log_every": 2}
    training = config.training.model_copy(update=one_sample)
    config = config.model_copy(update={"batches": batches, "training": training})
    run(folder, data, config, MEASURED)
    lines = logged(folder)
    losses = [line["loss"] for line in lines if "loss" in line]
    return {
        "sampler": NOISY,
        "first": losses[4],  # of step 10
        "last": losses[-1],
        "mean_by_100_steps": [fmean(losses[i : i + 50]) for i in range(0, len(losses), 50)],
        "deviation_by_100_steps": [pstdev(losses[i : i + 50]) for i in range(0, len(losses), 50)],
        "validation_nll": [line["validation/nll"] for line in lines if "validation/nll" in line],
        "loss_bias": loss_bias(load_run(folder, data), Estimator("refined")),
    }


def measured(
    work: Path, data: Mapping[str, PreparedDataset], *, only_complete: bool = False
) -> list[dict[str, Any]]:
    """Train and measure every combination, first with one seed.

    Args:
        work: folder of the runs; a run that is complete there is not repeated.
        data: the datasets by name.
        only_complete: leave out runs that are not complete.
    """
    todo = [
        (name, one, seed)
        for seed in SEEDS
        for name, dataset in data.items()
        for one in combinations(dataset.num_items)
    ]
    results = []
    for name, one, seed in track(todo, console=Console(stderr=True)):
        label = f"{name}-dot-{one.sampler}-{one.correction}-{seed}"
        folder = work / "runs" / label.replace(", ", "-").replace(" + ", "-").replace(" ", "_")
        config = config_of(folder.name, STEPS[name], one, seed)
        if only_complete and not is_complete(folder, config):
            continue
        stored = folder / "outcome.json"
        if is_complete(folder, config) and stored.exists():
            outcome = json.loads(stored.read_text())
        else:
            outcome = run(folder, data[name], config, MEASURED_ON[name])
            is_measured = (one.sampler, one.correction) in LOSS_BIAS
            if is_measured and seed == SEEDS[0] and "failed" not in outcome:
                trained = load_run(folder, data[name])
                outcome["loss_bias"] = loss_bias(trained, Estimator("refined"))
            if "failed" not in outcome:
                stored.write_text(json.dumps(outcome))
        labels = {"data": name, "sampler": one.sampler, "correction": one.correction}
        results.append(labels | {"seed": seed} | outcome)
    return results


def trained_table(document: dict[str, Any]) -> str:
    """Return a table of test NLL and NDCG@10 of every combination and of item popularity."""
    lines = [
        f"| sampler | correction | {' | '.join(NAMES[name] for name in STEPS)} |",
        "|---|---|" + "---|" * len(STEPS),
        _row(
            "uniform distribution: log V",
            "",
            [f"{document['data'][name]['log_num_items']:.2f}" for name in STEPS],
        ),
        _row(
            "item popularity",
            "",
            [
                f"{base['nll']:.2f}; {base['ndcg@10']:.3f}"
                for base in (document["data"][name]["popularity"] for name in STEPS)
            ],
        ),
    ]
    best = f"{document['oracle']['nll']:.2f}; {document['oracle']['ndcg@10']:.3f}"
    lines.append(
        _row(
            "true distribution",
            "",
            [best if name == "synthetic" else "unknown" for name in STEPS],
        )
    )
    cells = by_combination(document["results"])
    for sampler, correction in dict.fromkeys(key[:2] for key in cells):
        outcomes = [cells[sampler, correction, name] for name in STEPS]
        lines.append(_row(sampler, correction, [_outcome(runs) for runs in outcomes]))
    return "\n".join(lines) + "\n"


def by_combination(results: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], list[Any]]:
    """Return the runs by sampler, correction and data."""
    cells: dict[tuple[str, ...], list[Any]] = {}
    for one in results:
        key = (one["sampler"], one["correction"], one["data"])
        cells.setdefault(key, []).append(one)
    return cells


def _outcome(runs: Sequence[dict[str, Any]]) -> str:
    """Return test NLL and NDCG@10; for several seeds with their standard deviation."""
    if any("failed" in one for one in runs):
        return "failed"
    parts = []
    for metric, digits in (("test_nll", 2), ("test_ndcg@10", 3)):
        values = [one[metric] for one in runs]
        spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        parts.append(f"{fmean(values):.{digits}f}{spread}")
    return "; ".join(parts)


def bias_table(document: dict[str, Any]) -> str:
    """Return a table of estimated losses at the start and the end, with their bias."""
    lines = [
        "| data | sampler | loss, first 100 steps | last 200 | bias at first | as trained |",
        "|---|---|---|---|---|---|",
    ]
    for one in document["results"]:
        if "loss_bias" in one:
            start, end = one["loss_bias"].values()
            numbers = [f"{one['first_losses']:.2f}", f"{one['last_losses']:.2f}"]
            numbers += [f"{start:+.2f}", f"{end:+.2f}"]
            lines.append(_row(NAMES[one["data"]], one["sampler"], numbers))
    return "\n".join(lines) + "\n"


def _row(first: str, second: str, cells: Sequence[str]) -> str:
    return f"| {first} | {second} | {' | '.join(cells)} |"


def with_tables(content: str, document: dict[str, Any]) -> str:
    """Return the page with its generated blocks replaced."""
    for name, block in (("trained", trained_table(document)), ("bias", bias_table(document))):
        content = with_block(content, name, block)
    return content


def main() -> None:
    """Run everything, write the results and report failures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/every_estimator"))
    parser.add_argument(
        "--only-complete", action="store_true", help="write the results of complete runs alone"
    )
    arguments = parser.parse_args()
    work = arguments.work
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    torch.set_num_threads(1)
    data = datasets(work)
    results = measured(work, data, only_complete=arguments.only_complete)
    document = {
        "command": "python benchmarks/every_estimator.py",
        "versions": {"candid": __version__, "torch": torch.__version__},
        "settings": {
            "n": N,
            "dim": DIM,
            "seeds": SEEDS,
            "steps": STEPS,
            "batches": BATCHES,
            "training": TRAINING,
            "synthetic": SYNTHETIC,
        },
        "data": {
            name: {
                "log_num_items": math.log(dataset.num_items),
                "popularity": by_popularity(dataset, MEASURED_ON[name]),
            }
            for name, dataset in data.items()
        },
        "oracle": by_oracle(data["synthetic"]),
        "one_sample": noise_of_one_sample(work / "runs" / "one_sample", data["ml1m"]),
        "results": results,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    DOCS.write_text(with_tables(DOCS.read_text(), document))
    bad = [one for one in results if "failed" in one or not one["all_finite"]]
    print(f"{len(results)} runs, {len(bad)} failed or were not finite throughout")
    for one in bad:
        print(one)


if __name__ == "__main__":
    main()
