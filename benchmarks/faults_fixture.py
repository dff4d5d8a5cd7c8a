"""Tiny inputs and artifacts of the fault campaign, made once by the command line itself."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from faults_process import Outcome, Stop, fork_lines, redirect, run
from faults_programs import UPDATES, write_changes, write_kernel, write_updates

RECIPE = """
name = "tiny"
seed = 3
threads = 1
{features}
[batches]
batch_size = 16
max_length = 8

[model.query_tower]
type = "causal_transformer"
dim = 8
num_blocks = 1

[model.item_tower]
type = "{item_tower}"
dim = 8

[sampler]
type = "popularity"
num_candidates = 16

[loss]
type = "sampled_softmax"

[training]
epochs = 3
trackers = ["jsonl"]

[evaluation]
ks = [1, 10]
"""
DATA = """
[data]
interactions = "log.csv"
user = "user"
item = "item"
time = "time"

[data.items]
path = "items.csv"
item = "item"
title = "title"
attributes = ["kind", "price"]

[data.users]
path = "users.csv"
user = "user"
attributes = ["age"]
"""
FEATURES = """
[features.item.kind]
type = "categorical"

[features.item.price]
type = "number"
"""
STUDY = """
name = "tiny"

[budget]
cpu_hours = 1.0

[recipe]
device = "cpu"
threads = 1
batches = {unit = "interaction", batch_size = 64}

[recipe.training]
epochs = 2
warmup_steps = 2
patience = "none"
softmax_over = "trained"
log_every = 1

[datasets.synthetic.synthetic]
num_users = 30
num_items = 20
num_topics = 3
interactions_mean = 8.0
history_weight = 0.0
dim = 4

[towers.vectors.model]
query_tower = {type = "user_embedding", dim = 4}
item_tower = {type = "item_embedding", dim = 4}

[pilot]
learning_rates = [0.05]

[pilot.recipe.training]
epochs = 1

[measure]
calibration_users = 20

