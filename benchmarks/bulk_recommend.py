"""Cost of ``candid recommend --all-users`` beside the search alone, and its peak memory.

    python benchmarks/bulk_recommend.py                    # writes results/bulk_recommend.json
    python benchmarks/bulk_recommend.py --users 100000     # more users

Users with histories of ten random items, 100 recommendations each, ``--items`` items, vectors of
width 64. ``search`` is the exact search for the vectors of the same users in batches of 512,
without their histories' items; ``encoding`` is the model that makes the vectors; ``verb`` is the
whole command in a process of its own, from its start to the file. Times are CPU seconds of one
thread. Peak memory is the largest resident set of the command, once with all users and once with
an eighth of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
from candid.batches import offsets_of
from candid.data import PreparedDataset, Role
from candid.index import ExactIndex, Exclusions
from candid.inference import inference_mode, query_set

RESULTS = Path(__file__).parent / "results" / "bulk_recommend.json"
LENGTH, WIDTH, K, BATCH = 10, 64, 100, 512
RECIPES: dict[str, Any] = {
    "user_embedding": {
        "batches": {"unit": "interaction", "batch_size": 256},
        "model": {"query_tower": {"type": "user_embedding", "dim": WIDTH}},
    },
    "causal_transformer": {
        "batches": {"max_length": 50, "batch_size": 256},
        "model": {"query_tower": {"type": "causal_transformer", "dim": WIDTH, "num_blocks": 2}},
    },
}
"""What differs between the two models: a table of users, and a transformer over histories."""


def dataset_of(num_users: int, num_items: int) -> PreparedDataset:
    """Return users with random histories."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, num_items, num_users)
    steps = rng.integers(1, 1000, (num_users, LENGTH))
    items = (starts[:, None] + np.cumsum(steps, axis=1)) % num_items
    return PreparedDataset(
        item_ids=items.reshape(-1).astype(np.int32),
        user_offsets=offsets_of(np.full(num_users, LENGTH)),
        roles=np.full(items.size, Role.TRAIN, dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(num_users)}),
        items=pl.DataFrame({"source_id": np.arange(num_items)}),
        timestamps=np.arange(items.size) * 1_000_000,
        manifest={"config": {"order": None}},
    )


def recipe_of(name: str) -> dict[str, Any]:
    """Return the recipe of a model that is trained for one step."""
    own = RECIPES[name]
    return {
        "threads": 1,
        "device": "cpu",
        **own,
        "model": {**own["model"], "item_tower": {"type": "item_embedding", "dim": WIDTH}},
        "sampler": {"type": "uniform", "num_candidates": 256},
        "loss": "sampled_softmax",
        "training": {"max_steps": 1, "trackers": []},
    }


def seconds_of_search(run: candid.Run, num_users: int) -> tuple[float, float]:
    """Return the CPU seconds of encoding and of the search for the same vectors."""
    queries = query_set(run.dataset, user_ids=np.arange(num_users), max_length=50)
    with inference_mode(run.model):
        begin = time.process_time()
        vectors = torch.cat([v for _, v in queries.encode(run.model, run.model.device)])
        encoding = time.process_time() - begin
        items = torch.from_numpy(run.item_vectors()[1])
        begin = time.process_time()
        index = ExactIndex(items)
        for first in range(0, num_users, BATCH):
            rows = slice(first, min(first + BATCH, num_users))
            seen = queries.seen(rows)
            index.search(vectors[rows], K, Exclusions(seen.item_ids, seen.offsets))
        return encoding, time.process_time() - begin


def cost_of_verb(run: Path, out: Path, users: Path | None) -> dict[str, float]:
    """Return CPU and clock seconds of the command, and its peak memory."""
    who = ["--all-users"] if users is None else ["--users", str(users)]
    flags = ["recommend", str(run), *who, "-k", str(K), "--out", str(out), "--quiet"]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "candid", *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"candid {' '.join(flags)} ended with status {status}")
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "clock_seconds": round(time.perf_counter() - begin, 2),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def measure(name: str, num_users: int, num_items: int, folder: Path) -> dict[str, Any]:
    """Measure one model."""
    dataset = dataset_of(num_users, num_items)
    run = candid.train(dataset, recipe_of(name), out=folder / name, measure=False, quiet=True)
    few = folder / "users.parquet"
    dataset.users.head(num_users // 8).write_parquet(few)
    encoding, search = seconds_of_search(run, num_users)
    whole = cost_of_verb(folder / name, folder / "recs.parquet", None)
    eighth = cost_of_verb(folder / name, folder / "few.parquet", few)
    size = (folder / "recs.parquet").stat().st_size
    row = {
        "model": name,
        "users": num_users,
        "items": num_items,
        "search_cpu_seconds": round(search, 2),
        "encoding_cpu_seconds": round(encoding, 2),
        "verb": whole,
        "verb_eighth_of_users": eighth,
        "ratio_verb_to_search": round(whole["cpu_seconds"] / search, 2),
        "ratio_verb_to_search_and_encoding": round(whole["cpu_seconds"] / (search + encoding), 2),
        "marginal_ratio_to_search": round(
            (whole["cpu_seconds"] - eighth["cpu_seconds"]) / (search * 7 / 8), 2
        ),
        "file_mib": round(size / 2**20, 1),
    }
    print(json.dumps(row))
    return row


def main() -> None:
    """Measure the models and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=20_480)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--models", nargs="*", default=list(RECIPES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(name, options.users, options.items, Path(folder)) for name in options.models
        ]
    document = {
        "command": f"python benchmarks/bulk_recommend.py --users {options.users} "
        f"--items {options.items}",
        "versions": {
            "candid": candid.__version__,
            "torch": torch.__version__,
            "polars": pl.__version__,
            "python": platform.python_version(),
        },
        "settings": {"k": K, "width": WIDTH, "history": LENGTH, "threads": 1},
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
