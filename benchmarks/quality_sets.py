"""Datasets of ``quality.py``: their settings, preparation and published figures."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from candid.atomic import replacing
from candid.data import DataConfig, PreparedDataset, Role, prepare_folder

METRIC = "ndcg@10"
METRICS = ("ndcg@10", "recall@10", "ndcg@20", "recall@20")
SEEDS = (0, 1, 2)
DEFAULT, BEST_RECIPE = "default", "best"
"""Names of the two recipes of a set."""
SESSIONS: dict[str, Any] = {
    "user": "session_id",
    "order": "position",
    "split": {"kind": "column", "column": "split"},
}
CUTS = {"validation": "2001-01-01", "test": "2001-05-01"}
"""Days at which validation and test of ml-1m-temporal begin. Nearly all users came in the year
2000, so that most users of both windows have a history."""
SHARE_OF_VALIDATION = 0.1
"""Share of the training rows on which baselines are tuned where a set has no validation rows."""


@dataclass(frozen=True)
class QualitySet:
    """A dataset with its settings.

    Attributes:
        data: section ``data`` of a recipe, without the file.
        minutes: CPU minutes after which a training stops; its best validation is then measured.
        has_order: whether the interactions of a user have an order.
        split: of the interactions, in words.
        folder: of the source; None: the name of the set.
        table: builds the file of interactions from that of the source, and returns what it left
            out; None: the file of the source as it is.
    """

    data: dict[str, Any]
    minutes: float
    has_order: bool = True
    split: str = "leave-one-out"
    folder: str | None = None
    table: Callable[[Path], tuple[pl.DataFrame, dict[str, Any]]] | None = None


@dataclass(frozen=True)
class Published:
    """A published figure of the same data and split.

    Attributes:
        metric: its name, as in a report.
        value: the figure; None: not entered yet.
        model: the published model.
        citation: authors, title, venue, year.
        note: differences of the protocol.
    """

    metric: str
    value: float | None = None
    model: str = ""
    citation: str = ""
    note: str = ""


def timed_ml1m(source: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return ratings of MovieLens-1M with a time each, in the order of the source.

    A row whose time is unknown has that of the row before it, which keeps the order. Rows whose
    bounds lie on two sides of a cut are left out, and so are those without a position.
    """
    rows = pl.read_parquet(source)
    cuts = [
        int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) for day in CUTS.values()
    ]
    lower = pl.col("timestamp_lower").cast(pl.Int64)
    upper = pl.col("timestamp_upper").cast(pl.Int64)
    known = pl.col("timestamp").cast(pl.Int64)

    def window(time: pl.Expr) -> pl.Expr:
        return pl.sum_horizontal((time >= cut).cast(pl.Int8) for cut in cuts)

    rows = rows.with_columns(
        time=pl.coalesce(known, lower, upper),
        straddles=window(lower.fill_null(0)) != window(upper.fill_null(cuts[-1])),
    )
    placed = rows.filter(pl.col("position").is_not_null())
    chosen = placed.filter(~pl.col("straddles")).sort("user_id", "position")
    dropped = {
        "rows without a position": len(rows) - len(placed),
        "rows that may lie on either side of a cut": len(placed) - len(chosen),
    }
    return chosen.select("user_id", "item_id", "time"), dropped


