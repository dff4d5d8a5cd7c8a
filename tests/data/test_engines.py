"""The two engines of a preparation: the same dataset, byte by byte, or the same message."""

import json
import re
import shutil
import signal

import numpy as np
import polars as pl
import pytest

from candid.data import (
    DataConfig,
    EventTypeConfig,
    Role,
    SplitConfig,
    dataset_files,
    duckdb_engine,
    prepare,
    prepare_folder,
)
from candid.data.inputs import Inputs
from candid.errors import ArtifactError, CandidError, ConfigError, DataError

duckdb = pytest.importorskip("duckdb", reason="needs the extra bigdata")
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
    {"kind": "temporal", "validation": 0.3, "test": 0.6, "unit": "user"},
    {"kind": "temporal", "validation": 0.4, "test": 0.6, "unit": "user", "unseen": "drop"},
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


def log_of(folder, num_rows=40):
    """Write a log of integers, as csv, and return the keys of a config."""
    rng = np.random.default_rng(5)
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, 6, num_rows),
            "item_id": rng.integers(100, 107, num_rows),
            "t": rng.integers(10**9, 10**9 + 30, num_rows),
        }
    )
    frame.write_csv(folder / "log.csv")
    return frame, {"interactions": str(folder / "log.csv"), "time": "t"}


