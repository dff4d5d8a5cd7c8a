import math

import polars as pl
import pytest

from candid.errors import DataError
from candid.features import Vector


def encode(feature, column, **dtype):
    return feature.encode(pl.Series(column, **dtype)).values.tolist()


def test_vectors_are_unchanged_and_null_is_zeros():
    feature = Vector.Config().fit(pl.Series([None, [1.0, 2.0, 3.0]]))
    assert encode(feature, [[4.0, 5.0, 6.0], None]) == [[4, 5, 6], [0, 0, 0]]
    assert encode(feature, [[1, 2, 3]], dtype=pl.Array(pl.Int8, 3)) == [[1, 2, 3]]


def test_normalize_scales_huge_and_tiny_vectors_to_length_one():
    feature = Vector(2, normalize=True)
    vectors = [[3.0, -4.0], [0.0, 0.0], [3e200, 4e200], [3e-200, 4e-200], None]
    expected = [[0.6, -0.8], [0, 0], [0.6, 0.8], [0.6, 0.8], [0, 0]]
    for result, vector in zip(encode(feature, vectors), expected, strict=True):
        assert result == pytest.approx(vector)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([None, [1.0, 2.0], [1.0]], "row 3 must have 2 numbers as in training, got 1"),
        ([[1.0, 2.0], None, []], "row 3 must have 2 numbers as in training, got 0"),
        ([None, [1.0, math.nan]], "row 2 has a number"),
        ([[1.0, math.inf]], "row 1 has a number"),
        ([[1.0, 2.0], [None, 1.0]], "row 2 has a number"),
        ([["a"]], "must be lists of numbers"),
        (["a"], "must be lists of numbers"),
    ],
)
def test_first_bad_row_is_named(column, message, normalize):
    with pytest.raises(DataError, match=message):
        Vector(2, normalize=normalize).encode(pl.Series(column))


def test_number_beyond_float32_is_refused():
    with pytest.raises(DataError, match="row 1"):
        Vector(1, normalize=False).encode(pl.Series([[1e300]]))


def test_column_without_vectors_is_refused():
    with pytest.raises(DataError, match="no training row"):
        Vector.Config().fit(pl.Series([None, None], dtype=pl.List(pl.Float32)))
    with pytest.raises(DataError, match="empty"):
        Vector.Config().fit(pl.Series([[]], dtype=pl.List(pl.Float32)))
    array = pl.Series([None], dtype=pl.Array(pl.Float32, 3))
    assert Vector.Config().fit(array).state() == {"width": 3}
