"""Times as positions in the day and the week."""

import datetime
import math

import polars as pl
import pytest
import torch

from candid.errors import DataError
from candid.features import Clock


def encode(*times, zone=None, **settings):
    column = pl.Series("time", times, dtype=pl.Datetime("us", zone))
    return Clock.Config(**settings).fit(column).encode(column).values


def march(day, hour=0, minute=0):
    return datetime.datetime(2026, 3, day, hour, minute)


def test_day_is_a_circle_from_midnight():
    midnight, six, noon, late = encode(march(1), march(1, 6), march(1, 12), march(1, 23, 59))[
        :, :2
    ].tolist()
    assert midnight == pytest.approx([0, 1], abs=1e-6)
    assert six == pytest.approx([1, 0], abs=1e-6)
    assert noon == pytest.approx([0, -1], abs=1e-6)
    assert late == pytest.approx(midnight, abs=0.01)


def test_week_repeats_after_seven_days():
    week = encode(*(march(day, 15) for day in range(1, 9)))[:, 2:4]
    assert week[0].tolist() == pytest.approx(week[7].tolist(), abs=1e-5)
    apart = torch.pdist(week[:7])
    assert apart.min() == pytest.approx(2 * math.sin(math.pi / 7), abs=1e-5)


def test_utc_offset_shifts_the_time_and_a_zone_does_not():
    there = encode(march(1, 20), utc_offset=-3.5)
    assert there[0].tolist() == pytest.approx(encode(march(1, 16, 30))[0].tolist(), abs=1e-6)
    zoned = pl.Series([march(1, 20)]).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    assert torch.equal(Clock(utc_offset=0.0).encode(zoned).values, encode(march(1, 20)))


def test_missing_time_sets_the_flag():
    assert encode(march(1), None)[1].tolist() == [0, 0, 0, 0, 1]
    assert encode(march(1))[0, 4] == 0


def test_text_is_parsed_as_iso_8601():
    written = ["2026-03-01T20:00", " 2026-03-01 20:00:00Z", "2026-03-01T22:00:00+02:00", "", None]
    read = Clock(utc_offset=0.0).encode(pl.Series(written)).values
    assert torch.equal(read, encode(*[march(1, 20)] * 3, None, None))
    assert torch.equal(
        Clock(utc_offset=0.0).encode(pl.Series(["2026-03-01"])).values, encode(march(1))
    )
    with pytest.raises(DataError, match="'2026-13-01' is not a time such as"):
        Clock(utc_offset=0.0).encode(pl.Series(["2026-03-01", "2026-13-01"]))