@pytest.mark.parametrize(
    "split",
    [
        {"kind": "temporal", "validation": 0.4, "test": 0.7, "unit": "user"},
        {"kind": "temporal", "validation": 0.4, "test": 0.7, "unit": "user", "unseen": "drop"},
        {"kind": "rolling", "window": "1h", "folds": 2, "fold": 0, "unit": "user"},
    ],
)
def test_engines_hold_out_the_same_sessions(small_parts, tmp_path, split):
    """Sessions of 1 to 9 interactions; many are longer than a part of 4 rows."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 10, 60)
    users = np.repeat(np.arange(60), lengths)
    times = 10**9 + users * 600 + rng.integers(0, 900, len(users))
    items = rng.integers(0, 7, len(users))
    frame = pl.DataFrame({"user_id": users, "item_id": items, "t": times}).sample(
        fraction=1, shuffle=True, seed=1
    )
    frame.write_parquet(tmp_path / "log.parquet")
    config = DataConfig(interactions=str(tmp_path / "log.parquet"), time="t", split=split)
    files = both_engines(config, tmp_path)
    manifest = json.loads(files["manifest.json"])
    assert manifest["split"]["unit"] == "user"
    assert min(manifest["counts"][role] for role in ("train", "validation", "test")) > 0


def test_engines_keep_the_ids_of_an_earlier_dataset(small_parts, tmp_path):
    frame, config = log_of(tmp_path)
    # Larger ids first: users 5 and 4 get ids 0 and 1, so that the rows have to be grouped again.
    earlier = tmp_path / "earlier"
    frame.filter(pl.col("user_id") > 3).write_csv(tmp_path / "first.csv")
    first = {**config, "interactions": str(tmp_path / "first.csv"), "split": {"kind": "none"}}
    prepare_folder(DataConfig(**first), earlier)
    files = both_engines(DataConfig(**config, ids_from=str(earlier), k_core=2), tmp_path)
    manifest = json.loads(files["manifest.json"])
    assert manifest["ids_from"]["users"] == {"kept": 2, "new": 4, "retired": 0}
    column = {"split": {"kind": "cross-validation", "unit": "interaction", "folds": 3}}
    both_engines(DataConfig(**config, ids_from=str(earlier), **column), tmp_path)


def test_engines_join_the_tables_of_items_and_users(small_parts, tmp_path):
    _, config = log_of(tmp_path)
    pl.DataFrame({"item_id": [100, 101, 999], "title": ["a", "b", "c"]}).write_csv(
        tmp_path / "items.csv"
    )
    pl.DataFrame({"user_id": [1, 5], "age": [30, None]}).write_parquet(tmp_path / "users.parquet")
    tables = {
        "items": {"path": str(tmp_path / "items.csv")},
        "users": {"path": str(tmp_path / "users.parquet"), "attributes": ["age"]},
    }
    manifest = json.loads(both_engines(DataConfig(**config, **tables), tmp_path)["manifest.json"])
    assert manifest["items_without_interactions"] == 1


def test_engines_read_lists(small_parts, tmp_path):
    pl.DataFrame(
        {"user_id": ["b", "a", "c"], "item_id": [[3, 1, 2], [2, 3, 3, 1], []], "t": [7, 5, 6]}
    ).write_parquet(tmp_path / "log.parquet")
    config = {"interactions": str(tmp_path / "log.parquet"), "explode": ["item_id"]}
    files = both_engines(DataConfig(**config, order="sorted", split={"kind": "none"}), tmp_path)
    assert "of user 'a' follows one of user 'b'" in files[1]
    files = both_engines(DataConfig(**config, time="t"), tmp_path)
    assert json.loads(files["manifest.json"])["dropped"] == {"empty_lists": 1}


def test_sorted_input_gives_the_dataset_of_a_sort(small_parts, tmp_path):
    frame, config = log_of(tmp_path)
    # Of a csv file and text: the order is that of the ids, 2 before 10.
    ids = pl.concat_str(pl.lit("1"), "user_id").replace({"13": "2"})
    frame = frame.with_columns(user_id=ids)
    frame.sort(pl.col("user_id").cast(pl.Int64), "t", maintain_order=True).write_csv(
        tmp_path / "log.csv"
    )
    kinds = [{"kind": "leave-one-out"}, {"kind": "temporal"}]
    for split in kinds:
        files = both_engines(DataConfig(**config, order="sorted", split=split), tmp_path)
        manifest = json.loads(files["manifest.json"])
        unsorted = both_engines(DataConfig(**config, split=split), tmp_path)
        assert manifest["fingerprint"] == json.loads(unsorted["manifest.json"])["fingerprint"]


def test_order_of_sorted_rows_needs_no_time(small_parts, tmp_path):
    rows = [(1, 10), (1, 11), (1, 12), (2, 10), (2, 12), (2, 11)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    frame.write_parquet(tmp_path / "log.parquet")
    config = DataConfig(interactions=str(tmp_path / "log.parquet"), order="sorted")
    both_engines(config, tmp_path)
    dataset = prepare_folder(config, tmp_path / "out", engine="duckdb").dataset
    assert dataset.items["source_id"].to_numpy()[dataset.item_ids].tolist() == [
        item for _, item in rows
    ]
    assert dataset.roles.tolist() == [Role.TRAIN, Role.VALIDATION, Role.TEST] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(1, 5), (2, 5), (1, 6)],
            r'not sorted by user, as order = "sorted" states: a row of user 1 follows one of user '
            r"2; sort the rows by 'user_id' and 't', or remove",
        ),
        (
            [(1, 5), (2, 7), (2, 6)],
            r'not sorted by time, as order = "sorted" states: user 2 has a row that is earlier '
            r"than the row before it; sort",
        ),
        ([(1, 5), (2, 7), (2, None)], r"not sorted by time"),
    ],
)
def test_rows_that_are_not_sorted_are_refused(small_parts, tmp_path, rows, message):
    # The row at fault is the first one of a part.
    before = [(0, time) for time in range(10)]
    frame = pl.DataFrame([*before, *rows], schema=["user_id", "t"], orient="row")
    frame.with_columns(item_id=pl.col("user_id")).write_parquet(tmp_path / "log.parquet")
    config = DataConfig(
        interactions=str(tmp_path / "log.parquet"), time="t", order="sorted", min_history=2
    )
    error, text = both_engines(config, tmp_path)
    assert error is DataError
    assert re.search(message, text)


def test_sorted_is_ambiguous_beside_a_column_of_this_name(tmp_path):
    pl.DataFrame({"user_id": [1], "item_id": [2], "sorted": [3]}).write_csv(tmp_path / "log.csv")
    config = DataConfig(interactions=str(tmp_path / "log.csv"), order="sorted")
    with pytest.raises(ConfigError, match=r"log.csv are sorted, but .* a column 'sorted'; rename"):
        prepare_folder(config, tmp_path / "out")


def test_sort_prints_no_progress(small_parts, tmp_path, monkeypatch):
    settings, batches = [], duckdb_engine._batches

    def record(connection, *arguments):
        query = "SELECT current_setting('enable_progress_bar')"
        settings.extend(connection.execute(query).fetchall())
        return batches(connection, *arguments)

    monkeypatch.setattr(duckdb_engine, "_batches", record)
    prepare_folder(DataConfig(**log_of(tmp_path)[1]), tmp_path / "out", engine="duckdb")
    assert set(settings) == {(False,)}


def test_interrupt_stops_a_long_query():
    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    query = "SELECT count(*) AS n FROM range(10000000000000) AS t(i) WHERE hash(i) = 7"
    try:
        with duckdb.connect() as connection:
            connection.execute("SET enable_progress_bar = false")
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                list(duckdb_engine._batches(connection, query, {"n": pl.Int64()}))
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("ids", ["text", "a narrow range", "a wide range"])
@pytest.mark.parametrize("kind", ["user", "item"])
def test_more_ids_than_a_dataset_holds_are_refused_when_they_are_numbered(
    small_parts, tmp_path, monkeypatch, kind, ids
):
    change = {
        "text": lambda column: pl.format("id {}", column),
        "a narrow range": lambda column: column,
        "a wide range": lambda column: column * 2**40,
    }[ids]
    frame = pl.DataFrame({"user_id": [3, 1, 2, 1, 3], "item_id": [5, 5, 5, 6, 5]})
    if kind == "item":
        frame = frame.select(user_id="item_id", item_id="user_id")
    frame.with_columns(change(pl.col(f"{kind}_id"))).write_parquet(tmp_path / "log.parquet")
    config = DataConfig(interactions=str(tmp_path / "log.parquet"), split={"kind": "none"})
    monkeypatch.setattr(dataset_files, "MAX_IDS", 3)
    assert isinstance(both_engines(config, tmp_path), dict)
    monkeypatch.setattr(dataset_files, "MAX_IDS", 2)
    # Not when the dataset is written: the ids would be wrong by then.
    error, message = both_engines(config, tmp_path)
    assert error is DataError
    assert re.fullmatch(
        rf"there are 3 {kind}s in .*log.parquet, but a dataset holds at most 2; leave some out, or "
        "map several to one id",
        message,
    )


def test_more_ids_than_a_dataset_holds_beside_earlier_ones_are_refused(
    small_parts, tmp_path, monkeypatch
):
    for name, users in (("first", [1, 2]), ("second", [2, 3])):
        frame = pl.DataFrame({"user_id": users, "item_id": [5, 6]})
        frame.write_parquet(tmp_path / f"{name}.parquet")
    first = DataConfig(interactions=str(tmp_path / "first.parquet"), split={"kind": "none"})
    prepare_folder(first, tmp_path / "earlier")
    second = first.model_copy(
        update={
            "interactions": str(tmp_path / "second.parquet"),
            "ids_from": str(tmp_path / "earlier"),
        }
    )
    monkeypatch.setattr(dataset_files, "MAX_IDS", 2)
    error, message = both_engines(second, tmp_path)
    assert error is DataError
    assert re.match(r"there are 3 users in the data and .*earlier \(ids_from\), but", message)


def test_limit_that_is_too_small_for_the_ids_is_refused(small_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(duckdb_engine, "BYTES_PER_ID", 2**28)
    _, config = log_of(tmp_path)
    with pytest.raises(CandidError, match=r"the 6 users of .*log.csv need about 2.\d+ GiB of .*;"):
        prepare_folder(DataConfig(**config), tmp_path / "out", engine="duckdb", memory_limit="1GiB")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv"]


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            "Out of Memory Error: could not allocate block of size 256.0 KiB",
            CandidError,
            r"limit of memory of 1 GiB is too small to sort .*log.csv; set memory_limit",
        ),
        (
            "Out of Memory Error: failed to offload data block; max_temp_directory_size was 1 GiB",
            ArtifactError,
            r"cannot write .*out: no space left .*; free some space",
        ),
        (
            'IO Error: Could not write file "x": No space left on device',
            ArtifactError,
            r"cannot write .*out: no space left",
        ),
    ],
)
def test_faults_of_the_sort_are_one_sentence(
    small_parts, tmp_path, monkeypatch, fault, error, message
):
    def fail(*arguments):
        raise duckdb.Error(fault)

    monkeypatch.setattr(duckdb_engine, "_batches", fail)
    _, config = log_of(tmp_path)
    with pytest.raises(error, match=message):
        prepare_folder(DataConfig(**config), tmp_path / "out", engine="duckdb", memory_limit="1GiB")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv"]


def test_the_first_fault_of_sorted_input_is_reported_for_rows_in_any_parts(small_parts, tmp_path):
    # The rows of user 1 are not in order of time; after the first parts, users descend.
    users = [1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 1]
    pl.DataFrame(
        {"user_id": users, "item_id": [1, 2] * 5 + [1], "t": [1, 3, 2, *range(3, 11)]}
    ).write_parquet(tmp_path / "log.parquet")
    config = DataConfig(interactions=str(tmp_path / "log.parquet"), time="t", order="sorted")
    error, message = both_engines(config, tmp_path)
    assert error is DataError
    assert 'is not sorted by time, as order = "sorted" states: user 1 has a row' in message


def test_engine_that_cannot_work_is_refused_before_files_are_read(monkeypatch, tmp_path):
    monkeypatch.setattr(Inputs, "open", lambda self: pytest.fail("the files were read"))
    table = pl.DataFrame({"user_id": [1], "item_id": [1], "t": [1]})
    with pytest.raises(ConfigError, match="writes a dataset to disk; set out to a folder"):
        prepare(table, time="t", engine="duckdb")
    monkeypatch.setattr("candid.data.engine.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs duckdb and pyarrow; run pip install '.*bigdata"):
        prepare(table, time="t", engine="duckdb", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
