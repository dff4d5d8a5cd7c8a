import math
import statistics

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candid.errors import DataError
from candid.features import Number

FINITE = st.floats(-1e6, 1e6)


def fit(column, **settings):
    return Number.Config(**settings).fit(pl.Series(column))


@given(st.lists(st.none() | FINITE, min_size=1, max_size=20), FINITE)
def test_standard_is_the_z_score_of_training_rows(column, value):
    given_ = [x for x in column if x is not None]
    mean = statistics.fmean(given_) if given_ else 0.0
    deviation = statistics.pstdev(given_) if given_ else 0.0
    if 0 < deviation < 1e-3:
        return  # rounding of the mean rules there
    feature = Number.Config().fit(pl.Series(column, dtype=pl.Float64))
    numbers = feature.encode(pl.Series([value, None])).values.tolist()
    known = min(max(value, min(given_, default=0.0)), max(given_, default=0.0))
    assert numbers[0][0] == pytest.approx((known - mean) / (deviation or 1.0), rel=1e-4, abs=1e-5)
    assert [numbers[0][1], numbers[1]] == [0.0, [0.0, 1.0]]


def test_log_scale_is_symmetric_and_standardised():
    feature = fit([-(math.e - 1), 0.0, math.e - 1], scale="log")
    numbers = feature.encode(pl.Series([math.e - 1, 1 - math.sqrt(math.e), None])).values
    unit = math.sqrt(3 / 2)  # deviation of -1, 0, 1 is sqrt(2/3)
    assert numbers[:, 0].tolist() == pytest.approx([unit, -unit / 2, 0.0])
    assert numbers[:, 1].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("scale", ["standard", "log"])
def test_constant_is_zero_and_so_are_other_values(scale):
    feature = fit([0.1] * 3, scale=scale)  # their computed deviation is 1e-17
    assert feature.encode(pl.Series([0.1, 1.1])).values[:, 0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", ["standard", "log"])
def test_values_beyond_the_training_range_are_clipped(scale):
    feature = fit([-3.0, 0.0, 9.0], scale=scale)
    numbers = (
        feature.encode(pl.Series([-3.0, -4.0, -1e300, 9.0, 10.0, 1e300])).values[:, 0].tolist()
    )
    assert numbers == [numbers[0]] * 3 + [numbers[3]] * 3
    assert numbers[0] < 0 < numbers[3]


def test_text_booleans_and_decimals_are_numbers():
    feature = fit([0, 2])
    for column in (
        pl.Series([" 2 ", "0.0", ""]),
        pl.Series(["2", "0", "nan"], dtype=pl.Categorical),
        pl.Series([2.0, 0.0, math.nan]),
        pl.Series(["2", "0", None]).cast(pl.Decimal(10, 2)),
    ):
        assert feature.encode(column).values.tolist() == [[1, 0], [-1, 0], [0, 1]]
    assert feature.encode(pl.Series([True, None])).values.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["1", "two", "three"], "'two' is not a number"),
        ([1.0, math.inf], "inf is not finite"),
        (["1", "-inf"], "'-inf' is not finite"),
        ([["1"]], "List"),
    ],
)
def test_first_bad_value_is_named(column, message):
    with pytest.raises(DataError, match=message):
        fit(column)
    with pytest.raises(DataError, match=message):
        fit([1.0, 2.0]).encode(pl.Series(column))


def test_dates_are_refused():
    with pytest.raises(DataError, match="Date"):
        Number.Config().fit(pl.Series(["2001-01-01"]).str.to_date())


def test_numbers_beyond_float32_are_refused_and_named():
    with pytest.raises(DataError, match="1e\\+300"):
        fit([1.0, 1e300])
    assert fit([1.0, 1e300], scale="log").encode(pl.Series([1e300])).values[0, 0].item() == 1.0


@given(
    st.lists(st.none() | st.integers(-5, 5).map(float), min_size=1, max_size=40),
    st.integers(2, 12),
)
def test_buckets_ascend_and_every_bucket_has_a_training_value(column, num_buckets):
    series = pl.Series(column, dtype=pl.Float64)
    feature = Number.Config(scale="quantile", num_buckets=num_buckets).fit(series)
    encoded = feature.encode(series)
    codes = encoded.ids[:, 0].tolist()
    pairs = [(x, code) for x, code in zip(column, codes, strict=True) if x is not None]
    assert all(code == 0 for x, code in zip(column, codes, strict=True) if x is None)
    assert [code for _, code in sorted(pairs)] == sorted(code for _, code in pairs)
    assert encoded.num_codes <= num_buckets + 1
    if pairs:
        assert {code for _, code in pairs} == set(range(1, encoded.num_codes))


def test_buckets_of_distinct_values_have_equal_size():
    values = [float(x) for x in range(100)]
    codes = fit(values, scale="quantile", num_buckets=4).encode(pl.Series(values)).ids[:, 0]
    assert codes.bincount().tolist() == [0, 25, 25, 25, 25]
    beyond = fit(values, scale="quantile", num_buckets=4).encode(pl.Series([-1e9, 1e9, None]))
    assert beyond.ids[:, 0].tolist() == [1, 4, 0]


@pytest.mark.parametrize(
    ("scale", "state"),
    [
        ("standard", {"mean": 0.0}),
        ("standard", {"mean": 0.0, "deviation": 1.0}),
        ("standard", {"mean": "x", "deviation": 1.0, "lowest": 0.0, "highest": 0.0}),
        ("standard", {"mean": 0.0, "deviation": 0.0, "lowest": 0.0, "highest": 0.0}),
        ("standard", {"mean": 0.0, "deviation": 1.0, "lowest": 1.0, "highest": 0.0}),
        ("log", {"mean": float("nan"), "deviation": 1.0, "lowest": 0.0, "highest": 0.0}),
        ("quantile", {"mean": 0.0, "deviation": 1.0}),
        ("quantile", {"boundaries": [2.0, 1.0]}),
        ("quantile", {"boundaries": 3}),
    ],
)
def test_damaged_state_is_refused(scale, state):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Number.Config(scale=scale).restore(state)
