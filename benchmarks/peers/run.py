"""Comparison of candid with its peers: time of an epoch, time to equal quality, peak memory.

    python benchmarks/peers/install.py      # once: an environment for each peer
    python benchmarks/peers/run.py          # hours on one thread; writes results/peers.json
    python benchmarks/peers/report.py       # writes tables (docs/benchmarks/speed.md) and figure

The data are MovieLens-1M and Amazon Beauty (under ``CANDID_DATA``), leave-one-out: all but the
last two interactions of each user are training data, and the last but one is the target. The
candidates are the whole catalog without the items that the user has seen. Each library writes lists
of ten; one function scores all lists, on the same users. The training clocks are stopped meanwhile.

The libraries of a group run as processes on the same cores and with the same number of threads.
They take turns of an epoch (RecBole: of some steps), so that other load on the machine affects all
of them. Each continues until it has reached the level of its group and made five turns, or has used
up its time. Every turn is recorded, with wall and CPU seconds of the process. An interrupted run
continues with the libraries that were not finished, from their start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from install import python_of

from candid.data import DataConfig, Role, open_dataset, prepare_folder

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "peers.json"
WORK = ROOT / "build" / "peers" / "work"
ASKED = 2048


@dataclass(frozen=True)
class DataSet:
    """A data set with the settings that all libraries share on it.

    Attributes:
        max_length: longest history that a model reads.
        batch_size: users in a batch.
        levels: validation NDCG@10 at which a library is finished, by group.
        contenders: names; those in ``once`` run with seed 0 only.
        once: contenders whose time of an epoch alone is of interest.
    """

    max_length: int
    batch_size: int
    levels: dict[str, float]
    contenders: tuple[str, ...]
    once: tuple[str, ...] = ()


IDS = ("candid-ids", "implicit-bpr", "implicit-als")
DATA = {
    "ml-1m": DataSet(
        max_length=200,
        batch_size=32,
        levels={"sasrec": 0.12, "ids": 0.035},
        contenders=(
            "candid", "candid-float32", "candid-sampled", "plain-pytorch", "rectools",
            "rectools-esasrec", "rectools-hstu", "recbole", *IDS,
        ),
        once=("recbole",),
    ),
    "amazon-beauty": DataSet(
        max_length=50,
        batch_size=128,
        levels={"sasrec": 0.02, "ids": 0.008},
        contenders=(
            "candid", "candid-sampled", "rectools-esasrec", "rectools-hstu", *IDS,
        ),
    ),
}  # fmt: skip


def transformer(data: DataSet, **changes: Any) -> dict[str, Any]:
    """A config of candid: SASRec with the settings of the peers, except for ``changes``."""
    query = {"type": "causal_transformer", "dim": 64, "num_blocks": 2, "num_heads": 2}
    config: dict[str, Any] = {
        "name": "peers",
        "device": "cpu",
        "batches": {
            "batch_size": data.batch_size, "max_length": data.max_length, "windows": "last",
        },
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
    }  # fmt: skip
    return merged(config, changes)


def id_towers(data: DataSet, **changes: Any) -> dict[str, Any]:
    """A config of candid: one vector for each user and each item."""
    towers = {
        "query_tower": {"type": "user_embedding", "dim": 64},
        "item_tower": {"type": "item_embedding", "dim": 64},
        "similarity": "cosine",
        "temperature": 0.1,
    }
    config = transformer(data)
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


def contenders(data: DataSet) -> dict[str, dict[str, Any]]:
    """The settings of every library on a data set, by name."""
    shared = {
        "dim": 64, "heads": 2, "max_length": data.max_length, "batch_size": data.batch_size,
        "lr": 1e-3,
    }  # fmt: skip
    rectools = {"group": "sasrec", "with": "rectools", "env": "rectools", "epochs": 500} | shared
    rectools |= {"model": "sasrec", "loss": "softmax", "negatives": None}
    # RecTools samples negatives for each position. With 256 of them an epoch of Amazon Beauty,
    # where a full softmax does not fit, takes over four CPU minutes.
    sampled = {"loss": "sampled_softmax", "negatives": 64}
    known = {
        "candid": {"group": "sasrec", "with": "candid", "config": transformer(data)},
        "candid-float32": {
            "group": "sasrec", "with": "candid",
            "config": transformer(data, loss={"precision": "float32"}),
        },
        "candid-sampled": {
            "group": "sasrec", "with": "candid",
            "config": transformer(
                data,
                loss={"type": "sampled_softmax", "correction": "refined"},
                sampler={"type": "popularity", "num_candidates": 256, "exponent": 0.75},
            ),
        },
        "plain-pytorch": {"group": "sasrec", "with": "torch"} | shared,
        "rectools": rectools,
        "rectools-esasrec": rectools | sampled | {"model": "esasrec"},
        "rectools-hstu": rectools | sampled | {"model": "hstu"},
        "recbole": {"group": "sasrec", "with": "recbole", "env": "recbole"} | shared
        # Rows of one position: 2,048, as it has them, take 11 GiB.
        | {"batch_size": 512, "turn": 4 if data.max_length == 200 else 32},
        "candid-ids": {"group": "ids", "with": "candid", "config": id_towers(data)},
        "implicit-bpr": {
            "group": "ids", "with": "implicit", "env": "implicit", "model": "bpr", "dim": 64,
            "epochs": 400, "options": {"learning_rate": 0.05, "regularization": 0.01},
        },
        "implicit-als": {
            "group": "ids", "with": "implicit", "env": "implicit", "model": "als", "dim": 64,
            "epochs": 30, "options": {"regularization": 0.05, "alpha": 5.0},
        },
    }  # fmt: skip
    return {name: known[name] for name in data.contenders}


def write_data(name: str, folder: Path) -> None:
    """Write the prepared dataset, and the same as plain arrays for the peers."""
    if (folder / "data.npz").exists():
        return
    source = Path(os.environ.get("CANDID_DATA", ROOT.parent / "shared" / "data"))
    config = DataConfig(
        interactions=str(source / name / "interactions.parquet"), order="position", drop_nulls=True
    )
    folder.mkdir(parents=True, exist_ok=True)
    prepare_folder(config, folder / "dataset")
    dataset = open_dataset(folder / "dataset")
    roles, items = np.asarray(dataset.roles), np.asarray(dataset.item_ids).astype(np.int64)
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.user_offsets))
    trains = roles == Role.TRAIN
    rng = np.random.default_rng(0)
    (folder / "lists").mkdir(exist_ok=True)
    np.savez(
        folder / "data.npz",
        users=users[trains],
        items=items[trains],
        validation=items[roles == Role.VALIDATION],
        test=items[roles == Role.TEST],
        asked=np.sort(rng.choice(dataset.num_users, ASKED, replace=False)),
        num_items=dataset.num_items,
    )


def mean_ndcg(lists: Any, targets: Any) -> float:
    """Mean NDCG@10 of lists [A, 10] with one relevant item each, [A]."""
    rows, ranks = np.nonzero(lists == targets[:, None])
    assert len(np.unique(rows)) == len(rows), "an item is twice in a list"
    return float((1 / np.log2(ranks + 2)).sum() / len(lists))


class Contender:
    """A process that trains in turns."""

    def __init__(self, name: str, settings: dict[str, Any], folder: Path, threads: int, seed: int):
        self.name, self._folder = name, folder
        settings = dict(settings)
        self.group = settings.pop("group")
        script = Path(__file__).parent / f"with_{settings.pop('with')}.py"
        env = settings.pop("env", None)
        python = sys.executable if env is None else str(python_of(env))
        settings |= {"name": name, "threads": threads, "seed": seed}
        if "config" in settings:
            settings["config"] |= {"threads": threads, "seed": seed}
        self.settings = settings
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        logs = folder / f"{name}.log"
        self._process = subprocess.Popen(
            [python, str(script), str(folder), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=logs.open("w"),
            text=True,
            cwd=folder,  # where some leave logs of their own
            env=os.environ | dict.fromkeys(variables, str(threads)),
        )
        self.turns: list[dict[str, float]] = []
        self.versions = self._answer()["versions"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended; see {self._folder / (self.name + '.log')}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self, targets: Any) -> None:
        """Let it train for a turn, and score its lists."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._answer()
        lists = np.load(self._folder / "lists" / f"{self.name}.npy")
        answer["ndcg"] = mean_ndcg(lists, targets)
        self.turns.append({key: round(value, 4) for key, value in answer.items()})
        used, epochs = (sum(turn[key] for turn in self.turns) for key in ("cpu", "epochs"))
        print(f"{self.name}: {epochs:.2f} epochs, {used:.1f} CPU s, {self.turns[-1]}", flush=True)

    def is_done(self, level: float, seconds: float) -> bool:
        """Whether the level is reached after five turns at least, or the time is up."""
        used = sum(turn["cpu"] for turn in self.turns)
        is_reached = len(self.turns) >= 5 and self.turns[-1]["ndcg"] >= level
        return is_reached or (used >= seconds and len(self.turns) >= 2)

    def close(self) -> None:
        """End the process, and wait for its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compete(
    names: list[str], data_name: str, seed: int, options: argparse.Namespace, found: dict[str, Any]
) -> None:
    """Take turns until all are done; what is done goes into the results."""
    folder, data = WORK / data_name, DATA[data_name]
    stored = np.load(folder / "data.npz")
    targets = stored["validation"][stored["asked"]]
    settings = contenders(data)
    left = [
        Contender(name, settings[name], folder, options.threads, seed) for name in names
    ]  # fmt: skip
    while left:
        for contender in list(left):
            contender.turn(targets)
            if contender.is_done(data.levels[contender.group], options.seconds):
                found[contender.name] = {
                    "group": contender.group,
                    "seconds": options.seconds,
                    "versions": contender.versions,
                    "settings": contender.settings,
                    "turns": contender.turns,
                }
                write(data_name, seed, found)
                left.remove(contender)
                contender.close()


def read() -> dict[str, Any]:
    """The results so far."""
    if not RESULTS.exists():
        return {"data": {}}
    report: dict[str, Any] = json.loads(RESULTS.read_text())
    return report


def write(data_name: str, seed: int, found: dict[str, Any]) -> None:
    """Put the contenders of a seed into the results, which another process may write too."""
    report = read() | {
        "command": "python benchmarks/peers/run.py",
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "asked": ASKED,
        "levels": {name: data.levels for name, data in DATA.items()},
    }
    report["data"].setdefault(data_name, {}).setdefault(str(seed), {}).update(found)
    partial = RESULTS.with_suffix(".tmp")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(RESULTS)


def main() -> None:
    """Run what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contenders", nargs="*", help="some of the contenders; none: all")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of each contender, and cores")
    parser.add_argument("--first-core", type=int, default=0, help="the cores begin here")
    parser.add_argument("--seconds", type=float, default=1200, help="CPU time of one, at most")
    parser.add_argument("--again", action="store_true", help="also what is in the results")
    options = parser.parse_args()
    os.sched_setaffinity(0, range(options.first_core, options.first_core + options.threads))
    for data_name in options.data:
        data = DATA[data_name]
        write_data(data_name, WORK / data_name)
        for seed in options.seeds:
            found = read()["data"].get(data_name, {}).get(str(seed), {})
            names = [name for name in data.contenders if name in (options.contenders or names_of())]
            names = [name for name in names if seed == 0 or name not in data.once]
            names = [name for name in names if options.again or name not in found]
            groups = contenders(data)
            for group in data.levels:
                compete(
                    [name for name in names if groups[name]["group"] == group],
                    data_name,
                    seed,
                    options,
                    found,
                )


def names_of() -> list[str]:
    """All contenders."""
    return [name for data in DATA.values() for name in data.contenders]


if __name__ == "__main__":
    main()
