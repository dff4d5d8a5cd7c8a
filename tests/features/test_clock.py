import datetime
import math

import polars as pl
import pytest
import torch

from candid.errors import DataError
from candid.features import Clock


def at(*moments, zone=None, **settings):
    column = pl.Series("time", moments, dtype=pl.Datetime("us", zone))
    return Clock.Config(**settings).fit(column).encode(column).values


def moment(day, hour=0, minute=0):
    return datetime.datetime(2026, 3, day, hour, minute)


def test_the_day_is_a_circle_that_begins_at_midnight():
    midnight, six, noon, late = at(moment(1), moment(1, 6), moment(1, 12), moment(1, 23, 59))[
        :, :2
    ].tolist()
    assert midnight == pytest.approx([0, 1], abs=1e-6)
    assert six == pytest.approx([1, 0], abs=1e-6)
    assert noon == pytest.approx([0, -1], abs=1e-6)
    assert late == pytest.approx(midnight, abs=0.01)


def test_the_week_returns_after_seven_days_and_not_before():
    week = at(*(moment(day, 15) for day in range(1, 9)))[:, 2:4]
    assert week[0].tolist() == pytest.approx(week[7].tolist(), abs=1e-5)
    apart = torch.pdist(week[:7])
    assert apart.min() == pytest.approx(2 * math.sin(math.pi / 7), abs=1e-5)


def test_an_offset_moves_the_clock_and_a_zone_does_not():
    there = at(moment(1, 20), utc_offset=-3.5)
    assert there[0].tolist() == pytest.approx(at(moment(1, 16, 30))[0].tolist(), abs=1e-6)
    zoned = (
        pl.Series([moment(1, 20)]).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    )
    assert torch.equal(Clock().encode(zoned).values, at(moment(1, 20)))


def test_a_missing_moment_is_marked_and_on_no_clock():
    assert at(moment(1), None)[1].tolist() == [0, 0, 0, 0, 1]
    assert at(moment(1))[0, 4] == 0


def test_text_is_read_as_the_moment_that_it_names():
    written = ["2026-03-01T20:00", " 2026-03-01 20:00:00Z", "2026-03-01T22:00:00+02:00", "", None]
    read = Clock().encode(pl.Series(written)).values
    assert torch.equal(read, at(*[moment(1, 20)] * 3, None, None))
    assert torch.equal(Clock().encode(pl.Series(["2026-03-01"])).values, at(moment(1)))
    with pytest.raises(DataError, match="'2026-13-01' is not a moment such as"):
        Clock().encode(pl.Series(["2026-03-01", "2026-13-01"]))
