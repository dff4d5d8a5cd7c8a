"""Cost of ``candid recommend --all-users`` beside the search alone, and its peak memory.

    python benchmarks/bulk_recommend.py                       # writes results/bulk_recommend.json
    python benchmarks/bulk_recommend.py --users 1024000       # a million users, an hour and a half

Users with histories of ten random items, 100 recommendations each, ``--items`` items, vectors of
width 64. ``search`` is the exact search for the vectors of the same users in batches of 512,
without their histories' items; ``encoding`` is the model that makes the vectors; ``verb`` is the
whole command in a process of its own, from its start to the file, and ``verb_no_probability`` the
same with ``--no-probability``: the search alone computes no probabilities either. Times are CPU
seconds of one thread: means, with the smallest and the largest of ``--repeats`` calls; of more than
50,000 users there is one call. Peak memory is the largest resident set of the command, with all
users and with an eighth of them. ``resumed`` kills the command when half of its blocks are complete
and calls it again: the CPU seconds of both, and whether the file is the same, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
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
from candid.runs.bulk import BLOCK_ROWS

RESULTS = Path(__file__).parent / "results" / "bulk_recommend.json"
LENGTH, WIDTH, K, BATCH = 10, 64, 100, 512
FEW_USERS = 50_000
"""Most users of a measurement that is repeated."""
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


def cost_of_verb(
    run: Path,
    out: Path,
    users: Path | None,
    kill_after: int | None = None,
    *,
    probability: bool = True,
) -> dict[str, float]:
    """Return CPU and clock seconds of the command, and its peak memory.

    Args:
        run: folder.
        out: file to write.
        users: file of the users; None: all.
        kill_after: complete blocks after which the command is killed; None: it ends by itself.
        probability: whether the file has probabilities.
    """
    who = ["--all-users"] if users is None else ["--users", str(users)]
    flags = ["recommend", str(run), *who, "-k", str(K), "--out", str(out), "--quiet"]
    flags += [] if probability else ["--no-probability"]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "candid", *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    if kill_after is not None:
        while len(blocks_of(out)) < kill_after:
            time.sleep(0.02)
        process.kill()
    _, status, usage = os.wait4(process.pid, 0)
    if status and kill_after is None:
        raise RuntimeError(f"candid {' '.join(flags)} ended with status {status}")
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "clock_seconds": round(time.perf_counter() - begin, 2),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def blocks_of(out: Path) -> list[Path]:
    """Return the complete blocks of a command that has not ended."""
    return sorted((out.parent / f".{out.name}.blocks").glob("block-*.arrow"))


def cost_of_resumption(run: Path, out: Path, expected: Path, num_blocks: int) -> dict[str, Any]:
    """Kill the command in the middle, call it again, and compare the file."""
    killed = cost_of_verb(run, out, None, kill_after=num_blocks // 2)
    num_complete = len(blocks_of(out))
    again = cost_of_verb(run, out, None)
    return {
        "blocks": num_blocks,
        "blocks_when_killed": num_complete,
        "cpu_seconds": round(killed["cpu_seconds"] + again["cpu_seconds"], 2),
        "is_same_file": out.read_bytes() == expected.read_bytes(),
    }


def spread(calls: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of several calls, with the smallest and largest CPU seconds."""
    seconds = [call["cpu_seconds"] for call in calls]
    return {
        "cpu_seconds": round(float(np.mean(seconds)), 2),
        "cpu_seconds_min": min(seconds),
        "cpu_seconds_max": max(seconds),
        "calls": len(calls),
        "peak_mib": max(call["peak_mib"] for call in calls),
    }


def measure(
    name: str, num_users: int, num_items: int, repeats: int, folder: Path
) -> dict[str, Any]:
    """Measure one model."""
    folder = folder / f"{name}-{num_users}"
    folder.mkdir()
    repeats = repeats if num_users <= FEW_USERS else 1
    dataset = dataset_of(num_users, num_items)
    run = candid.train(dataset, recipe_of(name), out=folder / name, measure=False, quiet=True)
    few = folder / "users.parquet"
    dataset.users.head(num_users // 8).write_parquet(few)
    encoding, search = seconds_of_search(run, num_users)
    out, few_out = folder / "recs.parquet", folder / "few.parquet"
    whole = spread([cost_of_verb(folder / name, out, None) for _ in range(repeats)])
    plain_out = folder / "plain.parquet"
    plain = spread(
        [cost_of_verb(folder / name, plain_out, None, probability=False) for _ in range(repeats)]
    )
    eighth = spread([cost_of_verb(folder / name, few_out, few) for _ in range(repeats)])
    resumed = None
    num_blocks = -(-num_users // (BLOCK_ROWS // (K * BATCH) * BATCH))
    if num_blocks > 3:
        resumed = cost_of_resumption(folder / name, folder / "again.parquet", out, num_blocks)
    size = out.stat().st_size
    row = {
        "model": name,
        "users": num_users,
        "items": num_items,
        "search_cpu_seconds": round(search, 2),
        "encoding_cpu_seconds": round(encoding, 2),
        "verb": whole,
        "verb_no_probability": plain,
        "verb_eighth_of_users": eighth,
        "resumed": resumed,
        "ratio_verb_to_search": round(whole["cpu_seconds"] / search, 2),
        "ratio_no_probability_to_search": round(plain["cpu_seconds"] / search, 2),
        "ratio_no_probability_to_search_and_encoding": round(
            plain["cpu_seconds"] / (search + encoding), 2
        ),
        "file_mib": round(size / 2**20, 1),
        "file_mib_no_probability": round(plain_out.stat().st_size / 2**20, 1),
    }
    print(json.dumps(row), flush=True)
    shutil.rmtree(folder)
    return row


def main() -> None:
    """Measure the models and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, nargs="+", default=[20_480, 102_400])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--models", nargs="*", default=list(RECIPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(name, users, options.items, options.repeats, Path(folder))
            for users in options.users
            for name in options.models
        ]
    # The place of the results does not belong to the measurement.
    given = [text for text in sys.argv[1:] if text not in ("--results", str(options.results))]
    command = ["python", "benchmarks/bulk_recommend.py", *given]
    document = {
        "command": shlex.join(command),
        "clock": "CPU seconds of one thread; other work shared the machine",
        "versions": {
            "candid": candid.__version__,
            "torch": torch.__version__,
            "polars": pl.__version__,
            "python": platform.python_version(),
        },
        "settings": {"k": K, "width": WIDTH, "history": LENGTH, "threads": 1},
        "rows": rows,
    }
    options.results.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
