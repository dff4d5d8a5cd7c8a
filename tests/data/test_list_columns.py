"""Files with one row per user, whose lists become interactions."""

import polars as pl
import pytest

from candid.data import DataConfig, prepare_folder
from candid.data.list_columns import parse_list
from candid.errors import ConfigError, DataError

LISTS = pl.DataFrame(
    {
        "user_id": ["a", "b", "c", "d"],
        "country": ["x", "y", "y", "x"],
        "items": [[3, 1, 2], [2, 3, 4, 1], [], None],
        "times": [[10, 20, 30], [40, 10, 20, 30], [], None],
    }
)
# user, item, time, in order of time
ROWS = [
    *(("a", item, time) for item, time in ((3, 10), (1, 20), (2, 30))),
    *(("b", item, time) for item, time in ((3, 10), (4, 20), (1, 30), (2, 40))),
]


def as_text(frame, opening, separator, closing):
    columns = [
        (
            pl.lit(opening) + pl.col(name).cast(pl.List(pl.String)).list.join(separator) + closing
        ).alias(name)
        for name in ("items", "times")
    ]
    return frame.with_columns(columns)


WRITERS = {
    "lists": (LISTS, "parquet"),
    "arrays": (
        LISTS.filter(pl.col("user_id") == "a").with_columns(
            pl.col("items", "times").cast(pl.Array(pl.Int64, 3))
        ),
        "parquet",
    ),
    "spaces": (as_text(LISTS, "", " ", ""), "csv"),
    "json": (as_text(LISTS, "[", ", ", "]"), "csv"),
    "quoted": (as_text(LISTS, "['", "', '", "']").filter(pl.col("user_id") < "c"), "csv"),
    "numpy": (as_text(LISTS, "[", " ", "]"), "csv"),
    "postgres": (as_text(LISTS, "{", ",", "}"), "csv"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_element_becomes_an_interaction(tmp_path, name):
    frame, suffix = WRITERS[name]
    path = tmp_path / f"log.{suffix}"
    if suffix == "csv":
        frame.write_csv(path)
    else:
        # A second user, so that the file is enough to train on.
        other = frame.with_columns(pl.lit("b").alias("user_id")) if name == "arrays" else None
        (frame if other is None else pl.concat([frame, other])).write_parquet(path)
    config = DataConfig(
        interactions=str(path), item="items", time="times", explode=("items", "times")
    )
    dataset = prepare_folder(config, tmp_path / "out").dataset
    users, items = dataset.users["source_id"], dataset.items["source_id"]
    counts = [int(n) for n in dataset.user_offsets[1:] - dataset.user_offsets[:-1]]
    rows = list(
        zip(
            [user for user, n in zip(users, counts, strict=True) for _ in range(n)],
            [items[int(i)] for i in dataset.item_ids],
            [int(t) // 10**6 for t in dataset.timestamps],
            strict=True,
        )
    )
    if name == "arrays":
        assert rows == [*ROWS[:3], *(("b", item, time) for _, item, time in ROWS[:3])]
    else:
        assert rows == ROWS


def test_exploding_equals_the_table_of_interactions(tmp_path):
    LISTS.write_parquet(tmp_path / "lists.parquet")
    pl.DataFrame(ROWS, schema=["user_id", "items", "times"], orient="row").write_parquet(
        tmp_path / "rows.parquet"
    )
    fingerprints = set()
    counts = {"lists": (4, {"empty_lists": 2}), "rows": (len(ROWS), {})}
    for name, columns in (("lists", ("items", "times")), ("rows", ())):
        config = DataConfig(
            interactions=str(tmp_path / f"{name}.parquet"),
            item="items",
            time="times",
            explode=columns,
        )
        result = prepare_folder(config, tmp_path / name)
        assert (result.report["rows_read"], result.report["dropped"]) == counts[name]
        fingerprints.add(result.report["fingerprint"])
    assert len(fingerprints) == 1


TEXTS = {
    "[100 101\n 102]": ["100", "101", "102"],
    "['a'\n 'b c']": ["a", "b c"],
    "[O'Brien, Smith]": ["O'Brien", "Smith"],
    "[rock'n'roll, pop]": ["rock'n'roll", "pop"],
    "['a', 1]": ["a", "1"],
    '{"a b",c}': ["a b", "c"],
    r'["a\"b", "c", "\u00e9", "back\\slash"]': ['a"b', "c", "é", "back\\slash"],
    r"['it\'s', " + '"it\'s"]': ["it's", "it's"],
    "['a, b', 'c']": ["a, b", "c"],
    "[1, None]": ["1", None],
    "{1,NULL}": ["1", None],
    "['None']": ["None"],
    "(1,)": ["1"],
    " 5  6 ": ["5", "6"],
    "[ ]": [],
    "": [],
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_read_as_a_list(text):
    frame = pl.LazyFrame({"text": [text]}).select(parse_list(pl.col("text")))
    assert frame.collect(engine="streaming").item().to_list() == TEXTS[text]


@pytest.mark.parametrize("keys", [{"item": "shown", "explode": ("shown",)}, {"negatives": "shown"}])
@pytest.mark.parametrize(
    "text",
    [
        "[1 2 3 ... 9]",
        "[1, 2, …, 9]",
        "[1, 2",
        "1, 2]",
        "[1, 2}",
        "1,2",
        "[1,,2]",
        "[,]",
        "[[1, 2], [3]]",
        "['O'Brien', 'b']",
        '[say "a, b", c]',
        "[np.int64(3), np.int64(4)]",
    ],
)
def test_text_that_is_not_a_list_is_refused_with_its_row(tmp_path, text, keys):
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "shown": ["1 2", text]})
    frame.write_parquet(tmp_path / "log.parquet")
    config = DataConfig(interactions=str(tmp_path / "log.parquet"), split={"kind": "none"}, **keys)
    with pytest.raises(DataError, match=r"'shown' of row 2 of .* is not a list \("):
        prepare_folder(config, tmp_path / "out")


def test_negatives_are_read_as_explode_reads_lists(tmp_path):
    frame = pl.DataFrame(
        {"user_id": [1, 1, 2], "item_id": [5, 6, 7], "shown": ["[6, 7]", "[7 5]", None]}
    )
    frame.write_csv(tmp_path / "log.csv")
    config = DataConfig(
        interactions=str(tmp_path / "log.csv"), negatives="shown", split={"kind": "none"}
    )
    assert prepare_folder(config, tmp_path / "out").report["negatives"] == {"stored": 4}


def test_missing_element_is_reported_with_its_row(tmp_path):
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": ["1 2", "[1, None]"]})
    frame.write_csv(tmp_path / "log.csv")
    config = DataConfig(
        interactions=str(tmp_path / "log.csv"), explode=("item_id",), split={"kind": "none"}
    )
    with pytest.raises(DataError, match=r"'item_id' has 1 empty values, first in .*log\.csv"):
        prepare_folder(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([[], None], r"all lists of .*log\.parquet are empty; name other columns in explode"),
        ([[[1], [2]], [[3]]], r"'item_id' of .*log\.parquet has lists of lists; write one list"),
    ],
)
def test_lists_without_interactions_are_refused(tmp_path, items, message):
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": items})
    if items[0] == []:
        frame = frame.cast({"item_id": pl.List(pl.Int64)})
    frame.write_parquet(tmp_path / "log.parquet")
    config = DataConfig(
        interactions=str(tmp_path / "log.parquet"), explode=("item_id",), split={"kind": "none"}
    )
    with pytest.raises(DataError, match=message):
        prepare_folder(config, tmp_path / "out")


def test_column_named_twice_in_explode_is_refused():
    with pytest.raises(ConfigError, match="`explode` names a column twice; remove one"):
        DataConfig(interactions="log.csv", explode=("item_id", "item_id"))


def test_column_named_row_can_be_the_user(tmp_path):
    frame = pl.DataFrame({"_row": ["a", "b"], "item_id": ["1 2", "2 1"]})
    frame.write_csv(tmp_path / "log.csv")
    config = DataConfig(
        interactions=str(tmp_path / "log.csv"),
        user="_row",
        explode=("item_id",),
        split={"kind": "none"},
    )
    result = prepare_folder(config, tmp_path / "out")
    assert result.dataset.users["source_id"].to_list() == ["a", "b"]
