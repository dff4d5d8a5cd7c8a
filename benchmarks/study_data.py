"""Files of the public datasets of the study, and facts about its catalogs.

    python benchmarks/study_data.py file ml-1m ratings.dat --out FOLDER
    CANDID_DATA=FOLDER python benchmarks/study_data.py compare
    CANDID_DATA=FOLDER python benchmarks/study_data.py facts

``file`` writes ``FOLDER/NAME/interactions.parquet`` with the columns that ``studies/*.toml`` read.
Nothing is downloaded; docs/guides/study.md names the sources. ``compare`` compares the files of a
folder with those of the published study. ``facts`` writes ``benchmarks/results/study_data.json``
and the table of catalogs in docs/study.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from candid.atomic import write_json
from candid.batches import Loader, target_counts
from candid.study import Study, read_study
from candid.study.datasets import Datasets
from candid.study.grid import Grid
from page_blocks import with_block

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "studies" / "corrections.toml"
RESULTS = ROOT / "benchmarks" / "results" / "study_data.json"
PAGE = ROOT / "docs" / "study.md"
BLOCK = "study catalogs"
MIN_RATINGS: Final = 5
"""Ratings of an item of ml-1m: items with fewer are left out, as in the files of SASRec."""
POSITIVE: Final = 4
"""Least rating of ml-1m-positives."""
SHARES: Final = (0.8, 0.9)
"""Shares of the sessions of retailrocket, in their order, before validation and before test."""


@dataclass(frozen=True)
class SourceFile:
    """The file of a dataset, as its publisher provides it.

    Attributes:
        name: of the file.
        read: returns the table of the study.
        user: column of users or sessions.
        order: columns that order the interactions of a user; the last ones distinguish equal times.
    """

    name: str
    read: Callable[[Path], pl.DataFrame]
    user: str = "user_id"
    order: tuple[str, ...] = ("position",)


def movielens(path: Path) -> pl.DataFrame:
    """Return all ratings of items with at least five, in order of time; ties as in the file."""
    rows = _ratings(path).filter(pl.len().over("item_id") >= MIN_RATINGS)
    rows = rows.sort("user_id", "timestamp", maintain_order=True)
    return rows.with_columns(position=pl.int_range(pl.len()).over("user_id"))


def movielens_positives(path: Path) -> pl.DataFrame:
    """Return the ratings of 4 and 5 in order of time."""
    rows = _ratings(path).filter(pl.col("rating") >= POSITIVE)
    return rows.sort("timestamp", maintain_order=True)


def beauty(path: Path) -> pl.DataFrame:
    """Return the lines "user item" of BERT4Rec, which are in order of time."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line]
    rows = pl.DataFrame(
        [tuple(map(int, line)) for line in lines], ["user_id", "item_id"], orient="row"
    )
    return rows.with_columns(position=pl.int_range(pl.len()).over("user_id"))


def sessions(path: Path) -> pl.DataFrame:
    """Return the sessions of COTREC, the last ones as validation and test.

    Raises:
        SystemExit: the file is not a pickle of lists of numbers.
    """
    with path.open("rb") as file:
        try:
            of_file = _NumbersOnly(file).load()
        except pickle.UnpicklingError as error:
            raise SystemExit(f"{path}: {error}; name the file all_train_seq.txt") from None
    ends = [int(share * len(of_file)) for share in SHARES]
    rows = []
    for number, items in enumerate(of_file):
        role = ("train", "validation", "test")[sum(number >= end for end in ends)]
        before = "train" if role == "train" else "history"
        roles = [before] * (len(items) - 1) + [role]
        rows += [(number, item, n, roles[n]) for n, item in enumerate(items)]
    return pl.DataFrame(rows, ["session_id", "item_id", "position", "split"], orient="row")


SOURCES: Final[Mapping[str, SourceFile]] = {
    "ml-1m": SourceFile("ratings.dat", movielens),
    "ml-1m-positives": SourceFile(
        "ratings.dat", movielens_positives, order=("timestamp", "item_id")
    ),
    "amazon-beauty": SourceFile("beauty.txt", beauty),
    "retailrocket": SourceFile("all_train_seq.txt", sessions, user="session_id"),
}
"""Public dataset of the study -> its source."""
PLAIN: Final = {
    "ml-1m": "MovieLens-1M, all ratings",
    "ml-1m-positives": "MovieLens-1M, ratings of 4 and 5",
    "amazon-beauty": "Amazon Beauty",
    "retailrocket": "RetailRocket sessions",
    "synthetic-1k": "synthetic, confident users",
    "synthetic-80k": "synthetic, topics",
}
"""Dataset -> its content in words."""


def write_file(name: str, source: Path, out: Path) -> Path:
    """Write the file of a dataset as the study reads it; return its path."""
    path = out / name / "interactions.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    SOURCES[name].read(source).write_parquet(path)
    return path


def checksums(name: str, path: Path) -> dict[str, str]:
    """Return checksums of the pairs of user and item, and of the interactions with their order.

    Rows without an order, which the study drops, are left out. The ids of users and items count,
    the types of the columns do not.
    """
    source = SOURCES[name]
    table = pl.read_parquet(path).drop_nulls(source.order[0])
    ordered = [source.user, *source.order]
    if "item_id" not in ordered:
        ordered.append("item_id")
    if "split" in table.columns:
        ordered.append("split")
    columns = {"pairs": [source.user, "item_id"], "order": ordered}
    return {key: _checksum(table.select(names).sort(names)) for key, names in columns.items()}


