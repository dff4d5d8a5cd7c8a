"""Source ids of every type, through parquet and CSV, against the plain values."""

import uuid

import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from candid.data import DataConfig, ItemTableConfig, prepare_folder
from candid.data import source_ids as source_ids_module
from candid.errors import DataError

USERS = [1, 1, 1, 2, 2, 2]
ORDER = [1, 2, 3, 1, 2, 3]
BIG = 2**64 - 1


def source_ids(tmp_path, items, dtype=None, *, users=USERS):
    """Prepare a parquet file with these item ids and return the distinct ones."""
    frame = pl.DataFrame({"user_id": users, "t": ORDER, "item_id": pl.Series(items, dtype=dtype)})
    frame.write_parquet(tmp_path / "log.parquet")
    return prepared_ids(tmp_path, "log.parquet")


def prepared_ids(tmp_path, name):
    config = DataConfig(interactions=str(tmp_path / name), order="t")
    return prepare_folder(config, tmp_path / "out").dataset.items["source_id"]


INTEGERS = [5, 7, 9, 7, 5, 9]


@pytest.mark.parametrize(
    "dtype",
    [
        pl.Int8,
        pl.Int128,
        pl.UInt32,
        pl.UInt128,
        pl.Float32,
        pl.Float64,
        pl.Decimal(10, 0),
        pl.Decimal(38, 9),
    ],
    ids=str,
)
def test_numbers_of_every_type_are_integers(tmp_path, dtype):
    ids = source_ids(tmp_path, pl.Series(INTEGERS).cast(dtype))
    assert ids.dtype == pl.Int64
    assert ids.to_list() == [5, 7, 9]


def test_floats_with_nan_are_empty_values(tmp_path):
    # pandas stores a missing integer as NaN.
    with pytest.raises(DataError, match=r"'item_id' has 1 empty values, first in row 3 of"):
        source_ids(tmp_path, [5.0, 7.0, float("nan"), 5.0, 7.0, 5.0])


@pytest.mark.parametrize(("dtype", "bits"), [(pl.Float64, 53), (pl.Float32, 24), (pl.Float16, 11)])
def test_floats_that_may_stand_for_two_ids_are_refused(tmp_path, dtype, bits):
    largest = 2**bits
    assert source_ids(tmp_path, [5.0, largest, 7.0] * 2, dtype).to_list() == [5, 7, largest]
    with pytest.raises(
        DataError, match=rf"2 ids that are not whole numbers up to 2\^{bits}, first"
    ):
        source_ids(tmp_path, [5.0, largest + 2, 7.0] * 2, dtype)


@pytest.mark.parametrize("dtype", [pl.UInt64, pl.UInt128, pl.Decimal(38, 0)], ids=str)
def test_integers_above_the_signed_range_are_unsigned(tmp_path, dtype):
    values = [BIG, 7, 9, BIG, 7, 9]
    assert source_ids(tmp_path, values, dtype).to_list() == [7, 9, BIG]


def test_numbers_above_64_bits_stay_exact_text(tmp_path):
    values = [2**70, 2**70 + 1, 5, 5, 2**70, 5]
    assert source_ids(tmp_path, values, pl.Int128).to_list() == [str(2**70), str(2**70 + 1), "5"]


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Binary], ids=str)
def test_texts_of_every_type_are_text(tmp_path, dtype):
    texts = ["007", " a ", "é", "007", " a ", "é"]
    values = [text.encode() for text in texts] if dtype == pl.Binary else texts
    assert source_ids(tmp_path, values, dtype).to_list() == [" a ", "007", "é"]


def test_enum_is_text_in_order_of_text(tmp_path):
    assert source_ids(tmp_path, list("bacabc"), pl.Enum(["c", "b", "a"])).to_list() == list("abc")


