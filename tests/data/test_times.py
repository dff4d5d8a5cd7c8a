"""Times in numbers, text and dates."""

import datetime

import polars as pl
import pytest

from candid.data import times
from candid.errors import ConfigError

SECONDS = 1046454590  # `date -u -d '2003-02-28 17:49:50' +%s`


def evaluate(expression, values):
    return pl.DataFrame({"t": values}).select(expression).to_series().to_list()


@pytest.mark.parametrize("factor", [1, 10**3, 10**6, 10**9])
def test_largest_number_decides_the_unit(factor):
    value = SECONDS * factor
    assert evaluate(times.from_number(pl.col("t"), value), [value, 0]) == [SECONDS * 10**6, 0]


def test_fractions_of_a_second_are_kept():
    expression = times.from_number(pl.col("t"), SECONDS)
    assert evaluate(expression, [SECONDS + 0.25]) == [SECONDS * 10**6 + 250_000]


@pytest.mark.parametrize(
    "text",
    [
        "2003-02-28 17:49:50",
        "2003-02-28T17:49:50Z",
        "2003-02-28T17:49:50.000",
        "2003-02-28T18:49:50+01:00",
        "2003-02-28T18:49:50.000000+0100",
    ],
)
def test_from_text_reads_iso_text(text):
    length = len(text.removesuffix("Z"))
    assert evaluate(times.from_text(pl.col("t"), [length]), [text]) == [SECONDS * 10**6]


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


def test_parse_cut_refuses_other_text():
    with pytest.raises(ConfigError, match="'soon'"):
        times.parse_cut("soon")