[[grids]]
num_candidates = [4]
arms = ["logq_kept", "full_softmax"]
"""
DATA_OPTIONS = [
    "--user", "user", "--item", "item", "--time", "time",
    "--items", "items.csv", "--items-item", "item", "--title", "title",
    "--items-attribute", "kind", "--items-attribute", "price",
    "--users", "users.csv", "--users-user", "user", "--users-attribute", "age",
]  # fmt: skip
INDEXES = {
    "exact": ["index.type=exact"],
    "bfloat16": ["index.type=bfloat16"],
    "int8": ["index.type=int8"],
    "usearch": ["index.type=usearch"],
    "hnsw": ["index.type=faiss", "index.kind=hnsw"],
    "ivf": ["index.type=faiss", "index.kind=ivf"],
    "kernel_lsh": ["index.type=kernel_lsh"],
}
BASELINES = ("popularity", "item_knn", "markov", "ease", "co_visits", "session_knn")

SHARDED = ("train", "ids.toml", "--data", "data", "--out", "sharded", "--no-baselines", "--set",
           "training.tables=sharded_row_adam")  # fmt: skip
"""A training whose checkpoints have a file for each process."""
CUT = {
    f"bulk/lists.{suffix}": ("recommend", "run", "--all-users", "--out", f"bulk/lists.{suffix}")
    for suffix in ("jsonl", "parquet")
}
"""Bulk recommendations that were killed between two blocks, by their output."""


class SetupError(Exception):
    """A command of the fixture failed: the campaign cannot begin."""


def write_inputs(folder: Path) -> None:
    """Write tables of interactions, items and users, a changed log, recipes, and lists of ids."""
    rng = random.Random(0)
    rows = []
    for user in range(60):
        for step, item in enumerate(rng.sample(range(40), 10)):
            rows.append(f"{user},{100 + item},{1_700_000_000 + 3600 * step + user}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    more = [f"{60 + n % 4},{100 + n * 7 % 40},{1_700_100_000 + n}" for n in range(40)]
    (folder / "log2.csv").write_text("\n".join(["user,item,time", *rows, *more]) + "\n")
    items = [f"{100 + n},Film {n},{('new', 'used', 'rare')[n % 3]},{n * 1.5}" for n in range(40)]
    (folder / "items.csv").write_text("\n".join(["item,title,kind,price", *items]) + "\n")
    users = [f"{n},{20 + n}" for n in range(64)]
    (folder / "users.csv").write_text("\n".join(["user,age", *users]) + "\n")
    ids = RECIPE.format(features="", item_tower="item_embedding")
    features = RECIPE.format(features=FEATURES, item_tower="item_features")
    (folder / "ids.toml").write_text(ids)
    (folder / "features.toml").write_text(features + DATA)
    (folder / "data.toml").write_text(ids + DATA)
    (folder / "new_items.csv").write_text("item,title,kind,price\n900,New,new,3.5\n901,B,rare,1\n")
    (folder / "some_users.txt").write_text("".join(f"{n}\n" for n in range(0, 60, 7)))
    space = '[space]\n"training.lr" = {low = 0.001, high = 0.01, log = true}\n'
    (folder / "space.toml").write_text(space)
    (folder / "study.toml").write_text(STUDY)


def write_formats(folder: Path) -> None:
    """Write the interactions in every format that candid reads; runs in a child."""
    import polars as pl

    log = pl.read_csv(folder / "log.csv")
    text = (folder / "log.csv").read_bytes()
    log.write_parquet(folder / "log.parquet")
    log.write_ipc(folder / "log.arrow")
    log.write_ndjson(folder / "log.jsonl")
    log.write_csv(folder / "log.tsv", separator="\t")
    log.write_csv(folder / "log.csv.zst", compression="zstd", check_extension=False)
    (folder / "log.csv.gz").write_bytes(gzip.compress(text, mtime=0))
    (folder / "log.csv.bz2").write_bytes(bz2.compress(text))
    (folder / "log.jsonl.gz").write_bytes(
        gzip.compress((folder / "log.jsonl").read_bytes(), mtime=0)
    )
    inter = log.rename(
        {"user": "user_id:token", "item": "item_id:token", "time": "timestamp:float"}
    )
    inter.write_csv(folder / "log.inter", separator="\t")
    dat = [f"{u}::{i}::5::{t}" for u, i, t in log.iter_rows()]
    (folder / "ratings.dat").write_text("\n".join(dat) + "\n")
    for name in ("items", "users"):
        pl.read_csv(folder / f"{name}.csv").write_parquet(folder / f"{name}.parquet")


def make_fixture(folder: Path) -> None:
    """Write the inputs and make every artifact from them, below ``folder``.

    Raises:
        SetupError: a command failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    write_inputs(folder)

    _in_fork(folder, lambda: write_formats(folder))
    _in_fork(folder, lambda: write_updates(folder / "updates" / UPDATES))
    _in_fork(folder, lambda: write_kernel(folder))
    data = ["--data", "data"]
    commands = [
        ["prepare", "--interactions", "log.csv", *DATA_OPTIONS, "--out", "data"],
        ["prepare", "--interactions", "log2.csv", *DATA_OPTIONS, "--out", "data2",
         "--ids-from", "data"],
        ["train", "ids.toml", *data, "--out", "run", "--no-baselines"],
        ["train", "features.toml", *data, "--out", "run_features", "--no-baselines"],
        ["evaluate", "run", "--out", "evaluation.json"],
        ["recommend", "run", "--all-users", "--out", "lists.jsonl", "--split", "test"],
        ["tune", "ids.toml", *data, "--out", "search", "--trials", "2", "--set",
         "training.epochs=1", "--space", "space.toml"],
    ]  # fmt: skip
    for name, settings in INDEXES.items():
        pairs = [text for setting in settings for text in ("--set", setting)]
        commands.append(["index", "run", "--out", f"index_{name}", "-k", "5", *pairs])
    for name in BASELINES:
        save = ["--only", name, "--no-tune", "--save", f"baseline_{name}"]
        commands.append(["baselines", "data", *save])
    commands += [
        ["export", "run", "--out", "export", "-f", "parquet", "-f", "npy", "-f", "qdrant"],
        ["export", "run", "--out", "export_onnx", "-f", "onnx"],
        [*SHARDED, "--set", "training.epochs=1"],
        ["study", "study.toml", "--out", "study"],
    ]
    for arguments in commands:
        check(run([*arguments, "--quiet"], folder), arguments)
    _in_fork(folder, lambda: write_changes(folder))
    records = folder / "study" / "records.jsonl"
    *lines, last = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines))
    (folder / "study" / json.loads(last)["users"]).unlink()
    for out, cut in CUT.items():
        _cut(folder, out, [*cut, "--quiet"])


def _cut(folder: Path, out: str, arguments: list[str]) -> None:
    """Run a command that writes blocks, and again with a kill after half of its operations."""
    record = folder.with_suffix(".places")
    record.unlink(missing_ok=True)
    (folder / out).parent.mkdir(exist_ok=True)
    places = run(arguments, folder, stop=Stop(0, record)).places
    (folder / out).unlink()
    killed = run(arguments, folder, stop=Stop(len(places) // 2))
    if killed.code != -9 or not list(
        (folder / out).parent.glob(f".{Path(out).name}.blocks/block*")
    ):
        raise SetupError(f"candid {' '.join(arguments)} leaves no blocks: {killed.err[-2000:]}")


def check(outcome: Outcome, arguments: list[str]) -> None:
    """Refuse a command of the fixture that failed.

    Raises:
        SetupError: it failed.
    """
    if outcome.code:
        raise SetupError(f"candid {' '.join(arguments)}: {outcome.code}: {outcome.err[-2000:]}")


def _in_fork(folder: Path, work: Callable[[], None]) -> None:
    """Call a function in a child: a process that has used Polars cannot be forked any more."""

    def child(send: object) -> None:
        redirect(folder.with_suffix(".out"), folder.with_suffix(".err"))
        work()

    pid, reader = fork_lines(child)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SetupError(folder.with_suffix(".err").read_text()[-2000:])
