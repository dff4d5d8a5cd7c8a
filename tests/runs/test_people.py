"""What is said of people, read as the table of users would be."""

import polars as pl
import pytest

from candid.errors import DataError
from candid.runs.people import frame_of

SCHEMA = {
    "age": pl.Int32(),
    "height": pl.Float64(),
    "city": pl.String(),
    "likes": pl.List(pl.String()),
    "scores": pl.List(pl.Int64()),
    "member": pl.Boolean(),
}


def test_text_and_values_are_read_as_the_columns_type():
    people = [
        {"age": "31", "height": "1.75", "city": "Oslo", "likes": "tea|jam", "scores": "1|2"},
        {},
        {"age": 7, "likes": ["jam"], "scores": [], "member": True},
    ]
    typed = [{k: v for k, v in people[0].items()}, {}]
    frame = frame_of(typed, SCHEMA)
    assert frame.schema == pl.Schema(SCHEMA)
    assert frame.rows() == [
        (31, 1.75, "Oslo", ["tea", "jam"], [1, 2], None),
        (None, None, None, None, None, None),
    ]
    frame = frame_of(people[1:], SCHEMA)
    assert frame.rows()[1] == (7, None, None, ["jam"], [], True)
    assert frame.schema == pl.Schema(SCHEMA)


@pytest.mark.parametrize(
    ("person", "sentence"),
    [
        ({"age": "old"}, r"'age' of users is of type Int32, which 'old' is not"),
        ({"age": 2**40}, r"'age' of users is of type Int32"),
        ({"scores": "1|x"}, r"'scores' of users is of type List\(Int64\)"),
        ({"weight": 3}, r"unknown attribute of users 'weight': did you mean 'height'"),
    ],
)
def test_what_cannot_be_read_is_refused(person, sentence):
    with pytest.raises(DataError, match=sentence):
        frame_of([person], SCHEMA)
