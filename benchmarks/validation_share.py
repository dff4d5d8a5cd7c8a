"""Share of validation in the CPU time of an epoch, for the recipes.

    CANDID_DATA=data python benchmarks/validation_share.py

For each recipe: CPU seconds of training steps on one thread, extrapolated to an epoch, and of one
validation with its sample of users (``evaluation.validation_users``) and with all users. The three
alternate; each figure is the median. The first steps and a validation warm up.
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
RESULTS = ROOT / "benchmarks" / "results" / "validation_share.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"


def measure(recipe: Path, data: Path, steps: int, repeats: int) -> dict[str, Any]:
    """Return the figures of one recipe."""
    from candid.batches import Loader, epoch_targets
    from candid.config import load_recipe
    from candid.data import Role, open_dataset, prepare_folder
    from candid.evaluation import evaluate
    from candid.runs.build import build_model, build_objective
    from candid.runs.features import fit_features
    from candid.training import Trainer

    torch.set_num_threads(1)
    config = load_recipe(recipe, [])
    assert config.data is not None
    folder = data / config.name
    prepare_folder(config.data, folder)
    dataset = open_dataset(folder)
    features = fit_features(config.features, dataset)
    context = features.context_for(dataset)
    model = build_model(config, dataset, features)
    targets = epoch_targets(dataset, config.batches)
    loss, sampler = build_objective(config, dataset, targets.counts)
    loader = Loader(dataset, config.batches, seed=0, context=context)
    trainer = Trainer(
        model=model,
        loader=loader,
        loss=loss,
        sampler=sampler,
        config=config.training,
        folder=data,
        item_is_trained=torch.from_numpy(targets.counts > 0),
    )
    during = config.evaluation.during_training()
    seconds: dict[str, list[float]] = {"step": [], "sample": [], "all": []}
    report = None
    batches = loader.epoch()
    for turn in range(repeats + 1):
        taken: dict[str, float] = {}
        started = time.process_time()
        for _ in range(steps):
            trainer.step(next(batches))
        taken["step"] = (time.process_time() - started) / steps
        for name, max_users in (("sample", during.max_users), ("all", None)):
            started = time.process_time()
            result = evaluate(
                model,
                dataset,
                during.model_copy(update={"max_users": max_users}),
                role=Role.VALIDATION,
                max_length=config.batches.max_length,
                context=context,
                item_counts=targets.counts,
            )
            taken[name] = time.process_time() - started
            report = result if name == "sample" else report
        if turn:
            for name, value in taken.items():
                seconds[name].append(value)
    assert report is not None
    step, sample, everyone = (float(np.median(seconds[name])) for name in seconds)
    epoch = step * loader.num_batches
    row = {
        "recipe": config.name,
        "steps_per_epoch": loader.num_batches,
        "users": report.counts["users"],
        "all_users": report.counts["users_with_targets"] - report.counts["users_without_history"],
        "epoch_cpu_seconds": round(epoch, 2),
        "validation_cpu_seconds": round(sample, 3),
        "validation_of_all_cpu_seconds": round(everyone, 3),
        "share": round(sample / epoch, 4),
        "share_of_all": round(everyone / epoch, 4),
        "seconds": {name: [round(value, 4) for value in seconds[name]] for name in seconds},
    }
    print(json.dumps(row), flush=True)
    return row


def with_table(content: str, results: list[dict[str, Any]]) -> str:
    """Replace the generated block of the docs by the table of the results."""
    lines = [
        "| recipe | epoch, s | users | validation, s | share | all users | validation, s | share |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['recipe']} | {row['epoch_cpu_seconds']:.1f} | {row['users']:,} | "
        f"{row['validation_cpu_seconds']:.2f} | {row['share']:.1%} | {row['all_users']:,} | "
        f"{row['validation_of_all_cpu_seconds']:.2f} | {row['share_of_all']:.1%} |"
        for row in results
    ]
    return with_block(content, "validation", "\n".join([*lines, ""]))


def main() -> None:
    """Measure the recipes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--recipes", nargs="+", default=["amazon-beauty", "ml1m-loo", "ml1m-temporal"]
    )
    parser.add_argument("--data", type=Path, help="folder of prepared datasets; default: temporary")
    parser.add_argument("--steps", type=int, default=12, help="training steps of one repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = given.data or Path(temporary)
        rows = [
            measure(ROOT / "recipes" / f"{name}.toml", data, given.steps, given.repeats)
            for name in given.recipes
        ]
    result = {
        "command": "python benchmarks/validation_share.py",
        "what": "CPU seconds of one process on one thread, medians; the machine was shared",
        "repeats": given.repeats,
        "steps": given.steps,
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
