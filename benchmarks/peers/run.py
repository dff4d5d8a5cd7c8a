"""Comparison of candid with its peers: time of an epoch, time to equal quality, peak memory.

    python benchmarks/peers/install.py      # once: an environment for each peer
    python benchmarks/peers/run.py          # hours on one thread; writes results/peers.json
    python benchmarks/peers/report.py       # writes tables (docs/benchmarks/speed.md) and figure

The data are MovieLens-1M (under ``CANDID_DATA``), leave-one-out: all but the last two interactions
of each user are training data, and the last but one is the target. The candidates are the whole
catalog without the items that the user has seen. Each library writes lists of ten; one function
scores all lists, on the same users. The training clocks are stopped meanwhile.

The libraries of a group run as processes in one process group, on the same cores and with the same
number of threads. They take turns of an epoch (RecBole: of some steps), so that other load on the
machine affects all of them. Each continues until it has reached the level of its group and made
five turns, or has used up its time. Every turn is recorded, with wall and CPU seconds of the
process. An interrupted run continues with the libraries that were not finished, from their start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from install import python_of

from candid.data import DataConfig, Role, open_dataset, prepare
from candid.evaluation.metrics import ndcg

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
WORK = ROOT / "build" / "peers" / "work"
ASKED = 2048
LEVELS = {"sasrec": 0.12, "ids": 0.035}
"""Validation NDCG@10 at which a library is finished, by group."""
SASREC = {"dim": 64, "heads": 2, "max_length": 200, "batch_size": 32, "lr": 1e-3}


def transformer(**changes: Any) -> dict[str, Any]:
    """A config of candid: SASRec with the settings of the peers, except for ``changes``."""
    query = {"type": "causal_transformer", "dim": 64, "num_blocks": 2, "num_heads": 2}
    config: dict[str, Any] = {
        "name": "peers",
        "device": "cpu",
        "batches": {"batch_size": 32, "max_length": 200, "windows": "last"},
        "model": {
            "query_tower": query | {"dropout": 0.2},
            "item_tower": {"type": "item_embedding", "dim": 64},
        },
        "loss": {"type": "full_softmax", "precision": "bfloat16"},
        "training": {
            "lr": 1e-3,
            "warmup_steps": 0,
            "epochs": 500,
            "patience": None,
            "trackers": ["jsonl"],
            "checkpoint_every": 500,
        },
    }
    return merged(config, changes)


def id_towers(**changes: Any) -> dict[str, Any]:
    """A config of ours: one vector a user, one an item."""
    towers = {
        "query_tower": {"type": "user_embedding", "dim": 64},
        "item_tower": {"type": "item_embedding", "dim": 64},
        "similarity": "cosine",
        "temperature": 0.1,
    }
    config = transformer()
    config |= {
        "batches": {"unit": "interaction", "batch_size": 2048},
        "model": towers,
        "sampler": {"type": "popularity", "num_candidates": 128, "exponent": 0.75},
        "loss": {"type": "sampled_softmax", "correction": "refined"},
    }
    tables = {"lr": 2e-3, "tables": "row_adam", "table_lr": 1e-2}
    return merged(config, {"training": tables} | changes)


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with some of its keys, at any depth, replaced."""
    result = dict(config)
    for key, value in changes.items():
        inner = (
            isinstance(value, dict) and "type" not in value and isinstance(result.get(key), dict)
        )
        result[key] = merged(result[key], value) if inner else value
    return result


# fmt: off
CONTENDERS: dict[str, dict[str, Any]] = {
    "candid": {
        "group": "sasrec", "with": "candid", "config": transformer(),
    },
    "candid-float32": {
        "group": "sasrec", "with": "candid", "config": transformer(loss={"precision": "float32"}),
    },
    "candid-sampled": {
        "group": "sasrec", "with": "candid",
        "config": transformer(
            batches={"batch_size": 32},
            loss={"type": "sampled_softmax", "correction": "refined"},
            sampler={"type": "popularity", "num_candidates": 256, "exponent": 0.75},
        ),
    },
    "plain-pytorch": {"group": "sasrec", "with": "torch", **SASREC},
    "rectools": {"group": "sasrec", "with": "rectools", "env": "rectools", "epochs": 500, **SASREC},
    "recbole": {
        "group": "sasrec", "with": "recbole", "env": "recbole", **SASREC,
        "batch_size": 512, "turn": 4,  # rows of one position: 2,048, as it has them, take 11 GiB
    },
    "candid-ids": {"group": "ids", "with": "candid", "config": id_towers()},
    "implicit-bpr": {
        "group": "ids", "with": "implicit", "env": "implicit", "model": "bpr", "dim": 64,
        "epochs": 400, "options": {"learning_rate": 0.05, "regularization": 0.01},
    },
    "implicit-als": {
        "group": "ids", "with": "implicit", "env": "implicit", "model": "als", "dim": 64,
        "epochs": 30, "options": {"regularization": 0.05, "alpha": 5.0},
    },
}
# fmt: on


