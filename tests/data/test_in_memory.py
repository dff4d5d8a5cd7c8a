"""Datasets from tables in memory: the same as from files, and one sentence for each fault."""

import datetime
import uuid
from dataclasses import fields

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import candid
from candid.data import open_dataset, prepare_folder
from candid.data.in_memory import TableReader, is_table
from candid.errors import ArtifactError, CandidError, ConfigError, DataError

pd = pytest.importorskip("pandas", reason="tables of pandas are tested: install the extra dev")
pa = pytest.importorskip("pyarrow", reason="tables of Arrow are tested: install the extra dev")

NUM_USERS, NUM_ITEMS = 12, 9
INTERVAL = pa.month_day_nano_interval()
EMPTY_MEMBER = pa.struct({"a": pa.struct([]), "b": pa.int8()})
UNREADABLE = {
    "interval": lambda n: pa.array([(0, 0, 1)] * n, INTERVAL),
    "union": lambda n: pa.UnionArray.from_sparse(pa.array([0] * n, pa.int8()), [pa.array([1] * n)]),
    "decimal256": lambda n: pa.array([1] * n, pa.decimal256(50, 2)),
    "list": lambda n: pa.array([[(0, 0, 1)]] * n, pa.list_(INTERVAL)),
    "run ends": lambda n: pa.RunEndEncodedArray.from_arrays([n], [5]),
    "extension": lambda n: pa.array([1] * n, pa.bool8()),
    "list view": lambda n: pa.array([[1]] * n, pa.list_view(pa.int64())),
    "empty struct": lambda n: pa.array([{}] * n, pa.struct([])),
    "empty member": lambda n: pa.array([{"a": {}, "b": 1}] * n, EMPTY_MEMBER),
    "struct": lambda n: pa.array([{"a": (0, 0, 1)}] * n, pa.struct({"a": INTERVAL})),
}
"""Columns of Arrow that Polars does not have, or cannot store."""


def log(ids="integers"):
    """Five interactions of each user, in random order of rows."""
    rng = np.random.default_rng(7)
    users = np.repeat(np.arange(NUM_USERS) * 3 + 10, 5)
    items = rng.integers(0, NUM_ITEMS, len(users)) * 7 + 5
    table = pl.DataFrame({"user_id": users, "item_id": items, "t": rng.permutation(len(users))})
    table = table.with_columns(t=pl.col("t") + 1_700_000_000)
    if ids != "integers":
        table = table.with_columns(
            user_id="u" + pl.col("user_id").cast(pl.String).str.zfill(3),
            item_id="i" + pl.col("item_id").cast(pl.String).str.zfill(3),
        )
    if ids == "categorical":
        table = table.with_columns(pl.col("user_id", "item_id").cast(pl.Categorical))
    return table


