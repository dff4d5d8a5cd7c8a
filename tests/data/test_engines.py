"""The two engines of a preparation: the same dataset, byte by byte, or the same message."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from candid.data import DataConfig, EventTypeConfig, SplitConfig, prepare_folder
from candid.errors import CandidError

pytest.importorskip("duckdb", reason="needs the extra bigdata")
pytest.importorskip("pyarrow", reason="needs the extra bigdata")

TEXT_IDS = ["007", "7", "é", "e", "z\0", "Z", "user 1", "\U0001f600"]
IDS = {
    "integers": [-5, 0, 1, 2, 3, 10, 2**40],
    "text": TEXT_IDS,
    "unsigned": [2**63 + 5, 3, 2**64 - 1, 0],
    "digits": ["1", "10", "2", "9", "-4"],
}
EVENT_TYPES = {
    "buy": EventTypeConfig(weight=2.0),
    "view": EventTypeConfig(use="history"),
    "shown": EventTypeConfig(use="negative"),
    "noise": EventTypeConfig(use="drop"),
}
SPLITS = [
    {"kind": "leave-one-out"},
    {"kind": "leave-one-out", "validation_users": 2, "seed": 3},
    {"kind": "leave-k-out", "k": 2},
    {"kind": "ratio", "test_ratio": 0.3},
    {"kind": "temporal", "validation": 0.4, "test": 0.7},
    {"kind": "temporal", "validation": 0.3, "test": 0.5, "unseen": "drop"},
    {"kind": "temporal", "validation": 0.3, "test": 0.5, "unseen": "error"},
    {"kind": "rolling", "window": "1d", "folds": 2, "fold": 0},
    {"kind": "cross-validation", "folds": 3, "fold": 1, "seed": 4},
    {"kind": "cross-validation", "folds": 3, "unit": "interaction"},
    {"kind": "column", "column": "part"},
    {"kind": "column", "column": "part", "drop_unassigned": True},
    {"kind": "none"},
]


def random_log(seed):
    """Return a table of interactions and the settings of its preparation."""
    rng = np.random.default_rng(seed)
    num_rows = int(rng.choice([1, 12, 60, 150, 300]))

    def one_of(*values):
        return values[rng.integers(len(values))]

    def column(values, nulls=0.0):
        chosen = [values[i] for i in rng.integers(len(values), size=num_rows)]
        return [None if rng.random() < nulls else value for value in chosen]

    few_nulls = one_of(0, 0, 0.02)
    users, items = (IDS[one_of(*IDS)] for _ in range(2))
    times = (10**9 + rng.integers(0, 8, size=9) * 60_000).tolist()
    frame = pl.DataFrame(
        {
            "user_id": column(users, few_nulls),
            "item_id": column(items),
            "t": column(times, few_nulls),
            "o": pl.Series(column([-0.0, 0.0, 1.5, -7.0, float("nan")], 0.1), dtype=pl.Float64),
            "w": column([0.0, 0.5, 1.0, 3.0]),
            "type": column([*EVENT_TYPES, "buy", "view"]),
            "part": column(["train", "train", "history", "valid", "test"], few_nulls),
            "stars": column([1, 2, 3, 4, 5]),
            "shown": pl.Series(
                [column(items)[: rng.integers(4)] for _ in range(num_rows)],
                dtype=pl.List(pl.Series(items).dtype),
            ),
        }
    )
    split = one_of(*SPLITS)
    chosen = {
        "time": one_of("t", "t", None) if split["kind"] in ("column", "none") else "t",
        "order": one_of("o", None, None, "sorted"),
        "weight": one_of("w", None),
        "negatives": one_of("shown", None, None),
        "deduplicate": one_of("none", "none", "first", "last"),
        "k_core": one_of(0, 0, 2, 3),
        "min_history": one_of(0, 0, 3),
        "drop_nulls": one_of(True, True, False),
        "split": SplitConfig(**split),
    }
    if one_of(True, False):
        chosen |= {"rating": "stars", "min_rating": 2}
    if one_of(True, False):
        chosen |= {"event_type": "type", "event_types": one_of(EVENT_TYPES, None)}
    if chosen["order"] == "sorted" and one_of(True, True, False):
        keys = [pl.col("user_id"), *([pl.col("t")] if chosen["time"] else [])]
        if users == IDS["digits"]:
            keys[0] = keys[0].cast(pl.Int64)
        frame = frame.sort(keys, maintain_order=True)
    return frame, chosen


def outcome(config, out, engine, **settings):
    """Return the files of a dataset, or the error."""
    try:
        prepare_folder(config, out, engine=engine, force=True, **settings)
    except CandidError as error:
        assert not out.exists()
        return type(error), str(error)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def both_engines(config, folder, **settings):
    """Return the common outcome of both engines."""
    outcomes = [
        outcome(config, folder / engine, engine, **settings) for engine in ("memory", "duckdb")
    ]
    memory, duckdb = outcomes
    if isinstance(memory, dict) and isinstance(duckdb, dict):
        assert json.loads(memory["manifest.json"]) == json.loads(duckdb["manifest.json"])
    assert memory == duckdb
    # Nothing temporary stays.
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    for engine in ("memory", "duckdb"):
        shutil.rmtree(folder / engine, ignore_errors=True)
    return memory


@pytest.fixture
def small_parts(monkeypatch):
    """A few rows in each part, so that small tables have many parts; no wait for the disk."""
    monkeypatch.setattr("candid.data.parts.PART_ROWS", 4)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.parametrize("seed", range(60))
def test_engines_write_the_same_files(small_parts, tmp_path, seed):
    frame, chosen = random_log(seed)
    # Two files: ties keep the order of the files and of their rows.
    cut = frame.height // 3
    frame[:cut].write_parquet(tmp_path / "a.parquet")
    frame[cut:].write_parquet(tmp_path / "b.parquet")
    both_engines(DataConfig(interactions=str(tmp_path / "*.parquet"), **chosen), tmp_path)


def test_folders_named_like_partitions_above_the_dataset_change_nothing(small_parts, tmp_path):
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(9, size=60) for name in ("user_id", "item_id", "t")}
    pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet")
    config = DataConfig(interactions=str(tmp_path / "log.parquet"), time="t", k_core=2)
    folder = tmp_path / "user=3" / "item=4" / "time=7" / "role=2"
    folder.mkdir(parents=True)
    expected = both_engines(config, tmp_path)
    assert isinstance(expected, dict)
    assert both_engines(config, folder) == expected
    ordered = DataConfig(interactions=str(tmp_path / "sorted.parquet"), time="t", order="sorted")
    pl.DataFrame(columns).sort("user_id", "t").write_parquet(tmp_path / "sorted.parquet")
    assert isinstance(both_engines(ordered, folder), dict)
