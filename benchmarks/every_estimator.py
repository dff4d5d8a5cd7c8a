"""Every estimator trains: each sampler, at bfloat16, on two datasets.

    python benchmarks/every_estimator.py

Short runs of a small transformer on MovieLens-1M (``CANDID_DATA``) and on a
synthetic world, with plain dot products and with cosines at a learnt temperature, under
``refined``; draws by popularity under every correction. It asks whether any combination diverges
and whether each learns, beside the popularity of items alone; which is best after many hours it
does not ask. A run that is complete in the work folder is not run again. The tables of
docs/benchmarks/estimators.md are written anew.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from candid import __version__
from candid.audit import ALL, Effort, Plan, Variant, audit, standard_plans
from candid.config import RunConfig, load_recipe, parse_config
from candid.data import DataConfig, PreparedDataset, Role, open_dataset, prepare
from candid.demo.oracle import OracleModel
from candid.errors import CandidError
from candid.evaluation import EvaluationConfig, evaluate
from candid.runs import (
    Run,
    build_model,
    evaluate_run,
    load_run,
    train_run,
)
from candid.runs.audit import plan_of, run_subjects
from candid.samplers import SAMPLERS
from candid.synthetic import SyntheticConfig, SyntheticData

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "every_estimator.json"
DOCS = ROOT / "docs" / "benchmarks" / "estimators.md"
N, DIM = 64, 32
BATCHES = {"batch_size": 16, "max_length": 30}
TRAINING: dict[str, Any] = {
    "precision": "bfloat16",
    "lr": 5e-3,
    "schedule": "linear",
    "betas": [0.9, 0.98],
    "num_groups": 32,  # up to 15 rows share a draw
    "softmax_over": "trained",  # a few items of the world are in nobody's training
    "patience": None,
    "epochs": 100,
    "trackers": ["jsonl"],
}
STEPS = {"ml1m": 1600, "world": 400}
WORLD = {"num_users": 4_000, "num_items": 3_000, "interactions_mean": 20.0}
SIMILARITIES: dict[str, dict[str, Any]] = {
    "dot": {"similarity": "dot"},
    "cosine": {"similarity": "cosine", "temperature": 0.1, "learn_temperature": True},
}
MEMORY: dict[str, Any] = {"type": "cross_batch_memory", "size": 1024}
STREAM: dict[str, Any] = {"type": "in_batch", "frequency": {"type": "streaming"}}
SKETCH: dict[str, Any] = {"type": "in_batch", "frequency": {"type": "count_min"}}
MEASURED = EvaluationConfig(
    ks=(10,), metric="ndcg@10", bootstrap=0, popularity_slices=0, history_slices=()
)
MEASURED_ON = {
    "ml1m": MEASURED,
    # Users of the world choose items again.
    "world": MEASURED.model_copy(update={"filter_seen": False}),
}
HEADS = ("popular head + tail", "nearest head, shared", "nearest head of each row")
LOSS_BIAS = [(sampler, "refined", "dot") for sampler in ("uniform", "popularity", *HEADS)]
"""Of these the bias of the estimated loss is measured too."""
NOISY = "nearest head, shared"
NAMES = {"ml1m": "MovieLens-1M", "world": "world"}


def datasets(work: Path) -> dict[str, PreparedDataset]:
    """The two datasets, prepared now or earlier."""
    movies = load_recipe(ROOT / "recipes" / "ml1m-loo.toml").data
    assert movies is not None
    prepare(movies, work / "ml1m")
    if not (work / "files" / "interactions.parquet").exists():
        SyntheticData(SyntheticConfig(**WORLD)).write(work / "files")
    prepare(
        DataConfig(interactions=str(work / "files" / "interactions.parquet"), time="timestamp"),
        work / "world",
    )
    return {name: open_dataset(work / name) for name in ("ml1m", "world")}


def samplers(num_items: int) -> dict[str, tuple[dict[str, Any], list[Variant]]]:
    """By name: a sampler as a recipe's table, and the corrections to train with."""
    refined = [Variant("refined")]
    found = {plan.name: (table_of(plan), refined) for plan in standard_plans([N], num_items)}
    found["popularity"] = (found["popularity"][0], list(ALL))
    found["memory"] = (MEMORY, refined)
    found["in-batch, streaming frequency"] = (STREAM, refined)
    found["in-batch, count-min frequency"] = (SKETCH, refined)
    return found