def films():
    return pl.DataFrame(
        {
            "item_id": np.arange(NUM_ITEMS + 3) * 7 + 5,
            "title": [None, *(f"Film {n}" for n in range(NUM_ITEMS + 2))],
            "genres": [["drama", "war"], ["comedy"], []] * (NUM_ITEMS // 3 + 1),
            "year": [1990 + n for n in range(NUM_ITEMS + 2)] + [None],
        }
    )


def people():
    return pl.DataFrame({"user_id": np.arange(NUM_USERS) * 3 + 10, "age": range(NUM_USERS)})


class OnlyArrow:
    """A table of another library: the Arrow interface and nothing else."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


def plain_pandas(table):
    """A pandas data frame of numpy columns, as without pyarrow."""
    return pd.DataFrame({name: table[name].to_list() for name in table.columns}).astype(
        {name: object for name, dtype in table.schema.items() if dtype == pl.String}
    )


FORMS = {
    "polars": lambda table: table,
    "lazy": lambda table: table.lazy(),
    "pandas": lambda table: table.to_pandas(),
    "pandas of objects": plain_pandas,
    "pandas of Arrow types": lambda table: table.to_pandas(use_pyarrow_extension_array=True),
    "arrow table": lambda table: table.to_arrow(),
    "arrow batches": lambda table: pa.RecordBatchReader.from_batches(
        table.to_arrow().schema, table.to_arrow().to_batches(max_chunksize=7)
    ),
    "arrow interface": OnlyArrow,
}


def expected_content(table):
    """Users, histories and roles of a leave-one-out split, by a loop over the rows."""
    histories = {}
    for user, item, _ in sorted(table.cast({"t": pl.Int64}).rows(), key=lambda row: row[2]):
        histories.setdefault(str(user), []).append(str(item))
    users = sorted(histories, key=lambda user: (len(user), user))
    return {user: list(zip(histories[user], [0, 0, 0, 2, 3], strict=True)) for user in users}


def content(dataset):
    items, users = dataset.items["source_id"].cast(str), dataset.users["source_id"].cast(str)
    return {
        user: [
            (items[int(dataset.item_ids[event])], int(dataset.roles[event]))
            for event in range(dataset.user_offsets[row], dataset.user_offsets[row + 1])
        ]
        for row, user in enumerate(users)
    }


@pytest.mark.parametrize("ids", ["integers", "texts", "categorical"])
@pytest.mark.parametrize("form", FORMS)
def test_table_gives_the_dataset_of_the_file(form, ids, tmp_path):
    table = log(ids)
    table.write_parquet(tmp_path / "log.parquet")
    of_file = candid.prepare(tmp_path / "log.parquet", time="t", out=tmp_path / "data")
    dataset = candid.prepare(FORMS[form](table), time="t")
    assert content(dataset) == expected_content(table.cast({"user_id": str, "item_id": str}))
    assert dataset.fingerprint == of_file.fingerprint
    assert dataset.path is None
    assert of_file.path == tmp_path / "data"
    for one in fields(dataset):
        if one.name not in ("manifest", "path", "checks"):
            in_memory, on_disk = getattr(dataset, one.name), getattr(of_file, one.name)
            if isinstance(in_memory, np.ndarray):
                assert in_memory.dtype == on_disk.dtype
                assert np.array_equal(in_memory, on_disk)
            elif isinstance(in_memory, pl.DataFrame):
                assert_frame_equal(in_memory, on_disk)
            else:
                assert in_memory == on_disk


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_items_and_users_give_the_dataset_of_their_files(form, tmp_path):
    films().write_parquet(tmp_path / "films.parquet")
    people().write_parquet(tmp_path / "people.parquet")
    log().write_parquet(tmp_path / "log.parquet")
    paths = {"items": tmp_path / "films.parquet", "users": str(tmp_path / "people.parquet")}
    of_files = candid.prepare(str(tmp_path / "log.parquet"), time="t", **paths)
    convert = FORMS[form]
    dataset = candid.prepare(
        convert(log()), time="t", items=convert(films()), users=convert(people())
    )
    assert dataset.items.columns == ["source_id", "title", "genres", "year"]
    assert dataset.users.columns == ["source_id", "age"]
    row = dataset.items.row(by_predicate=pl.col("source_id") == 12, named=True)
    assert row["title"] == "Film 0"
    assert list(row["genres"]) == ["comedy"]
    if "objects" not in form:  # numbers of a pandas column with a missing value are floats
        assert_frame_equal(dataset.items, of_files.items, check_dtypes=False)
    assert_frame_equal(dataset.users, of_files.users)


def test_settings_of_the_tables_of_items_and_users():
    items = {"table": films().rename({"item_id": "film"}), "item": "film", "title": "title"}
    dataset = candid.prepare(log(), time="t", items={**items, "attributes": ["year"]})
    assert dataset.items.columns == ["source_id", "title", "year"]
    assert candid.prepare(log(), time="t", items=items).items.columns == ["source_id", "title"]
    bare = candid.prepare(
        log().rename({"item_id": "film", "user_id": "person"}),
        user="person",
        item="film",
        time="t",
        items=films().rename({"item_id": "film"}).drop("title"),
        users={"table": people().rename({"user_id": "person"}), "attributes": ["age"]},
    )
    assert bare.items.columns == ["source_id", "genres", "year"]
    assert bare.users["age"].to_list() == list(range(NUM_USERS))


def test_columns_that_cannot_be_stored_are_left_out_of_a_bare_table():
    table = films().with_columns(poster=pl.lit(b"png"))
    assert "poster" not in candid.prepare(log(), time="t", items=table).items.columns
    with pytest.raises(DataError, match="column 'poster' of the table of items must be numbers"):
        candid.prepare(log(), time="t", items={"table": table, "attributes": ["poster"]})


def test_list_of_paths_is_one_log(tmp_path):
    log()[:20].write_parquet(tmp_path / "a.parquet")
    log()[20:].write_parquet(tmp_path / "b.parquet")
    paths = [tmp_path / "a.parquet", str(tmp_path / "b.parquet")]
    dataset = candid.prepare(paths, time="t")
    assert dataset.fingerprint == candid.prepare(log(), time="t").fingerprint
    assert dataset.manifest["config"]["interactions"] == [str(path) for path in paths]
    config = candid.DataConfig(interactions=paths, time="t")
    assert prepare_folder(config, tmp_path / "out").dataset.fingerprint == dataset.fingerprint
    assert prepare_folder(config, str(tmp_path / "out")).up_to_date
    with pytest.raises(DataError, match=r"a\.parquet and 1 more remains: k_core drops"):
        candid.prepare(paths, time="t", k_core=1000)


@pytest.mark.parametrize(
    "times",
    [
        [datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=n) for n in range(60)],
        [datetime.date(2024, 1, 1) + datetime.timedelta(days=n) for n in range(60)],
        [f"2024-01-{1 + n // 24:02}T{n % 24:02}:00:00" for n in range(60)],
    ],
    ids=["datetimes", "dates", "texts"],
)
@pytest.mark.parametrize("form", ["polars", "pandas", "arrow table"])
def test_times_of_each_type_are_the_same_microseconds(form, times):
    table = log().with_columns(t=pl.Series(times))
    dataset = candid.prepare(FORMS[form](table), time="t")
    first = int(datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp()) * 10**6
    step = 86_400 if isinstance(times[1], datetime.date) and times[1].day == 2 else 3_600
    assert dataset.timestamps.tolist() == [first + n * step * 10**6 for n in range(60)]
    assert dataset.manifest["time"]["first"] == "2024-01-01T00:00:00.000000Z"


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("form", ["table", "batch", "reader"])
def test_columns_of_arrow_that_cannot_be_read_are_left_out(name, form):
    def add(frame):
        table = pa.table(frame).append_column("z", UNREADABLE[name](frame.height))
        batch = table.combine_chunks().to_batches()[0]
        return {"table": table, "batch": batch, "reader": table.to_reader()}[form]

    dataset = candid.prepare(add(log()), time="t", items=add(films()))
    assert dataset.items.columns == ["source_id", "title", "genres", "year"]
    assert content(dataset) == content(candid.prepare(log(), time="t", items=films()))


@pytest.mark.parametrize("column", ["INTERVAL 1 DAY", "union_value(k := 1)", "[INTERVAL 1 DAY]"])
def test_columns_of_duckdb_that_cannot_be_read_are_left_out(column):
    duckdb = pytest.importorskip("duckdb", reason="relations are tested: install the extra dev")
    interactions, items = pa.table(log()), pa.table(films())
    with duckdb.connect() as connection:
        connection.register("log", interactions)
        connection.register("films", items)
        dataset = candid.prepare(
            connection.sql(f'SELECT *, {column} AS "z ""1""" FROM log'),
            time="t",
            items=connection.sql(f"SELECT *, {column} AS z FROM films"),
        )
        named = TableReader(connection.sql('SELECT user_id AS "z ""1""" FROM log'), "the table")
        assert named.source(named.columns).frame.collect().height == 60
    assert content(dataset) == content(candid.prepare(log(), time="t", items=films()))


