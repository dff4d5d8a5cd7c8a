"""Memory and time of a training step by the size of its micro-batches.

    python benchmarks/gradient_cache.py
    python benchmarks/gradient_cache.py --tables   # write the table of the page only

A step of the trainer over 1,024 random histories of 50 interactions, with a causal transformer of
two blocks, width 64, dropout 0.2 and rotary positions, 20,000 items, and a sampled softmax with
256 popularity and 256 uniform candidates, on one thread. Each size has a process of its own. Memory
is the peak of the process above that before the first step; time is the median CPU time of the
later steps. The gradient of the first step is compared with that of the whole batch: the largest
difference of an element, relative to the largest element of the same parameter.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import candid
from candid.batches import Loader, offsets_of
from candid.config import recipe_for
from candid.config.data_facts import DataFacts
from candid.data import PreparedDataset
from candid.runs.build import build_model, build_objective
from candid.training import Trainer, TrainingConfig
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gradient_cache.json"
DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
HISTORIES, LENGTH, ITEMS, CANDIDATES = 1024, 50, 20_000, 256
SIZES = (None, 512, 128, 32, 8)


def make_trainer(size: int | None, folder: Path) -> Trainer:
    """Return a trainer whose first batch has all histories."""
    total = HISTORIES * LENGTH
    dataset = PreparedDataset(
        item_ids=np.random.default_rng(0).integers(0, ITEMS, total).astype(np.int32),
        user_offsets=offsets_of(np.full(HISTORIES, LENGTH)),
        roles=np.zeros(total, dtype=np.uint8),
        users=pl.DataFrame({"source_id": range(HISTORIES)}),
        items=pl.DataFrame({"source_id": range(ITEMS)}),
        manifest={"config": {"order": "n"}},
    )
    parts = [{"type": kind, "num_candidates": CANDIDATES} for kind in ("popularity", "uniform")]
    changes = {
        "sampler": {"type": "mixture", "components": parts},
        "loss.type": "sampled_softmax",
        "model.query_tower.dim": 64,
        "model.item_tower.dim": 64,
        "model.query_tower.dropout": 0.2,
        "model.item_tower.initial": "random",
        "batches.batch_size": HISTORIES,
        "batches.micro_batch": size,
    }
    config, _ = recipe_for(DataFacts.of(dataset), changes)
    torch.manual_seed(0)
    loss, sampler = build_objective(config, dataset)
    return Trainer(
        model=build_model(config, dataset),
        loader=Loader(dataset, config.batches, seed=0),
        loss=loss,
        sampler=sampler,
        config=TrainingConfig(tables="row_adam", average=None, patience=None),
        folder=folder,
    )


def status(name: str) -> float:
    """Return a field of the status of the process, MiB."""
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if name in one]
    return int(line.split()[1]) / 1024


def worker(size: int | None, steps: int, gradients: Path) -> dict[str, Any]:
    """Measure one size in this process, and store the gradients of the first step."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(size, Path(folder))
        trainer.model.train()
        batch = trainer.loader.batch(0, 0)
        before, seconds = status("VmRSS"), []
        for step in range(steps):
            started = time.process_time()
            trainer.step(batch)
            seconds.append(time.process_time() - started)
            if step == 0:
                torch.save(
                    {name: p.grad.to_dense() for name, p in trainer.model.named_parameters()},
                    gradients,
                )
        return {
            "micro_batch": size,
            "cpu_seconds": [round(one, 3) for one in seconds[1:]],
            "peak_mib": round(status("VmHWM") - before, 1),
        }


def measure(steps: int) -> dict[str, Any]:
    """Measure all sizes, each in a process of its own."""
    results, expected = [], None
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = Path(folder) / f"{size}.pt"
            command = [sys.executable, __file__, "--worker", str(size or 0), str(path)]
            output = subprocess.run(
                [*command, "--steps", str(steps)], check=True, capture_output=True, text=True
            )
            result = json.loads(output.stdout.splitlines()[-1])
            found = torch.load(path, weights_only=True)
            expected = expected or found
            result["difference"] = max(
                float((found[name] - one).abs().max() / one.abs().max())
                for name, one in expected.items()
            )
            results.append(result)
    return {
        "candid": candid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": 1,
        "clock": "CPU seconds of the process; other work shared the machine",
        "command": f"python benchmarks/gradient_cache.py --steps {steps}",
        "results": results,
    }


def table(content: dict[str, Any]) -> str:
    """Return the Markdown table."""
    whole = content["results"][0]
    lines = [
        "| `batches.micro_batch` | peak memory of a step, MiB | CPU seconds | of uncut | "
        "difference of the gradient |",
        "|---:|---:|---:|---:|---:|",
    ]
    for one in content["results"]:
        median = statistics.median(one["cpu_seconds"])
        ratio = median / statistics.median(whole["cpu_seconds"])
        name = "none" if one["micro_batch"] is None else one["micro_batch"]
        low, high = min(one["cpu_seconds"]), max(one["cpu_seconds"])
        lines.append(
            f"| {name} | {one['peak_mib']:,.0f} | {median:.2f} ({low:.2f} to {high:.2f}) | "
            f"{ratio:.2f} | {one['difference']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or only write the table of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tables", action="store_true", help="only write the table")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        size = int(options.worker[0]) or None
        print(json.dumps(worker(size, options.steps, Path(options.worker[1]))))
        return
    if not options.tables:
        RESULTS.write_text(json.dumps(measure(options.steps), indent=1) + "\n")
    text = with_block(DOCS.read_text(), "gradient cache", table(json.loads(RESULTS.read_text())))
    DOCS.write_text(text)


if __name__ == "__main__":
    main()