def table_of(plan: Plan) -> dict[str, Any]:
    """The sampler section of a plan."""
    kind = next(k for k, one in SAMPLERS.items() if isinstance(plan.config, one.Config))
    return {"type": kind, **plan.config.model_dump(mode="json", exclude_none=True)}


def config_of(
    name: str, steps: int, similarity: str, sampler: dict[str, Any], variant: Variant
) -> RunConfig:
    """The config of one combination."""
    return parse_config(
        {
            "name": name,
            "device": "cpu",
            "threads": 1,
            "batches": BATCHES,
            "model": {
                "query_tower": {"type": "causal_transformer", "dim": DIM, "positions": "rotary"},
                "item_tower": {"type": "item_embedding", "dim": DIM},
                **SIMILARITIES[similarity],
            },
            "sampler": sampler,
            "loss": {
                "type": "sampled_softmax",
                "correction": variant.correction,
                "jackknife": variant.jackknife,
            },
            "training": TRAINING | {"max_steps": steps},
            "evaluation": MEASURED.model_dump(mode="json"),
        },
        "every_estimator",
    )


def run(
    folder: Path, data: PreparedDataset, config: RunConfig, evaluation: EvaluationConfig
) -> dict[str, Any]:
    """Train one combination, unless that is done, and measure it; a run that fails says why."""
    try:
        if not is_complete(folder, config):
            shutil.rmtree(folder, ignore_errors=True)
            train_run(config, data, folder)
        trained = load_run(folder, data)
        report = evaluate_run(trained, Role.TEST, evaluation)
    except CandidError as error:
        return {"failed": str(error)}
    lines = logged(folder)
    steps = [line for line in lines if "loss" in line]
    nll = [line["validation/nll"] for line in lines if "validation/nll" in line]
    losses, norms = ([line[key] for line in steps] for key in ("loss", "gradient_norm"))
    return {
        "steps_looked_at": len(steps),
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
    """The lines of a run's metrics log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def is_complete(folder: Path, config: RunConfig) -> bool:
    """Whether the folder holds this very run, trained to its end."""
    manifest = folder / "run.json"
    if not manifest.exists():
        return False
    found = json.loads(manifest.read_text())
    return "result" in found and found["config"] == config.model_dump(mode="json")


def loss_bias(trained: Run, variant: Variant) -> dict[str, float]:
    """Mean of the estimated loss less the exact one at initialisation and as trained, in nats."""
    plan = plan_of(trained.config, trained.dataset)
    assert plan is not None
    report = audit(
        run_subjects(trained, 64),
        [replace(plan, variants=(variant,))],
        effort=Effort(draws=256),
        cost_rows=16,
    )
    (entry,) = report.entries
    return {name: parts["all"].loss_bias for name, parts in entry.findings.items()}


def by_popularity(data: PreparedDataset, evaluation: EvaluationConfig) -> dict[str, float]:
    """What lists and likelihoods are worth that know how popular each item is, and no more."""
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


def by_truth(data: PreparedDataset) -> dict[str, float]:
    """What the world itself would answer: the best there can be."""
    truth = OracleModel(SyntheticData(SyntheticConfig(**WORLD)), data)
    report = evaluate(truth, data, MEASURED_ON["world"], role=Role.TEST, max_length=1000)
    return {name: report.metrics[name].value for name in ("nll", "ndcg@10")}


def noise_of_one_draw(folder: Path, data: PreparedDataset) -> dict[str, Any]:
    """The losses of a run in which all 1,600 rows of a step share one draw of 32 beside a head."""
    table = samplers(data.num_items)[NOISY][0]
    config = config_of(folder.name, 400, "dot", table, Variant("refined"))
    batches = config.batches.model_copy(update={"batch_size": 32, "max_length": 50})
    one_draw = {"lr": 3e-3, "schedule": "constant", "num_groups": 1, "log_every": 2}
    training = config.training.model_copy(update=one_draw)
    config = config.model_copy(update={"batches": batches, "training": training})
    run(folder, data, config, MEASURED)
    lines = logged(folder)
    losses = [line["loss"] for line in lines if "loss" in line]
    return {
        "sampler": NOISY,
        "first": losses[4],  # of step 10
        "last": losses[-1],
        "mean_by_100_steps": [fmean(losses[i : i + 50]) for i in range(0, len(losses), 50)],
        "spread_by_100_steps": [pstdev(losses[i : i + 50]) for i in range(0, len(losses), 50)],
        "validation_nll": [line["validation/nll"] for line in lines if "validation/nll" in line],
        "loss_bias": loss_bias(load_run(folder, data), Variant("refined")),
    }


def measured(work: Path, data: Mapping[str, PreparedDataset]) -> list[dict[str, Any]]:
    """Every combination, trained and measured."""
    todo = [
        (name, similarity, sampler, table, variant)
        for name, dataset in data.items()
        for similarity in SIMILARITIES
        for sampler, (table, variants) in samplers(dataset.num_items).items()
        for variant in variants
    ]
    results = []
    for name, similarity, sampler, table, variant in track(todo, console=Console(stderr=True)):
        label = f"{name}-{similarity}-{sampler}-{variant.label}"
        folder = work / "runs" / label.replace(", ", "-").replace(" + ", "-").replace(" ", "_")
        config = config_of(folder.name, STEPS[name], similarity, table, variant)
        found = run(folder, data[name], config, MEASURED_ON[name])
        if (sampler, variant.label, similarity) in LOSS_BIAS and "failed" not in found:
            found["loss_bias"] = loss_bias(load_run(folder, data[name]), variant)
        labels = {"data": name, "similarity": similarity, "sampler": sampler}
        results.append(labels | {"correction": variant.label} | found)
    return results


def trained_table(document: dict[str, Any]) -> str:
    """Test NLL and NDCG@10 of every combination, and of popularity alone."""
    pairs = [(name, similarity) for name in STEPS for similarity in SIMILARITIES]
    heads = [f"{NAMES[name]}, {similarity}" for name, similarity in pairs]
    lines = [
        f"| sampler | correction | {' | '.join(heads)} |",
        "|---|---|" + "---|" * len(pairs),
        _row(
            "knows nothing: log V",
            "",
            [f"{document['data'][name]['log_num_items']:.2f}" for name, _ in pairs],
        ),
        _row(
            "popularity of items alone",
            "",
            [
                f"{base['nll']:.2f}; {base['ndcg@10']:.3f}"
                for base in (document["data"][name]["popularity"] for name, _ in pairs)
            ],
        ),
    ]
    cells = {
        (one["sampler"], one["correction"], one["data"], one["similarity"]): one
        for one in document["results"]
    }
    best = f"{document['truth']['nll']:.2f}; {document['truth']['ndcg@10']:.3f}"
    lines.append(
        _row("the truth", "", [best if name == "world" else "unknown" for name, _ in pairs])
    )
    for sampler, correction in dict.fromkeys(key[:2] for key in cells):
        found = [cells[sampler, correction, *pair] for pair in pairs]
        lines.append(
            _row(
                sampler,
                correction,
                [
                    "failed"
                    if "failed" in one
                    else f"{one['test_nll']:.2f}; {one['test_ndcg@10']:.3f}"
                    for one in found
                ],
            )
        )
    return "\n".join(lines) + "\n"


def bias_table(document: dict[str, Any]) -> str:
    """Estimated losses early and late, beside their bias."""
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
    """The docs with their generated blocks as the results have them."""
    for name, block in (("trained", trained_table(document)), ("bias", bias_table(document))):
        place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        assert place.search(content), f"{DOCS} has no <!-- {name} --> block"
        content = place.sub(lambda _, block=block: block, content)
    return content


def main() -> None:
    """Run everything, write, and say what diverged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/every_estimator"))
    work = parser.parse_args().work
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    torch.set_num_threads(1)
    data = datasets(work)
    results = measured(work, data)
    document = {
        "command": "python benchmarks/every_estimator.py",
        "versions": {"candid": __version__, "torch": torch.__version__},
        "settings": {
            "n": N,
            "dim": DIM,
            "steps": STEPS,
            "batches": BATCHES,
            "training": TRAINING,
            "world": WORLD,
        },
        "data": {
            name: {
                "log_num_items": math.log(dataset.num_items),
                "popularity": by_popularity(dataset, MEASURED_ON[name]),
            }
            for name, dataset in data.items()
        },
        "truth": by_truth(data["world"]),
        "one_draw": noise_of_one_draw(work / "runs" / "one_draw", data["ml1m"]),
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