def test_type_names_in_names_of_members_do_not_count():
    table = pa.table({"a": [{"union": 1, "interval": 2, "list_view": 3, "decimal256": 4}]})
    assert TableReader(table, "the table").storable_columns() == ["a"]


ATTRIBUTES = {
    "datetime64[s]": pd.Series(["2020-01-01", None], dtype="datetime64[s]"),
    "zoned": pd.Series(["2020-01-01", None], dtype="datetime64[s]").dt.tz_localize("Asia/Tokyo"),
    "timedelta64[s]": pd.Series([3, None], dtype="timedelta64[s]"),
    "category": pd.Series(["x", None], dtype="category"),
    "vectors": pd.Series([np.array([1.5, 2], np.float32), None]),
    "numbers": pd.Series([np.array([1, 2], np.int16), np.array([3], np.int16)]),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_of_pandas_have_the_types_of_a_parquet_file(name, tmp_path):
    users = pd.DataFrame({"user_id": [10, 13], "z": ATTRIBUTES[name]})
    users.to_parquet(tmp_path / "users.parquet")
    of_file = candid.prepare(log(), time="t", users=tmp_path / "users.parquet").users
    of_table = candid.prepare(log(), time="t", users=users).users
    assert_frame_equal(of_table, of_file)


def test_columns_of_pandas_that_cannot_be_attributes_are_left_out():
    table = (
        films()
        .to_pandas()
        .assign(
            mixed=[1, "a"] * 6,
            objects=[frozenset()] * 12,
            empty=[{}] * 12,
            key=[uuid.UUID(int=5)] * 12,
        )
    )
    items = candid.prepare(log(), time="t", items=table).items
    assert items.columns == ["source_id", "title", "genres", "year", "key"]
    assert items["key"][0] == "00000000-0000-0000-0000-000000000005"


def test_numbers_as_names_of_columns_of_pandas_are_text():
    table = log().to_pandas()
    table.columns = range(len(table.columns))
    names = [str(position) for position in range(len(table.columns))]
    reader = TableReader(table, "the table")
    assert_frame_equal(
        reader.source(names).frame.collect(), log().rename(lambda n: names[log().columns.index(n)])
    )
    assert list(table.columns) == list(range(len(names)))


def test_zone_without_a_name_is_utc():
    zone = datetime.timezone(datetime.timedelta(hours=2))
    table = pd.DataFrame({"t": pd.date_range("2024-01-01", periods=1, tz=zone)})
    frame = TableReader(table, "the table").source(["t"]).frame.collect()
    assert frame["t"][0] == datetime.datetime(2023, 12, 31, 22, tzinfo=datetime.UTC)


def test_zoned_times_of_pandas_are_utc():
    table = log().to_pandas()
    table["t"] = pd.date_range("2024-01-01", periods=60, freq="h", tz="Europe/Paris")
    dataset = candid.prepare(table, time="t")
    assert dataset.manifest["time"]["first"] == "2023-12-31T23:00:00.000000Z"


def test_column_types_of_pandas_become_those_of_polars():
    table = pd.DataFrame(
        {
            "text": ["a", "b", None],
            "object": pd.Series(["a", None, "b"], dtype=object),
            "float": [1.0, np.nan, 2.0],
            "nullable": pd.array([1, None, 2], dtype="Int32"),
            "flag": pd.array([True, None, False], dtype="boolean"),
            "category": pd.Categorical(["x", None, "y"]),
            "number category": pd.Categorical([5, None, 6]),
            "arrow": pd.Series([1, None, 3], dtype="int64[pyarrow]"),
            "list": [[1, 2], None, [3]],
        }
    )
    before = table.copy(deep=True)
    frame = TableReader(table, "the table").source(table.columns).frame.collect()
    assert frame.to_dict(as_series=False) == {
        "text": ["a", "b", None],
        "object": ["a", None, "b"],
        "float": [1.0, pytest.approx(np.nan, nan_ok=True), 2.0],
        "nullable": [1, None, 2],
        "flag": [True, None, False],
        "category": ["x", None, "y"],
        "number category": [5, None, 6],
        "arrow": [1, None, 3],
        "list": [[1, 2], None, [3]],
    }
    pd.testing.assert_frame_equal(table, before)


def test_pandas_without_pyarrow_is_read(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    table = plain_pandas(log("texts"))
    dataset = candid.prepare(table, time="t")
    assert dataset.fingerprint == candid.prepare(log("texts"), time="t").fingerprint


def test_tables_are_not_changed():
    table, arrow = log(), log().to_arrow()
    frame = table.to_pandas()
    copies = table.clone(), frame.copy(deep=True)
    for data in (table, frame, arrow):
        candid.prepare(data, time="t", k_core=2, deduplicate="last")
    assert_frame_equal(table, copies[0])
    pd.testing.assert_frame_equal(frame, copies[1])
    assert arrow.equals(copies[0].to_arrow())


def test_lazy_frame_is_collected_once_with_the_named_columns():
    calls = []

    def observe(values):
        calls.append(values.name)
        return values

    observed = pl.col("user_id").map_batches(observe, return_dtype=pl.Int64)
    unused = pl.col("t").map_batches(observe, return_dtype=pl.Int64).alias("unused")
    candid.prepare(log().lazy().with_columns(observed, unused), time="t", k_core=2)
    assert calls == ["user_id"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": "person"}, "^the table has no column 'person': .*columns: user_id, item_id, t$"),
        ({"k_core": 1000}, "^no interaction of the table remains: k_core drops the last 60"),
        ({"min_history": "x"}, "^prepare: min_history must be a valid integer, got"),
        ({"usr": "user_id"}, "^prepare: unknown config key 'usr': did you mean 'user'"),
        ({"split": "last-out"}, "^prepare: split.kind must be 'leave-one-out'"),
        ({"split": {"kind": "temporal", "tset": 0.5}}, "^prepare: unknown config key 'split.tset'"),
        ({"items": 3}, "^prepare: items must be a table, a path or a mapping .* got int$"),
        ({"items": {"title": "name"}}, "^prepare: items needs one of the keys table and path$"),
        ({"users": {"table": "x"}}, r"^prepare: users\['table'\] must be a table of Polars"),
        ({"items": films().drop("item_id")}, "^the table of items has no column 'item_id'"),
        ({"items": films()[:0]}, "^the table of items has no rows"),
        ({"format": "csv"}, "^prepare: format has no effect on a table in memory"),
        ({"separator": ";"}, "^prepare: separator has no effect on a table in memory"),
        ({"query": "SELECT 1"}, "^prepare: query has no effect on a table in memory"),
        ({"interactions": "a.csv"}, "^prepare: interactions are the first argument"),
    ],
)
def test_wrong_settings_are_one_sentence(change, message):
    with pytest.raises(CandidError, match=message) as caught:
        candid.prepare(log(), **{"time": "t", **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (log()[:0], "^the table has no rows"),
        (pd.DataFrame(), "^the table has no columns; check how it was made$"),
        (
            log().with_columns(user_id=pl.when(pl.col("t") != pl.col("t").max()).then("user_id")),
            "column 'user_id' has 1 empty values, first in row .* of the table",
        ),
        (
            log().to_pandas().assign(user_id=[1, "a"] * 30),
            "^column 'user_id' of the table has values of several types",
        ),
        (log().to_pandas().set_index("user_id"), "index: call reset_index"),
        (
            log().to_pandas().assign(user_id=[frozenset([n]) for n in range(60)]),
            "^column 'user_id' of the table holds Python objects of type frozenset; convert",
        ),
        (
            pa.table(log()).set_column(0, "user_id", pa.array([(0, 0, 1)] * 60, INTERVAL)),
            "^column 'user_id' of the table has the type month_day_nano_interval, which cannot",
        ),
        (log().lazy().with_columns(pl.col("nothing")), "^the table cannot be read: .*nothing"),
        (
            pa.table(log()).append_column("user_id", pa.array([1] * 60)),
            "^the table has several columns 'user_id'; rename or remove all but one",
        ),
    ],
    ids=[
        "no rows",
        "no columns",
        "null",
        "mixed types",
        "index",
        "objects",
        "unreadable type",
        "lazy error",
        "names repeat",
    ],
)
def test_bad_table_is_one_sentence(table, message):
    with pytest.raises(DataError, match=message) as caught:
        candid.prepare(table, time="t")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [3, None, {"user_id": [1]}, [3], pl.Series([1]), pd.Series([1]), np.zeros(3)],
    ids=lambda data: type(data).__name__,
)
def test_data_of_another_kind_is_refused(data):
    assert not is_table(data)
    with pytest.raises(ConfigError, match="prepare takes a table of Polars, pandas or Arrow, a pa"):
        candid.prepare(data, time="t")


