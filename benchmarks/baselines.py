"""Baselines on public data: tuned on validation, measured on test, with their CPU time.

    python benchmarks/baselines.py --data DIR --out benchmarks/results/baselines.json

Each set runs in a process of its own, so that the peak memory is its own. Nothing is random but the
sample of validation users, which has a fixed seed. Wall time is not stated: other programs may run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
import scipy
import torch

import candid
from candid.baselines import measure_baselines
from candid.baselines.report import to_json
from candid.data import DataConfig, prepare_folder
from candid.evaluation import EvaluationConfig

SESSIONS: dict[str, Any] = {
    "user": "session_id",
    "order": "position",
    "split": {"kind": "column", "column": "split"},
}
SETS: dict[str, tuple[dict[str, Any], bool]] = {
    "ml-100k": ({"time": "timestamp"}, True),
    "amazon-beauty": ({"order": "position"}, True),
    "retailrocket": (SESSIONS, False),
    "nowplaying": (SESSIONS, False),
    "diginetica": (SESSIONS, False),
}
"""Settings of ``[data]``, and whether seen items are hidden, by set."""


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Measure all baselines on one set."""
    data, filter_seen = SETS[name]
    config = DataConfig(interactions=str(folder / name / "interactions.parquet"), **data)
    evaluation = EvaluationConfig(filter_seen=filter_seen, popularity_slices=0, history_slices=())
    with tempfile.TemporaryDirectory() as out:
        dataset = prepare_folder(config, out).dataset
        begin = time.process_time()
        results = to_json(measure_baselines(dataset, evaluation))
        seconds = time.process_time() - begin
    for one in results["baselines"]:
        report = one.pop("report")
        metrics = report["metrics"]
        one["metrics"] = {key: metrics[key] for key in ("ndcg@10", "recall@10", "recall@100")}
        one["users_ranked"] = report["counts"]["users_ranked"]
        one["seconds"] = round(one["seconds"], 1)
    return {
        "set": name,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "interactions": len(dataset.item_ids),
        "filter_seen": filter_seen,
        "cpu_s": round(seconds, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **results,
    }


def main() -> None:
    """Measure the sets, each in its own process, and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the public sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.data)))
        return
    document: dict[str, Any] = {
        "command": "python benchmarks/baselines.py --data DIR --sets " + " ".join(arguments.sets),
        "versions": {
            "candid": candid.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
            "scipy": scipy.__version__,
            "torch": torch.__version__,
        },
        "threads": torch.get_num_threads(),
        "sets": [],
    }
    for name in arguments.sets:
        load = round(os.getloadavg()[0], 1)
        command = [sys.executable, __file__, "--data", str(arguments.data), "--out", os.devnull]
        done = subprocess.run(
            [*command, "--child", name], check=True, stdout=subprocess.PIPE, text=True
        )
        document["sets"].append({"load": load, **json.loads(done.stdout)})
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
