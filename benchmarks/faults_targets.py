"""The artifacts and inputs that the fault campaign damages, and the commands that read them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from faults_fixture import BASELINES, CUT, DATA_OPTIONS, INDEXES, SHARDED
from faults_programs import OPEN_KERNEL, OPEN_UPDATES, UPDATES
from faults_scenarios import WEIGHTS

SUMMARY = r"^summary\.json/"
SIBLINGS = {
    "data": "data2",
    "run": "run_features",
    "run_features": "run",
    "index_exact": "index_int8",
    "index_hnsw": "index_ivf",
    "baseline_ease": "baseline_item_knn",
}
"""Artifacts of the same kind, whose files may take the place of those of the first."""


@dataclass(frozen=True)
class Reader:
    """A command that reads a target.

    Attributes:
        arguments: of the command, or the name of one of ``faults_programs.PROGRAMS``.
        outputs: files and folders that it writes.
        compare: pattern of the values that must be those of the undamaged target; None: they may
            differ.
        writes_target: whether it changes the target itself.
        must_refuse: whether it must refuse every changed file.
    """

    arguments: tuple[str, ...]
    outputs: tuple[str, ...] = ("o",)
    compare: str | None = ""
    writes_target: bool = False
    must_refuse: bool = False


@dataclass(frozen=True)
class Target:
    """An artifact or an input: its folder or file in the fixture, and the commands that read it."""

    path: str
    readers: tuple[Reader, ...]
    weight: float = 1.0
    is_input: bool = False


def targets() -> list[Target]:
    """Return all artifacts and inputs with the commands that read them."""
    data, lists = ("--data", "data"), ("--all-users", "--out", "o.jsonl")
    one_epoch = ("--out", "o", "--no-baselines", "--set", "training.epochs=1")
    found = [
        Target("data", (
            Reader(("recommend", "run", *data, *lists), ("o.jsonl",)),
            Reader(("evaluate", "run", *data, "--out", "o.json"), ("o.json",)),
            Reader(("train", "ids.toml", *data, *one_epoch), compare=WEIGHTS),
            Reader(("train", "features.toml", *data, *one_epoch), compare=WEIGHTS),
            Reader(("baselines", "data", "--only", "item_knn", "--no-tune", "--out", "o.json"),
                   ("o.json",)),
            Reader(("recipe", *data)),
        ), 4),
        Target("run", (
            Reader(("recommend", "run", *data, *lists), ("o.jsonl",)),
            Reader(("similar", "run", *data, "--all-items", "--out", "o.jsonl"), ("o.jsonl",)),
            Reader(("evaluate", "run", *data, "--out", "o.json"), ("o.json",)),
            Reader(("export", "run", *data, "--out", "o", "-f", "parquet"),
                   compare=r"parquet|npy"),
            Reader(("index", "run", *data, "--out", "o", "-k", "5"), compare=r"npy|parquet"),
            Reader(("train", "--init", "run", *data, *one_epoch), compare=WEIGHTS),
            Reader(("train", "ids.toml", *data, "--out", "run", "--resume", "--no-baselines",
                    "--set", "training.epochs=4"), ("run",), WEIGHTS, True),
        ), 4),
        Target("run_features", (
            Reader(("recommend", "run_features", *data, *lists), ("o.jsonl",)),
            Reader(("recommend", "run_features", *data, "--history", "105", "--json")),
            Reader(("recommend", "run_features", *data, "--user", "3", "--new-items",
                    "new_items.csv", "--json")),
            Reader(("similar", "run_features", *data, "--item", "101", "--json")),
        ), 3),
        Target("search", (
            Reader(("tune", "ids.toml", *data, "--out", "search", "--trials", "2", "--space",
                    "space.toml", "--set", "training.epochs=1", "--resume"), ("search",),
                   r"best\.toml", True),
        ), 0.5),
    ]  # fmt: skip
    for name in (*INDEXES, "changes"):
        search = ("recommend", "run", *data, "--index", f"index_{name}", *lists)
        found.append(Target(f"index_{name}", (Reader(search, ("o.jsonl",)),), 0.7))
    for name in BASELINES:
        ask = ("recommend", f"baseline_{name}", *data, *lists)
        found.append(Target(f"baseline_{name}", (Reader(ask, ("o.jsonl",)),), 0.5))
    for number, target in enumerate(found):
        found[number] = replace(target, readers=(*target.readers, _verify(target.path)))
    return found + _others() + _inputs()


def _verify(path: str) -> Reader:
    return Reader(("verify", path), (), must_refuse=True)


def _others() -> list[Target]:
    """Return the artifacts that no other command reads, and states of work that was cut."""
    study = ("study", "study.toml", "--out", "study")
    updates = f"updates/{UPDATES}"
    return [
        Target("export", (_verify("export"),), 0.5),
        Target("export_onnx", (_verify("export_onnx"),), 0.3),
        Target("sharded", (
            Reader(("recommend", "sharded", "--data", "data", "--all-users", "--out", "o.jsonl"),
                   ("o.jsonl",)),
            Reader((*SHARDED, "--set", "training.epochs=2", "--resume"), ("sharded",),
                   WEIGHTS, True),
            _verify("sharded"), _verify("sharded"),
        ), 0.8),
        Target("updates", (
            Reader((OPEN_UPDATES,), ()), Reader((OPEN_UPDATES,), ()),
            Reader(("verify", updates), (), None),
        ), 0.8),
        Target("kernels", (Reader((OPEN_KERNEL,), ()),), 0.3),
        Target("bulk", tuple(
            Reader(arguments, (out,), "^lists", True) for out, arguments in CUT.items()
        ), 0.8),
        Target("study", (
            Reader(study, ("study",), SUMMARY, True),
            Reader((*study, "--report"), ("study",), SUMMARY, True),
            _verify("study"),
        ), 0.3),
    ]  # fmt: skip


def _inputs() -> list[Target]:
    data, names = ("--data", "data"), {"items.csv": "items.parquet", "users.csv": "users.parquet"}
    tables = tuple(names.get(text, text) for text in DATA_OPTIONS)
    found = []

    def add(path: str, arguments: tuple[str, ...], weight: float = 1.0) -> None:
        outputs = tuple(text for text in ("o", "o.jsonl") if text in arguments)
        found.append(Target(path, (Reader(arguments, outputs, None),), weight, True))

    logs = ("log.csv", "log.csv.gz", "log.csv.bz2", "log.csv.zst", "log.tsv", "log.jsonl",
            "log.jsonl.gz", "log.parquet", "log.arrow")  # fmt: skip
    for name in logs:
        add(name, ("prepare", "--interactions", name, *DATA_OPTIONS, "--out", "o"), 0.8)
    add("log.inter", ("prepare", "--interactions", "log.inter", "--out", "o"), 0.6)
    add("ratings.dat", ("prepare", "--interactions", "ratings.dat", "--out", "o"), 0.6)
    for name in ("items.csv", "users.csv"):
        add(name, ("prepare", "--interactions", "log.csv", *DATA_OPTIONS, "--out", "o"), 0.6)
    for name in ("items.parquet", "users.parquet"):
        add(name, ("prepare", "--interactions", "log.csv", *tables, "--out", "o"), 0.6)
    add("data.toml", ("prepare", "data.toml", "--out", "o"), 1.5)
    short = ("--set", "training.epochs=1", "--set", "training.max_seconds=2", "--no-baselines")
    for name in ("ids.toml", "features.toml"):
        add(name, ("train", name, *data, "--out", "o", *short), 0.8)
    add("some_users.txt", ("recommend", "run", *data, "--users", "some_users.txt", "--out",
                           "o.jsonl"), 0.6)  # fmt: skip
    add("new_items.csv", ("recommend", "run_features", *data, "--user", "3", "--new-items",
                          "new_items.csv", "--json"), 0.6)  # fmt: skip
    add("lists.jsonl", ("evaluate", "--recommendations", "lists.jsonl", *data, "--json"), 0.6)
    return found