@pytest.mark.parametrize("last", [255, 65])
def test_uuids_of_parquet_are_text(tmp_path, last):
    # The bytes of small numbers are also UTF-8.
    ids = sorted(uuid.UUID(int=n << 96 | last) for n in (1, 2, 3))
    column = pa.array([ids[n].bytes for n in (0, 1, 2, 1, 0, 2)], type=pa.uuid())
    table = pa.table({"user_id": USERS, "t": ORDER, "item_id": column})
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    assert prepared_ids(tmp_path, "log.parquet").to_list() == [str(id) for id in ids]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["5", "7", "9"], [5, 7, 9]),
        (["5.0", "7.0", "9.0"], [5, 7, 9]),
        (["5.0", "7", "9."], [5, 7, 9]),
        (["5e0", "7.00", "1.2e1"], [5, 7, 12]),
        (["-5.0", "7.0", "0.0"], [-5, 0, 7]),
        # Exact beyond 2^53: the digits are read, not a float.
        (["9007199254740993.0", "5.0", "7.0"], [5, 7, 9007199254740993]),
        ([str(BIG), "5", "7"], [5, 7, BIG]),
        # Other text is kept as it is written.
        (["007", "7.0", "5"], ["007", "5", "7.0"]),
        (["5.0", "a", "7"], ["5.0", "7", "a"]),
        (["1e5", "2f6", "3"], ["1e5", "2f6", "3"]),
        ([" 5", "7", "9"], [" 5", "7", "9"]),
        (["+5", "7", "9"], ["+5", "7", "9"]),
        ([str(10**30), "5", "7"], [str(10**30), "5", "7"]),
    ],
)
def test_text_formats_have_integers_or_text(tmp_path, texts, expected):
    items = [texts[n] for n in (0, 1, 2, 1, 0, 2)]
    rows = [f"{user},{t},{item}" for user, t, item in zip(USERS, ORDER, items, strict=True)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,t,item_id", *rows]))
    assert prepared_ids(tmp_path, "log.csv").to_list() == expected


TABLE_IDS = {
    "Int32": pl.Series([5, 7, 11], dtype=pl.Int32),
    "Float64": pl.Series([5.0, 7.0, 11.0]),
    "Decimal": pl.Series(["5.00", "7.00", "11.00"]).cast(pl.Decimal(10, 2)),
    "String": pl.Series(["5.0", "7.0", "11.0"]),
    "Binary": pl.Series([b"5", b"7", b"11"]),
}


@pytest.mark.parametrize("name", TABLE_IDS)
@pytest.mark.parametrize("as_text", [False, True])
def test_table_of_items_matches_ids_of_another_type(tmp_path, name, as_text):
    ids = ["5", "7", "a", "7", "5", "a"] if as_text else [5, 7, 9, 7, 5, 9]
    frame = pl.DataFrame({"user_id": USERS, "t": ORDER, "item_id": ids})
    frame.write_parquet(tmp_path / "log.parquet")
    titles = pl.DataFrame({"item_id": TABLE_IDS[name], "title": ["five", "seven", "eleven"]})
    titles.write_parquet(tmp_path / "items.parquet")
    config = DataConfig(
        interactions=str(tmp_path / "log.parquet"),
        order="t",
        items=ItemTableConfig(path=str(tmp_path / "items.parquet")),
    )
    result = prepare_folder(config, tmp_path / "out")
    assert result.dataset.items["title"].to_list() == ["five", "seven", None]
    assert result.report["items_without_row"] == 1
    assert result.report["items_without_interactions"] == 1


@pytest.mark.parametrize(
    ("given", "target", "expected"),
    [
        (pl.Series([5.0, 5.5, float("nan"), None]), pl.Int64(), [5, None, None, None]),
        (pl.Series(["5", "5.0", "5.5", "x", ""]), pl.Int64(), [5, 5, None, None, None]),
        (pl.Series([5, -1]), pl.UInt64(), [5, None]),
        (pl.Series(["007", "06.0", "+5", "-0", "-5.0", "0"]), pl.Int64(), [None] * 4 + [-5, 0]),
        (
            pl.Series(["5.00", "5.50", "50.00"]).cast(pl.Decimal(9, 2)),
            pl.String(),
            ["5", "5.50", "50"],
        ),
        (pl.Series(["50"]).cast(pl.Decimal(9, 0)), pl.String(), ["50"]),
        (pl.Series([5, 7]), pl.String(), ["5", "7"]),
        (pl.Series([5.0, 7.0]), pl.String(), ["5", "7"]),
        (pl.Series([b"5", b"\xff"]), pl.String(), ["5", None]),
        (pl.Series([True, False]), pl.Int64(), [None, None]),
    ],
)
def test_match_ids_converts_what_is_the_same_id(given, target, expected):
    matched = source_ids_module.match_ids(given, target)
    assert matched.dtype == target
    assert matched.to_list() == expected


def test_table_of_text_ids_does_not_match_other_integers(tmp_path):
    frame = pl.DataFrame({"user_id": USERS, "t": ORDER, "item_id": [5, 7, 9, 7, 5, 9]})
    frame.write_parquet(tmp_path / "log.parquet")
    titles = pl.DataFrame({"item_id": ["007", "+5", "9"], "title": ["bond", "plus", "nine"]})
    titles.write_parquet(tmp_path / "items.parquet")
    config = DataConfig(
        interactions=str(tmp_path / "log.parquet"),
        order="t",
        items=ItemTableConfig(path=str(tmp_path / "items.parquet")),
    )
    result = prepare_folder(config, tmp_path / "out")
    assert result.dataset.items["title"].to_list() == [None, None, "nine"]


def test_negatives_written_as_floats_match_integer_ids(tmp_path):
    (tmp_path / "log.csv").write_text(
        "user_id,t,item_id,shown\n"
        "1,1,5.0,\n1,2,7.0,9.0\n1,3,9.0,5.0 7.0\n2,1,5.0,9.0\n2,2,7.0,\n2,3,9.0,\n"
    )
    config = DataConfig(interactions=str(tmp_path / "log.csv"), order="t", negatives="shown")
    result = prepare_folder(config, tmp_path / "out")
    assert result.report["negatives"] == {"stored": 4}
    assert result.dataset.negative_ids.tolist() == [2, 0, 1, 2]
