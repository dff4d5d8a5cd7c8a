"""Every format with every type of column: read as the same values, or refused in one sentence."""

import datetime
import decimal
import json

import polars as pl
import pytest

from candid.data import DataConfig, prepare_folder
from candid.errors import DataError

UTC = datetime.UTC
TOKYO = datetime.timezone(datetime.timedelta(hours=9))
TYPES = {
    "int": (pl.Int32, [7, 3]),
    "big int": (pl.UInt64, [2**63 + 5, 3]),
    "text": (pl.String, ["b", "a"]),
    "text of digits": (pl.String, ["007", "03"]),
    "integral float": (pl.Float64, [7.0, 3.0]),
    "fractional float": (pl.Float64, [7.5, 3.0]),
    "integral decimal": (pl.Decimal(12, 2), [decimal.Decimal("7.00"), decimal.Decimal("3.00")]),
    "boolean": (pl.Boolean, [True, False]),
    "date": (pl.Date, [datetime.date(2026, 3, 2), datetime.date(2026, 3, 1)]),
    "datetime": (
        pl.Datetime("us"),
        [datetime.datetime(2026, 3, 2, 1, 2, 3, 500), datetime.datetime(2026, 3, 1)],
    ),
    "zoned datetime": (
        pl.Datetime("us", "Asia/Tokyo"),
        [
            datetime.datetime(2026, 3, 2, 9, tzinfo=TOKYO),
            datetime.datetime(2026, 3, 1, 9, tzinfo=TOKYO),
        ],
    ),
    "list": (pl.List(pl.Int64), [[7, 8], [3]]),
}
"""Two values each, the larger one first."""


def plain(value):
    """A value as JSON and text files have it."""
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    return value


def write_json_lines(frame, folder):
    lines = [
        json.dumps({k: plain(v) for k, v in row.items()}) for row in frame.iter_rows(named=True)
    ]
    (folder / "log.jsonl").write_text("\n".join(lines))
    return folder / "log.jsonl"


def write_text(name, separator, header=str):
    def write(frame, folder):
        rows = [[header(column) for column in frame.columns]]
        rows += [[str(plain(value)) for value in row] for row in frame.iter_rows()]
        (folder / name).write_text("\n".join(separator.join(row) for row in rows))
        return folder / name

    return write


def write_parquet(frame, folder):
    frame.write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def write_arrow(frame, folder):
    frame.write_ipc(folder / "log.arrow")
    return folder / "log.arrow"


def write_arrow_stream(frame, folder):
    frame.write_ipc_stream(folder / "log.arrow")
    return folder / "log.arrow"


def write_delta(frame, folder):
    pytest.importorskip("deltalake", reason="needs the extra lake")
    frame.write_delta(folder / "log")
    return folder / "log"


def write_duckdb(frame, folder):
    duckdb = pytest.importorskip("duckdb", reason="needs the extra database")
    frame.write_parquet(folder / "log.parquet")
    with duckdb.connect(str(folder / "shop.db")) as connection:
        connection.execute(f"CREATE TABLE log AS FROM '{folder}/log.parquet'")
    return f"duckdb:///{folder}/shop.db"


TYPED = {
    "parquet": write_parquet,
    "arrow": write_arrow,
    "arrow stream": write_arrow_stream,
    "delta": write_delta,
    "duckdb": write_duckdb,
}
TEXT = {
    "csv": write_text("log.csv", ";"),
    "tsv": write_text("log.tsv", "\t"),
    "recbole": write_text("log.inter", "\t", "{}:token".format),
    "movielens": write_text("ratings.dat", "::"),
}
WRITERS = {**TYPED, "jsonl": write_json_lines, **TEXT}


def prepared(write, folder, frame, **settings):
    location = str(write(frame, folder))
    if location.startswith("duckdb"):
        settings["query"] = "FROM log"
    config = DataConfig(interactions=location, **settings)
    return prepare_folder(config, folder / "out").dataset


def column(kind, values):
    return pl.Series("value", values, dtype=TYPES[kind][0])


IDS = {
    # type -> ids by kind of format: with types, JSON Lines, text; a text is a part of the refusal
    "int": ([3, 7],) * 3,
    "big int": ([3, 2**63 + 5],) * 3,
    "text": (["a", "b"],) * 3,
    "text of digits": (["007", "03"],) * 3,
    "integral float": ([3, 7],) * 3,
    "fractional float": ("7.5", "7.5", "7.5"),
    "integral decimal": ([3, 7],) * 3,
    "boolean": ("integer or text", "integer or text", ["False", "True"]),
    "date": ("integer or text", ["2026-03-01", "2026-03-02"], ["2026-03-01", "2026-03-02"]),
    "list": ("explode", "explode", None),
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("name", WRITERS)
def test_ids_of_every_type_in_every_format(tmp_path, name, kind):
    expected = IDS[kind][0 if name in TYPED else 1 if name == "jsonl" else 2]
    if expected is None:
        pytest.skip("text files have no lists")
    if (name, kind) == ("delta", "big int"):
        pytest.skip("Delta tables have no unsigned integers")
    first, second = TYPES[kind][1]
    values = column(kind, [first] * 3 + [second] * 3)
    frame = pl.DataFrame({"value": values, "item_id": [1, 2, 3] * 2, "t": range(6)})
    settings = {"user": "value", "order": "t"}
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected) as caught:
            prepared(WRITERS[name], tmp_path, frame, **settings)
        assert "'value'" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        return
    assert (
        prepared(WRITERS[name], tmp_path, frame, **settings).users["source_id"].to_list()
        == expected
    )


SECONDS = 1_000_000
TIMES = {
    # type -> microseconds since 1970; a text is a part of the refusal
    "int": ([1_767_225_600, 1_767_225_700], lambda n: n * SECONDS),
    "integral float": ([1_767_225_600.0, 1_767_225_700.0], lambda n: int(n) * SECONDS),
    "date": (
        [datetime.date(2026, 3, 1), datetime.date(2026, 3, 2)],
        lambda d: int(datetime.datetime(d.year, d.month, d.day, tzinfo=UTC).timestamp()) * SECONDS,
    ),
    "datetime": (
        TYPES["datetime"][1][::-1],
        lambda t: (t - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1),
    ),
    "zoned datetime": (
        TYPES["zoned datetime"][1][::-1],
        lambda t: (
            (t - datetime.datetime(1970, 1, 1, tzinfo=UTC)) // datetime.timedelta(microseconds=1)
        ),
    ),
}


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("name", WRITERS)
def test_times_of_every_type_in_every_format(tmp_path, name, kind):
    values, microseconds = TIMES[kind]
    times = column(kind, [values[n % 2] for n in range(6)])
    frame = pl.DataFrame({"user_id": [1] * 3 + [2] * 3, "item_id": [1, 2, 3] * 2, "value": times})
    dataset = prepared(WRITERS[name], tmp_path, frame, time="value")
    expected = [microseconds(values[n]) for n in (0, 0, 1, 0, 1, 1)]
    assert dataset.timestamps.tolist() == expected


@pytest.mark.parametrize("name", WRITERS)
def test_missing_values_in_every_format_are_named_with_their_row(tmp_path, name):
    frame = pl.DataFrame({"value": ["a", None, "b"], "item_id": [1, 2, 3], "t": range(3)})
    write = WRITERS[name]
    if name in TEXT:
        frame = frame.with_columns(pl.col("value").fill_null(""))
    with pytest.raises(DataError, match=r"'value' has 1 empty values, first in (line 3|row 2) of"):
        prepared(write, tmp_path, frame, user="value", order="t")