SETS = {
    "ml-100k": QualitySet({"time": "timestamp"}, 15),
    "ml-1m": QualitySet({"order": "position", "drop_nulls": True}, 60),
    "ml-1m-temporal": QualitySet(
        {"time": "time", "split": {"kind": "temporal", **CUTS}},
        60,
        split=f"temporal, test from {CUTS['test']}",
        folder="ml-1m",
        table=timed_ml1m,
    ),
    "amazon-beauty": QualitySet({"order": "position"}, 90),
    "gowalla": QualitySet(
        {"split": {"kind": "column", "column": "split"}}, 90, False, "random 80/20, published"
    ),
    "nowplaying": QualitySet(SESSIONS, 120, split="sessions, new in the test"),
    "diginetica": QualitySet(SESSIONS, 120, split="sessions, new in the test"),
    "retailrocket": QualitySet(SESSIONS, 90, split="sessions, new in the test"),
}
GOLD_LOSS = (
    "Klenitskiy & Vasilev, Turning Dross Into Gold Loss, RecSys 2023, arXiv 2309.07602; table of "
    "github.com/antklen/sasrec-bert4rec-recsys23"
)
BSPM = "Choi et al., Blurring-Sharpening Process Models, SIGIR 2023, arXiv 2211.09324"
NESCL = (
    "Sun et al., Neighborhood-Enhanced Supervised Contrastive Learning, TKDE 2023, arXiv 2402.11523"
)
GR_MC = "Scientific Reports 2025, doi 10.1038/s41598-025-17925-y, table 3"
UNVERIFIED = "whether it has the same split could not be checked"
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "ml-1m": (Published("ndcg@10", 0.1857, "SASRec+ 3000", GOLD_LOSS),),
    "amazon-beauty": (Published("ndcg@10", 0.0327, "SASRec+", GOLD_LOSS),),
    "gowalla": (
        Published("recall@20", 0.1920, "BSPM-EM", BSPM),
        Published("ndcg@20", 0.1617, "NESCL", NESCL),
        Published("recall@20", 0.2081, "GR-MC", GR_MC, UNVERIFIED),
        Published("ndcg@20", 0.1640, "GR-MC", GR_MC, UNVERIFIED),
    ),
}


@dataclass(frozen=True)
class PreparedSet:
    """A prepared set.

    Attributes:
        dataset: opened from disk.
        left_out: number of rows of the source by the reason for which ``table`` left them out.
    """

    dataset: PreparedDataset
    left_out: dict[str, Any] = field(default_factory=dict)


def source_of(name: str, data: Path) -> Path:
    """Return the file of interactions of a set."""
    return data / (SETS[name].folder or name) / "interactions.parquet"


def prepare_set(name: str, data: Path, work: Path) -> PreparedSet:
    """Prepare a set in the work folder, unless that was done.

    Args:
        name: of the set.
        data: folder of the public sets.
        work: folder of everything that the benchmark stores.

    """
    one, source = SETS[name], source_of(name, data)
    left_out: dict[str, Any] = {}
    locks = work / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{name}-data").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if one.table is not None:
            source, left_out = _own_table(name, source, work)
        config = DataConfig(interactions=str(source), **one.data)
        return PreparedSet(prepare_folder(config, work / "data" / name).dataset, left_out)


def _own_table(name: str, source: Path, work: Path) -> tuple[Path, dict[str, Any]]:
    """Build the file of interactions once; return it with the rows that it leaves out."""
    build = SETS[name].table
    assert build is not None
    path = work / "tables" / f"{name}.parquet"
    table, left_out = build(source)
    if not path.exists() or not pl.read_parquet(path).equals(table):
        with replacing(path) as temporary:
            table.write_parquet(temporary)
    return path, left_out


def tuning_dataset(dataset: PreparedDataset) -> PreparedDataset:
    """Return the dataset on which baselines are tuned: it has validation rows.

    A set without validation rows gives a random tenth of its training rows, and its test rows are
    left out. The settings found there are then fitted to all training rows.
    """
    roles = np.asarray(dataset.roles)
    if np.any(roles == Role.VALIDATION):
        return dataset
    chosen = np.flatnonzero(roles != Role.TEST)
    owners = np.repeat(np.arange(dataset.num_users), np.diff(dataset.user_offsets))[chosen]
    is_validation = np.random.default_rng(0).random(len(chosen)) < SHARE_OF_VALIDATION
    inner = np.where(is_validation & (roles[chosen] == Role.TRAIN), Role.VALIDATION, roles[chosen])
    order = np.lexsort((inner, owners))  # a user's validation rows come last
    counts = np.bincount(owners, minlength=dataset.num_users)
    rows = chosen[order]
    return replace(
        dataset,
        item_ids=np.asarray(dataset.item_ids)[rows],
        user_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        roles=inner[order].astype(np.uint8),
        timestamps=None if dataset.timestamps is None else np.asarray(dataset.timestamps)[rows],
        weights=None if dataset.weights is None else np.asarray(dataset.weights)[rows],
    )