def catalog_facts(study: Study, folder: Path, name: str) -> dict[str, Any]:
    """Return sizes of a dataset of a study, as its recipe prepares it.

    Args:
        study: the study file.
        folder: for the prepared dataset.
        name: of the dataset.
    """
    grid = Grid(study)
    setting = next(one for one in grid.seeds if one.dataset == name)
    batches = grid.config(setting.cell("main", study.learning_rates(name)[0], 0)).batches
    dataset = Datasets(study, folder, threading.Event()).open(name, setting.split)
    targets = target_counts(dataset, batches)
    return {
        "split": setting.split,
        "rows": len(dataset.item_ids),
        "users": dataset.num_users,
        "items": dataset.num_items,
        "softmax_items": int(np.count_nonzero(targets)),
        "steps_per_epoch": Loader(dataset, batches, seed=0).num_batches,
    }


def tied_last_ratings(path: Path) -> dict[str, int]:
    """Return the users of ml-1m with known times of their last two ratings, and with equal ones."""
    rows = pl.read_parquet(path).drop_nulls("position").sort("user_id", "position")
    last = rows.group_by("user_id").agg(pl.col("timestamp").tail(2))
    known = last.filter(pl.col("timestamp").list.drop_nulls().list.len() == 2)
    tied = known.filter(pl.col("timestamp").list.n_unique() == 1)
    return {"users": len(known), "tied": len(tied)}


def catalog_table(facts: Mapping[str, Mapping[str, Any]], steps: int) -> str:
    """Return the catalogs of the study with their sizes and the epochs of a training."""
    lines = [
        "| catalog | content | split | rows | users or sessions | items | items of the softmax | "
        "epochs of a training |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, one in facts.items():
        sizes = [f"{one[key]:,}" for key in ("rows", "users", "items", "softmax_items")]
        epochs = f"{steps / one['steps_per_epoch']:.1f}"
        cells = [f"`{name}`", PLAIN[name], one["split"], *sizes, epochs]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(folder: Path, results: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each file that is missing or not the one that the study read."""
    found = []
    for name in SOURCES:
        path = folder / name / "interactions.parquet"
        if not path.exists():
            found.append(f"{path} does not exist; write it with: study_data.py file {name}")
            continue
        before, now = results["datasets"][name]["checksums"], checksums(name, path)
        if now["pairs"] != before["pairs"]:
            found.append(f"{path}: other interactions than those of the study")
        elif now["order"] != before["order"]:
            found.append(f"{path}: the interactions of the study in another order")
    return found


def _ratings(path: Path) -> pl.DataFrame:
    """Return the file ratings.dat of MovieLens-1M."""
    lines = path.read_text(encoding="latin-1").splitlines()
    rows = [tuple(map(int, line.split("::"))) for line in lines if line]
    return pl.DataFrame(rows, ["user_id", "item_id", "rating", "timestamp"], orient="row")


class _NumbersOnly(pickle.Unpickler):
    """Reads lists of numbers, and refuses everything that could run code."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"the file has {module_name}.{global_name}, not numbers alone")


def _checksum(table: pl.DataFrame) -> str:
    return hashlib.sha256(table.write_csv().encode()).hexdigest()[:16]


def _measure(folder: Path) -> None:
    """Write the results and the table of the page."""
    study = read_study(STUDY)
    results: dict[str, Any] = {
        "command": "CANDID_DATA=FOLDER python benchmarks/study_data.py facts",
        "datasets": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        for name in study.datasets:
            results["datasets"][name] = catalog_facts(study, Path(temporary), name)
            if name in SOURCES:
                file = folder / name / "interactions.parquet"
                results["datasets"][name]["checksums"] = checksums(name, file)
    results["last_two_ratings"] = tied_last_ratings(folder / "ml-1m" / "interactions.parquet")
    results["steps"] = study.config.recipe["training"]["max_steps"]
    write_json(RESULTS, results)
    table = catalog_table(results["datasets"], results["steps"])
    PAGE.write_text(with_block(PAGE.read_text(), BLOCK, table + "\n"))


def main() -> None:
    """Write a file, compare files with those of the study, or measure the catalogs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    file = verbs.add_parser("file", help="write the file of a dataset")
    file.add_argument("name", choices=SOURCES)
    file.add_argument("source", type=Path, help="file of the publisher")
    file.add_argument("--out", type=Path, required=True, help="folder of the datasets")
    verbs.add_parser("compare", help="compare the files in CANDID_DATA with those of the study")
    verbs.add_parser("facts", help="write the results and the table of the page")
    arguments = parser.parse_args()
    if arguments.verb == "file":
        print(write_file(arguments.name, arguments.source, arguments.out))
        return
    if "CANDID_DATA" not in os.environ:
        raise SystemExit("CANDID_DATA is not set; set it to the folder of the datasets")
    folder = Path(os.environ["CANDID_DATA"])
    if arguments.verb == "facts":
        _measure(folder)
        return
    found = differences(folder, json.loads(RESULTS.read_text()))
    print("\n".join(found) or "all files are those of the study")
    if found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
