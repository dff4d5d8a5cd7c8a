"""Tables of users and items: joined rows, types, missing values."""

import datetime
import json
import os

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from candid.checksums import sealed
from candid.data import DataConfig, ItemTableConfig, UserTableConfig, open_dataset, prepare_folder
from candid.errors import DataError

ORDERS = {1: (10, 20, 30, 40), 2: (20, 30, 40, 10), 3: (40, 10, 20, 30)}


def config(folder, **settings):
    rows = [
        (user, item, position) for user, own in ORDERS.items() for position, item in enumerate(own)
    ]
    log = folder / "log.parquet"
    pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row").write_parquet(log)
    return DataConfig(interactions=str(log), order="t", **settings)


def users(path, *attributes, user="user_id"):
    return UserTableConfig(path=str(path), user=user, attributes=attributes)


def test_users_get_attributes_from_their_table(tmp_path):
    table = pl.DataFrame({"id": ["3", "1", "x"], "age": [33, 11, 99], "spare": [0, 0, 0]})
    table.write_parquet(tmp_path / "users.parquet")
    settings = users(tmp_path / "users.parquet", "age", user="id")
    result = prepare_folder(config(tmp_path, users=settings), tmp_path / "out")
    expected = pl.DataFrame({"source_id": [1, 2, 3], "age": [11, None, 33]})
    assert_frame_equal(result.dataset.users, expected)
    assert result.report["users_without_row"] == 1
    assert result.report["items_without_row"] is None
    assert result.dataset.items.columns == ["source_id"]


def test_tables_of_users_and_items_together(tmp_path):
    pl.DataFrame({"user_id": [1, 2, 3], "age": [1, 2, 3]}).write_parquet(tmp_path / "u.parquet")
    pl.DataFrame({"item_id": [40, 10], "title": ["D", "A"]}).write_parquet(tmp_path / "i.parquet")
    items = ItemTableConfig(path=str(tmp_path / "i.parquet"))
    both = config(tmp_path, users=users(tmp_path / "u.parquet", "age"), items=items)
    result = prepare_folder(both, tmp_path / "out")
    assert result.dataset.users.to_dict(as_series=False) == {
        "source_id": [1, 2, 3],
        "age": [1, 2, 3],
    }
    assert result.dataset.items["title"].to_list() == ["A", None, None, "D"]
    assert (result.report["users_without_row"], result.report["items_without_row"]) == (0, 2)
    assert len(result.report["sources"]) == 3


