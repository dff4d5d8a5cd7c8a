"""Files of source ids, in the type of the dataset."""

import polars as pl
import pytest

from candid.errors import DataError
from candid.runs.id_files import parse_ids, read_ids


def test_ids_of_a_file_have_the_type_of_the_dataset(tmp_path):
    (tmp_path / "users.txt").write_text("\ufeff12\n\n 7 \n")
    assert read_ids(tmp_path / "users.txt", "user", pl.Int64()).to_list() == [12, 7]
    assert read_ids(tmp_path / "users.txt", "user", pl.String()).to_list() == ["12", "7"]
    pl.DataFrame({"user_id": [12.0, 7.0], "n": [1, 2]}).write_parquet(tmp_path / "u.parquet")
    assert read_ids(tmp_path / "u.parquet", "user", pl.Int64()).to_list() == [12, 7]
    (tmp_path / "one.tsv").write_text("anything\n12\n7\n")
    assert read_ids(tmp_path / "one.tsv", "item", pl.Int32()).to_list() == [12, 7]


def test_lists_of_an_earlier_output_name_their_queries(tmp_path):
    pl.DataFrame({"query": ["b", "b", "a"], "item": [1, 2, 3]}).write_csv(tmp_path / "recs.csv")
    assert read_ids(tmp_path / "recs.csv", "user", pl.String()).to_list() == ["b", "b", "a"]


def test_id_of_another_type_is_named_with_its_row(tmp_path):
    (tmp_path / "users.txt").write_text("12\nseven\n")
    with pytest.raises(DataError, match=r"user 'seven' in row 2 of .*users\.txt is not"):
        read_ids(tmp_path / "users.txt", "user", pl.Int64())
    (tmp_path / "zeros.txt").write_text("12\n007\n")
    with pytest.raises(DataError, match=r"user '007' in row 2 of .*zeros\.txt is not"):
        read_ids(tmp_path / "zeros.txt", "user", pl.Int64())
    assert read_ids(tmp_path / "zeros.txt", "user", pl.String()).to_list() == ["12", "007"]
    pl.DataFrame({"user": ["12.0", "7"]}).write_parquet(tmp_path / "text.parquet")
    assert read_ids(tmp_path / "text.parquet", "user", pl.Int64()).to_list() == [12, 7]


@pytest.mark.parametrize("values", [[[1, 2], [3]], [{"a": 1}, {"a": 2}]])
def test_column_of_lists_or_structs_is_refused_by_its_type(tmp_path, values):
    pl.DataFrame({"user": values}).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match=r"column 'user' of .* is of type (List|Struct)") as caught:
        read_ids(tmp_path / "users.parquet", "user", pl.Int64())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.txt", "gone.csv", "gone.parquet"])
def test_missing_file_has_one_message_in_all_formats(tmp_path, name):
    with pytest.raises(DataError) as caught:
        read_ids(tmp_path / name, "user", pl.Int64())
    assert str(caught.value) == f"{tmp_path / name} does not exist; check the path"


@pytest.mark.parametrize("text", ["x", "007", "+7", "7.0", " 7", "", "1e1", str(2**70)])
def test_id_of_a_command_is_written_as_the_dataset_has_it(text):
    with pytest.raises(DataError, match=r"user '.*' is not of type Int64, .*: write it as"):
        parse_ids(["7", text], "user", pl.Int64())
    assert parse_ids([text], "user", pl.String()).to_list() == [text]
    assert parse_ids(["7", "-3"], "user", pl.Int64()).to_list() == [7, -3]
