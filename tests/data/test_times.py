"""Times in numbers, text and dates."""

import datetime

import polars as pl
import pytest

from candid.data import times
from candid.errors import ConfigError

SECONDS = 1046454590  # `date -u -d '2003-02-28 17:49:50' +%s`


def evaluate(expression, values):
    return pl.DataFrame({"t": values}).select(expression).to_series().to_list()


def units_of(values):
    number = times.to_number(pl.col("t"))
    statistics = pl.DataFrame({"t": values}).select(**times.number_statistics(number))
    return times.units_of(statistics.row(0, named=True))


UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


@pytest.mark.parametrize(("unit", "factor"), UNITS.items())
def test_size_of_numbers_decides_the_unit(unit, factor):
    values = [SECONDS * factor, 0]
    assert units_of(values) == [unit]
    assert evaluate(times.from_number(pl.col("t"), unit), values) == [SECONDS * 10**6, 0]


@pytest.mark.parametrize("unit", ["milliseconds", "microseconds", "nanoseconds"])
def test_two_units_are_found_from_one_number_of_each(unit):
    values = [SECONDS] * 1000 + [SECONDS * UNITS[unit]]
    assert units_of(values) == ["seconds", unit]
    marked = evaluate(times.is_of_unit(pl.col("t"), unit), values)
    assert marked == [False] * 1000 + [True]


@pytest.mark.parametrize("unit", ["seconds", "milliseconds", "microseconds"])
def test_placeholder_of_the_year_9999_is_another_unit(unit):
    end = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
    placeholder = int(end.timestamp()) * UNITS[unit]
    assert len(units_of([SECONDS * UNITS[unit], placeholder])) == 2


def test_counters_are_seconds():
    assert units_of([0, 1, 2, 50_000_000]) == ["seconds"]
    assert units_of([None, None]) == ["seconds"]


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        ("YYYYMMDD", 20240131, "2024-01-31"),
        ("YYYYMMDD", "20240131", "2024-01-31"),
        ("YYYYMMDD", 20240131.0, "2024-01-31"),
        ("YYYYMMDDhhmm", 202401311830, "2024-01-31 18:30"),
        ("YYYYMMDDhhmmss", 20240131183059, "2024-01-31 18:30:59"),
    ],
)
def test_dates_as_numbers(form, value, expected):
    assert units_of([value]) == [form]
    moment = datetime.datetime.fromisoformat(expected).replace(tzinfo=datetime.UTC)
    assert evaluate(times.from_number(pl.col("t"), form), [value]) == [
        int(moment.timestamp()) * 10**6
    ]


@pytest.mark.parametrize("value", [20240230, 20241301, 2024013, 0, 202401311860, "20240131.5x"])
def test_numbers_that_are_not_a_date_become_null(value):
    assert evaluate(times.from_number(pl.col("t"), "YYYYMMDD"), [value]) == [None]


def test_fractions_of_a_second_are_kept():
    expression = times.from_number(pl.col("t"), "seconds")
    assert evaluate(expression, [SECONDS + 0.25]) == [SECONDS * 10**6 + 250_000]


@pytest.mark.parametrize(
    "text",
    [
        "2003-02-28 17:49:50",
        "2003-02-28T17:49:50Z",
        "2003-02-28T17:49:50.000",
        "2003-02-28T18:49:50+01:00",
        "2003-02-28T18:49:50.000000+0100",
        # pandas
        "2003-02-28 17:49:50.000000000",
        "2003-02-28 17:49:50+00:00",
        # Spark
        "2003-02-28T17:49:50.000Z",
        "2003-02-28 17:49:50.0",
        "2003-02-28T23:19:50.000+0530",
        # PostgreSQL
        "2003-02-28 17:49:50+00",
        "2003-02-28 14:19:50.000000-03:30",
        # BigQuery
        "2003-02-28 17:49:50 UTC",
        "2003-02-28 17:49:50.000000 UTC",
    ],
)
def test_from_text_reads_iso_text(text):
    frame = pl.DataFrame({"t": [text]})
    found = frame.select(**times.text_statistics(times.normalize_text(pl.col("t")))).row(
        0, named=True
    )
    expression = times.from_text(pl.col("t"), found["lengths"], offsets=found["offsets"])
    assert evaluate(expression, [text]) == [SECONDS * 10**6]
    assert times.parse_cut(text) == SECONDS * 10**6


@pytest.mark.parametrize("text", ["2003-02-28T19:49+02:00", "2003-02-28 19:49+02"])
def test_from_text_reads_minutes_with_an_offset(text):
    minute = evaluate(times.from_text(pl.col("t"), [len(text)]), [text])
    assert minute == [(SECONDS - 50) * 10**6]


@pytest.mark.parametrize("text", ["2003-02-28 17:49:50+99", "28.02.2003", "2003-02-30", "now"])
def test_other_text_becomes_null(text):
    assert evaluate(times.from_text(pl.col("t"), range(40)), [text]) == [None]


def test_from_text_reads_texts_of_several_lengths_and_nulls():
    texts = ["1970-01-02", "1970-01-01 00:01", "yesterday", None]
    result = evaluate(times.from_text(pl.col("t"), [9, 10, 16]), texts)
    assert result == [86_400_000_000, 60_000_000, None, None]


def test_as_utc_converts_datetimes_and_dates():
    zoned = datetime.datetime(1970, 1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    frame = pl.DataFrame({"t": [zoned]}, schema={"t": pl.Datetime("ms", "Europe/Paris")})
    assert frame.select(times.as_utc(pl.col("t"), frame.schema["t"]).to_physical()).item() == 0
    frame = pl.DataFrame({"t": [datetime.date(1970, 1, 2)]})
    value = frame.select(times.as_utc(pl.col("t"), frame.schema["t"]).to_physical()).item()
    assert value == 86_400_000_000


@pytest.mark.parametrize("cut", ["2003-02-28T17:49:50", "2003-02-28T18:49:50+01:00", SECONDS])
def test_parse_cut_reads_iso_text_and_numbers(cut):
    assert times.parse_cut(cut) == SECONDS * 10**6


def test_parse_cut_is_in_the_unit_of_the_column():
    assert times.parse_cut(SECONDS, "milliseconds") == SECONDS * 10**3
    assert times.parse_cut(20240131, "seconds") == 20240131 * 10**6
    day = times.parse_cut("2024-01-31")
    assert times.parse_cut(20240131, "YYYYMMDD") == times.parse_cut(20240131) == day
    with pytest.raises(ConfigError, match="split cut 1046454590 must be YYYYMMDD"):
        times.parse_cut(SECONDS, "YYYYMMDD")


def test_parse_cut_refuses_other_text():
    with pytest.raises(ConfigError, match="'soon'"):
        times.parse_cut("soon")