def write_data() -> None:
    """The prepared dataset, and the same as plain arrays for the peers."""
    if (WORK / "data.npz").exists():
        return
    source = Path(os.environ.get("CANDID_DATA", ROOT.parent / "shared" / "data"))
    config = DataConfig(
        interactions=str(source / "ml-1m" / "interactions.parquet"),
        order="position",
        drop_nulls=True,
    )
    WORK.mkdir(parents=True, exist_ok=True)
    prepare(config, WORK / "dataset")
    dataset = open_dataset(WORK / "dataset")
    roles, items = np.asarray(dataset.roles), np.asarray(dataset.item_ids).astype(np.int64)
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.user_offsets))
    trains = roles == Role.TRAIN
    rng = np.random.default_rng(0)
    np.savez(
        WORK / "data.npz",
        users=users[trains],
        items=items[trains],
        validation=items[roles == Role.VALIDATION],
        test=items[roles == Role.TEST],
        asked=np.sort(rng.choice(dataset.num_users, ASKED, replace=False)),
        num_items=dataset.num_items,
    )
    (WORK / "lists").mkdir(exist_ok=True)


class Contender:
    """A process that trains in turns."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        settings = dict(CONTENDERS[name])
        self.group = settings.pop("group")
        script = Path(__file__).parent / f"with_{settings.pop('with')}.py"
        env = settings.pop("env", None)
        python = sys.executable if env is None else str(python_of(env))
        settings |= {"name": name, "threads": threads, "seed": 0}
        if "config" in settings:
            settings["config"] |= {"threads": threads, "seed": 0}
        self.settings = settings
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        logs = WORK / f"{name}.log"
        self._process = subprocess.Popen(
            [python, str(script), str(WORK), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=logs.open("w"),
            text=True,
            cwd=WORK,  # where some leave logs of their own
            env=os.environ | dict.fromkeys(variables, str(threads)),
        )
        self.turns: list[dict[str, float]] = []
        self.versions = self._answer()["versions"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended; see {WORK / (self.name + '.log')}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self, quality: Any) -> None:
        """Let it train for a turn, and score its lists."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._answer()
        answer["ndcg"] = quality(np.load(WORK / "lists" / f"{self.name}.npy"))
        self.turns.append({key: round(value, 4) for key, value in answer.items()})
        used, epochs = (sum(turn[key] for turn in self.turns) for key in ("cpu", "epochs"))
        print(f"{self.name}: {epochs:.2f} epochs, {used:.1f} CPU s, {self.turns[-1]}", flush=True)

    def is_done(self, seconds: float) -> bool:
        """Whether the level is reached, or the time is up, after five turns at least."""
        if len(self.turns) < 5:
            return False
        used = sum(turn["cpu"] for turn in self.turns)
        return self.turns[-1]["ndcg"] >= LEVELS[self.group] or used >= seconds

    def close(self) -> None:
        """End the process, and wait for its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compete(names: list[str], threads: int, seconds: float, report: dict[str, Any]) -> None:
    """Take turns until all are done; every turn goes into the report at once."""
    data = np.load(WORK / "data.npz")
    targets = data["validation"][data["asked"]]

    def quality(lists: Any) -> float:
        hits = lists == targets[:, None]
        return float(ndcg(hits, np.ones(len(hits), np.int64), [10]).mean())

    left = [Contender(name, threads) for name in names]
    while left:
        for contender in list(left):
            contender.turn(quality)
            is_done = contender.is_done(seconds)
            report["contenders"][contender.name] = {
                "group": contender.group,
                "done": is_done,
                "versions": contender.versions,
                "settings": contender.settings,
                "turns": contender.turns,
            }
            write(report)
            if is_done:
                left.remove(contender)
                contender.close()


def write(report: dict[str, Any]) -> None:
    """The results as they stand."""
    partial = RESULTS.with_suffix(".tmp")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(RESULTS)


def main() -> None:
    """Run what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contenders", nargs="*", help=f"some of {', '.join(CONTENDERS)}; none: all")
    parser.add_argument("--threads", type=int, default=1, help="of each contender, and cores")
    parser.add_argument("--first-core", type=int, default=0, help="the cores begin here")
    parser.add_argument("--seconds", type=float, default=7200, help="CPU time of one, at most")
    parser.add_argument("--again", action="store_true", help="also what is in the results")
    options = parser.parse_args()
    os.sched_setaffinity(0, range(options.first_core, options.first_core + options.threads))
    write_data()
    command = f"python benchmarks/peers/run.py --threads {options.threads}"
    report = {
        "command": f"{command} --seconds {options.seconds:.0f}",
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "threads": options.threads,
        "levels": LEVELS,
        "asked": ASKED,
        "contenders": {},
    }
    if RESULTS.exists():
        report["contenders"] = json.loads(RESULTS.read_text())["contenders"]
    for group in LEVELS:
        names = [name for name, settings in CONTENDERS.items() if settings["group"] == group]
        names = [name for name in names if name in (options.contenders or names)]
        done = {name for name, found in report["contenders"].items() if found["done"]}
        names = [name for name in names if options.again or name not in done]
        compete(names, options.threads, options.seconds, report)


if __name__ == "__main__":
    main()