DAY = datetime.date(2020, 2, 29)
COLUMNS = {
    "bag": pl.Series([["a", "b"], [], None]),
    "ragged": pl.Series([[0.1, 0.2], [0.3], None], dtype=pl.List(pl.Float32)),
    "embedding": pl.Series([[0.1, -2.5], None, [3.0, 1e-9]], dtype=pl.Array(pl.Float32, 2)),
    "wide": pl.Series([[0.1, -2.5], None, [3.0, 1e-9]], dtype=pl.Array(pl.Float64, 2)),
    "count": pl.Series([2**62, None, -1]),
    "small": pl.Series([1, 255, None], dtype=pl.UInt8),
    "ratio": pl.Series([0.1, None, 1 / 3]),
    "text": pl.Series(["é\n", None, ""]),
    "kind": pl.Series(["x", "y", None], dtype=pl.Categorical),
    "flag": pl.Series([True, None, False]),
    "day": pl.Series([DAY, None, DAY]),
    "time": pl.Series([datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC), None, None]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_every_attribute_type_is_stored_and_changes_the_fingerprint(tmp_path, name):
    values = COLUMNS[name]
    path = tmp_path / "users.parquet"
    settings = config(tmp_path, users=users(path, name))
    pl.DataFrame({"user_id": [1, 2, 3], name: values}).write_parquet(path)
    result = prepare_folder(settings, tmp_path / "out")
    assert result.report["users_without_row"] == 0
    opened = open_dataset(tmp_path / "out", verify=True)
    assert_frame_equal(opened.users, pl.DataFrame({"source_id": [1, 2, 3], name: values}))
    pl.DataFrame({"user_id": [3, 2, 1], name: values.reverse()}).write_parquet(path)
    shuffled = prepare_folder(settings, tmp_path / "out")
    assert not shuffled.up_to_date
    assert shuffled.report["fingerprint"] == result.report["fingerprint"]
    other = values.gather([1, 0, 2])
    pl.DataFrame({"user_id": [1, 2, 3], name: other}).write_parquet(path)
    assert (
        prepare_folder(settings, tmp_path / "out").report["fingerprint"]
        != result.report["fingerprint"]
    )


def test_embedding_of_a_user_without_a_row_is_null(tmp_path):
    path = tmp_path / "users.parquet"
    vectors = pl.Series([[1.0, 2.0]], dtype=pl.Array(pl.Float32, 2))
    pl.DataFrame({"user_id": [2], "vector": vectors}).write_parquet(path)
    dataset = prepare_folder(
        config(tmp_path, users=users(path, "vector")), tmp_path / "out"
    ).dataset
    assert dataset.users["vector"].to_list() == [None, [1.0, 2.0], None]
    assert dataset.users["vector"].dtype == pl.Array(pl.Float32, 2)


def test_nan_is_missing(tmp_path):
    path = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": [1, 2, 3], "age": [1.5, np.nan, None]}).write_parquet(path)
    dataset = prepare_folder(config(tmp_path, users=users(path, "age")), tmp_path / "out").dataset
    assert dataset.users["age"].to_list() == [1.5, None, None]


TEXT = {
    "users.csv": "user_id,gender,age\n3,F,\n1, ,20\n2,M,30\n",
    "users.tsv": "user_id\tgender\tage\n3\tF\t\n1\t \t20\n2\tM\t30\n",
    "users.dat": "3::F::::4::z\n1:: ::20::4::z\n2::M::30::4::z\n",
    "users.user": "user_id:token\tgender:token\tage:float\n3\tF\t\n1\t \t20\n2\tM\t30\n",
}


@pytest.mark.parametrize("name", TEXT)
def test_blank_text_is_missing(tmp_path, name):
    (tmp_path / name).write_text(TEXT[name])
    settings = config(tmp_path, users=users(tmp_path / name, "age", "gender"))
    assert prepare_folder(settings, tmp_path / "out").dataset.users.to_dict(as_series=False) == {
        "source_id": [1, 2, 3],
        "age": [20, 30, None],
        "gender": [None, "M", "F"],
    }


def test_files_with_numbers_of_different_width(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    pl.DataFrame({"user_id": [1], "age": [20]}).write_parquet(folder / "a.parquet")
    pl.DataFrame({"user_id": [3], "age": [2.5]}).write_parquet(folder / "b.parquet")
    dataset = prepare_folder(config(tmp_path, users=users(folder, "age")), tmp_path / "out").dataset
    assert dataset.users["age"].to_list() == [20.0, None, 2.5]


def test_changed_user_table_is_prepared_again(tmp_path):
    path = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": [1, 2], "age": [1, 2], "zip": ["a", "b"]}).write_parquet(path)
    settings = config(tmp_path, users=users(path, "age"))
    prepare_folder(settings, tmp_path / "out")
    assert prepare_folder(settings, tmp_path / "out").up_to_date
    os.utime(path, ns=(1, 1))
    lines: list[str] = []
    assert not prepare_folder(settings, tmp_path / "out", progress=lines.append).up_to_date
    assert lines[0].endswith("its files have changed")
    more = config(tmp_path, users=users(path, "age", "zip"))
    lines.clear()
    assert not prepare_folder(more, tmp_path / "out", progress=lines.append).up_to_date
    change = "prepared with data.users.attributes = ['age'], not ['age', 'zip']"
    assert lines[0].endswith(change)


def test_config_key_that_the_manifest_lacks_counts_as_none(tmp_path):
    plain = config(tmp_path)
    prepare_folder(plain, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["config"].pop("users") is None
    assert manifest.pop("users_without_row") is None
    path.write_text(json.dumps(sealed(manifest)))
    assert prepare_folder(plain, tmp_path / "out").up_to_date


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("20", "", "-3"), [20, None, -3]),
        (("20", "2.5", ""), [20.0, 2.5, None]),
        (("1e3", ".5", "nan"), [1000.0, 0.5, None]),
        ((str(2**63), "1", "2"), [float(2**63), 1.0, 2.0]),
        # One value that is not a number, or has a leading zero, keeps the column as text.
        (("20", "x", ""), ["20", "x", None]),
        (("01234", "48067", ""), ["01234", "48067", None]),
        (("1,5", "2", ""), ["1,5", "2", None]),
        (("inf", "2", ""), ["inf", "2", None]),
        (("", "", ""), [None, None, None]),
    ],
)
def test_numbers_of_text_formats_are_numbers(tmp_path, values, expected):
    lines = [f"{user}\t{value}" for user, value in zip((1, 2, 3), values, strict=True)]
    (tmp_path / "users.tsv").write_text("\n".join(["user_id\tage", *lines]))
    settings = config(tmp_path, users=users(tmp_path / "users.tsv", "age"))
    ages = prepare_folder(settings, tmp_path / "out").dataset.users["age"]
    assert ages.to_list() == expected
    assert ages.dtype in (pl.String, pl.Int64, pl.Float64)


def test_rows_of_tables_without_interactions_or_ids_are_counted(tmp_path):
    (tmp_path / "users.csv").write_text("user_id,age\n1,20\n2,30\n8,40\n9,50\n,60\n")
    settings = config(tmp_path, users=users(tmp_path / "users.csv", "age"))
    report = prepare_folder(settings, tmp_path / "out").report
    assert (report["users_without_row"], report["users_without_interactions"]) == (1, 3)
    assert report["items_without_interactions"] is None


def test_missing_title_names_the_option(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,name\n1,x\n")
    settings = config(tmp_path, items=ItemTableConfig(path=str(tmp_path / "items.csv")))
    with pytest.raises(DataError, match=r"no column 'title': .*name.*--title COLUMN"):
        prepare_folder(settings, tmp_path / "out")