def test_config_in_place_of_a_table_names_the_other_function():
    config = candid.DataConfig(interactions="log.csv", time="t")
    with pytest.raises(ConfigError, match=r"use candid\.data\.prepare_folder"):
        candid.prepare(config, time="t")


def test_table_with_out_is_stored_and_replaced(tmp_path):
    first = candid.prepare(log(), time="t", out=tmp_path / "data")
    lines = []
    second = candid.prepare(log()[:40], time="t", out=str(tmp_path / "data"), progress=lines.append)
    assert first.fingerprint != second.fingerprint
    assert second.fingerprint == open_dataset(tmp_path / "data", verify=True).fingerprint
    assert lines[0].endswith(" again: a table in memory is always prepared again")
    assert second.manifest["sources"] == [{"table": "the table"}]


def test_saved_dataset_is_the_prepared_one(tmp_path):
    dataset = candid.prepare(log(), time="t", items=films())
    saved = dataset.save(str(tmp_path / "saved"))
    on_disk = candid.prepare(log(), time="t", items=films(), out=tmp_path / "out")
    assert saved.path == tmp_path / "saved"
    opened = open_dataset(saved.path, verify=True)
    assert opened.manifest == on_disk.manifest == saved.manifest
    assert opened.fingerprint == dataset.fingerprint
    assert dataset.manifest["files"] == {}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match="full exists and is not a prepared dataset"):
        dataset.save(tmp_path / "full")


def test_defaults_are_those_of_the_recipe():
    config = candid.DataConfig(interactions="log.csv", time="t")
    dataset = candid.prepare(log(), time="t")
    expected = config.model_dump(mode="json") | {"interactions": "the table"}
    assert dataset.manifest["config"] == expected


def test_dataset_that_was_not_prepared_has_the_fingerprint_of_its_content():
    dataset = candid.prepare(log(), time="t")
    bare = candid.PreparedDataset(
        **{
            one.name: getattr(dataset, one.name)
            for one in fields(dataset)
            if one.name != "manifest"
        }
    )
    assert bare.manifest == {}
    assert bare.fingerprint == dataset.fingerprint


@pytest.mark.parametrize("form", [pl.DataFrame, pl.LazyFrame, pd.DataFrame, pa.table])
def test_missing_order_names_columns_that_may_be_meant(form):
    columns = {"user_id": [1, 1], "item_id": [1, 2], "created_at": [5, 6], "note": ["a", "b"]}
    with pytest.raises(ConfigError, match="the table has created_at; without either"):
        candid.prepare(form(columns))


@pytest.mark.parametrize("form", [pl.DataFrame, pd.DataFrame, pa.table])
def test_lists_of_a_table_are_exploded(form):
    lists = form({"user_id": ["a", "b"], "items": [[3, 1, 2], [2, 3, 1]], "n": [[1, 3, 2]] * 2})
    dataset = candid.prepare(lists, item="items", order="n", explode=("items", "n"))
    items = dataset.items["source_id"].gather(dataset.item_ids).to_list()
    assert items == [3, 2, 1, 2, 1, 3]
    with pytest.raises(DataError, match=r"--explode items"):
        candid.prepare(lists, item="items", order="n")
