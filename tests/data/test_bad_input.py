"""Bad input: one sentence with the file and the fix, the exit code, and no output."""

import datetime
import gzip
from dataclasses import dataclass, field

import polars as pl
import pytest

from candid.data import DataConfig, prepare_folder
from candid.errors import CandidError, ConfigError

GOOD = "user_id,item_id,t,w\n" + "".join(
    f"{user},{(user + step) % 4},{step},1\n" for user in range(4) for step in range(4)
)


def lines(**replaced):
    """GOOD with some lines replaced; ``line_3=`` is the third line of the file."""
    rows = GOOD.splitlines()
    for key, text in replaced.items():
        rows[int(key.removeprefix("line_")) - 1] = text
    return "\n".join(rows) + "\n"


@dataclass(frozen=True)
class Case:
    """A file, settings, and parts of the expected message."""

    name: str
    content: str | bytes | pl.DataFrame | None
    parts: tuple[str, ...]
    settings: dict = field(default_factory=dict)
    file: str = "log.csv"
    exit_code: int = 3


def table_of(**columns):
    base = {"user_id": [1, 1, 1, 2], "item_id": [1, 2, 3, 1], "t": [1, 2, 3, 4]}
    return pl.DataFrame(base | columns, strict=False)


COLUMN = {"order": None, "split": {"kind": "column", "column": "t"}}
TEMPORAL = {"order": None, "time": "t", "split": {"kind": "temporal"}}
CASES = [
    Case("no file", None, ("log.csv", "does not exist")),
    Case("empty file", "", ("log.csv is empty",)),
    Case("empty gzip", gzip.compress(b""), ("log.csv.gz is empty",), file="log.csv.gz"),
    Case("header only", "user_id,item_id,t\n", ("log.csv has no rows",)),
    Case(
        "missing column",
        GOOD,
        ("log.csv has no column 'itemid'", "did you mean 'item_id'?", "user_id, item_id, t, w"),
        {"item": "itemid"},
    ),
    Case("wrong separator", GOOD, ("has no column 'user_id'",), {"separator": ";"}),
    Case("two columns of one name", "user_id,item_id,item_id,t\n1,2,2,3\n", ("two columns",)),
    Case("no header", "1,2,3\n1,3,4\n", ("no column 'user_id'", "is line 1 a header?")),
    Case("no header, one value twice", "1,1,3\n1,3,4\n", ("two", "is line 1 a header?")),
    Case(
        "many columns",
        ",".join(f"c{n}" for n in range(300)) + "\n" + "1," * 299 + "1\n",
        ("no column 'user_id'", "c19 and 280 more"),
    ),
    Case("binary", b"\x93\xff\x1b[2J\x00,\x01\r\r\n1", ("log.csv: line 1 is not UTF-8 text",)),
    Case(
        "a quote that is never closed",
        lines(line_4='"1,2,2,1'),
        ("line 4, continued by a quote", "header has 4"),
    ),
    Case("null user", lines(line_4=",2,2,1"), ("'user_id'", "1 empty", "line 4 of", "drop_nulls")),
    Case("short row", lines(line_4="0"), ("log.csv: line 4 has 1 fields", "header has 4")),
    Case("long row", lines(line_5="0,3,3,1,9"), ("log.csv: line 5 has 5 fields", "header has 4")),
    Case("mixed separators", lines(line_6="1;1;0;1"), ("line 6 has 1 fields", "separator ','")),
    Case("not UTF-8", lines(line_3="\xe9,1,1,1").encode("latin-1"), ("line 3", "not UTF-8")),
    Case(
        "cut gzip", gzip.compress(GOOD.encode())[:-9], ("log.csv.gz", "download"), file="log.csv.gz"
    ),
    Case("not gzip", GOOD, ("log.csv.gz", "gzip"), file="log.csv.gz"),
    Case("not parquet", GOOD, ("log.parquet", "not a readable parquet"), file="log.parquet"),
    Case("unknown format", GOOD, ("log.data", "set format to one of"), file="log.data"),
    Case(
        "negative weight",
        lines(line_3="0,1,1,-1"),
        ("'w'", "1 weights", "line 3", "'-1'"),
        {"weight": "w"},
    ),
    Case("NaN weight", lines(line_3="0,1,1,nan"), ("'w'", "line 3", "'nan'"), {"weight": "w"}),
    Case(
        "no weight at all",
        GOOD.replace(",1\n", ",0\n"),
        ("log.csv", "'w'", "is 0 in every training interaction"),
        {"weight": "w"},
    ),
    Case("weight is text", lines(line_3="0,1,1,x"), ("'w'", "line 3", "numbers"), {"weight": "w"}),
    Case("order is text", lines(line_3="0,1,a,1"), ("'t'", "not numbers", "line 3 of", "'a'")),
    Case(
        "null order",
        lines(line_3="0,1,,1"),
        ("'t'", "1 empty values", "line 3 of", "log.csv", "drop_nulls"),
    ),
    Case(
        "a date among numbers",
        lines(line_5="0,1,2020-02-30,1"),
        ("'t'", "not a number", "line 5 of", "'2020-02-30'"),
        TEMPORAL,
    ),
    Case(
        "a number among dates",
        lines(**{f"line_{n}": f"0,1,2020-02-{n:02},1" for n in range(2, 13)}),
        ("'t'", "not an ISO date", "line 13 of", "'3'"),
        TEMPORAL,
    ),
    Case("endless time", lines(line_4="0,1,1e21,1"), ("too large", "line 4", "'1e21'"), TEMPORAL),
    Case(
        "endless unsigned time",
        table_of(t=pl.Series([1, 2, 2**64 - 1, 4], dtype=pl.UInt64)),
        ("'t'", "too large", "row 3 of", "18446744073709551615"),
        TEMPORAL,
        file="log.parquet",
    ),
    Case("NaN time", lines(line_3="0,1,nan,1"), ("'t'", "not a number", "line 3"), TEMPORAL),
    Case(
        "impossible date",
        GOOD.replace(",0,1\n", ",2020-01-01,1\n")
        .replace(",1,1\n", ",2020-01-02,1\n")
        .replace(",2,1\n", ",2020-02-30,1\n")
        .replace(",3,1\n", ",2020-03-01,1\n"),
        ("'t'", "not an ISO date", "line 4 of", "2020-02-30"),
        TEMPORAL,
    ),
    Case(
        "fractional ids",
        table_of(user_id=[1.0, 2.5, 3.0, 4.5]),
        ("'user_id'", "2 ids", "row 2 of", "log.parquet", "(2.5)", "whole numbers"),
        file="log.parquet",
    ),
    Case(
        "float ids beyond exact integers",
        table_of(user_id=[1.0, 2.0, 2.0**53 + 2, 4.0]),
        ("'user_id'", "1 ids", "row 3 of", "2^53"),
        file="log.parquet",
    ),
    Case(
        "decimal ids with a fraction",
        table_of(item_id=pl.Series(["1.0", "2.0", "3.5", "1.0"]).cast(pl.Decimal(10, 1))),
        ("'item_id'", "row 3 of", "'3.5'", "whole numbers"),
        file="log.parquet",
    ),
    Case(
        "fractional ids in text",
        lines(line_3="0.5,1,1,1", line_2="0.0,0,0,1"),
        ("'user_id'", "1 ids", "line 3 of", "'0.5'", "whole numbers"),
    ),
    Case(
        "rounded ids in text",
        lines(line_4="0,1.2345e+18,1,1"),
        ("'item_id'", "1 ids", "line 4 of", "'1.2345e+18'"),
    ),
    Case(
        "binary ids",
        table_of(item_id=[b"a", b"b", b"\xff\xfe", b"a"]),
        ("'item_id'", "1 binary ids", "row 3 of", "UTF-8", "convert them to text"),
        file="log.parquet",
    ),
    Case(
        "boolean ids",
        table_of(user_id=[True, False, True, True]),
        ("'user_id'", "log.parquet", "integer or text", "Boolean"),
        file="log.parquet",
    ),
    Case(
        "dates as ids",
        table_of(user_id=[datetime.date(2026, 1, day) for day in (1, 2, 3, 4)]),
        ("'user_id'", "integer or text", "Date"),
        file="log.parquet",
    ),
    Case(
        "lists of items",
        table_of(item_id=[[1, 2], [3], [4], [1]]),
        ("'item_id'", "List(Int64)", "set explode = ['item_id'] (--explode item_id)"),
        file="log.parquet",
    ),
    Case(
        "lists of different lengths",
        pl.DataFrame({"user_id": [1, 2], "item_id": [[1, 2], [3, 4]], "t": [[1, 2], [3]]}),
        ("row 2 of", "log.parquet", "2 in 'item_id', 1 in 't'", "one length"),
        {"explode": ("item_id", "t")},
        file="log.parquet",
    ),
    Case(
        "explode without a list",
        table_of(),
        ("'t'", "Int64 and not a list", "remove it from explode"),
        {"explode": ("t",)},
        file="log.parquet",
    ),
    Case(
        "a null in a list",
        pl.DataFrame({"user_id": [1, 2], "item_id": [[1, 2], [3, None]], "t": [[1, 2], [3, 4]]}),
        ("'item_id'", "1 empty values", "row 2 of", "drop_nulls"),
        {"explode": ("item_id", "t")},
        file="log.parquet",
    ),
    Case(
        "times in two units",
        lines(line_3="0,1,1700000000,1", line_4="0,1,1700000001,1", line_6="1,1,1700000000000,1"),
        (
            "'t' has times in two units",
            "seconds in line 3 of",
            "('1700000000')",
            "milliseconds in line 6 of",
            "('1700000000000')",
        ),
        TEMPORAL,
    ),
    Case(
        "a placeholder among milliseconds",
        table_of(t=[1_700_000_000_000, 253_402_214_400_000, 1_700_000_000_001, 4]),
        ("two units", "milliseconds in row 1 of", "microseconds in row 2 of", "leave an unknown"),
        TEMPORAL,
        file="log.parquet",
    ),
    Case(
        "an impossible date as a number",
        table_of(t=[20260101, 20260230, 20260103, 20260104]),
        ("'t'", "not a date YYYYMMDD", "row 2 of", "20260230"),
        TEMPORAL,
        file="log.parquet",
    ),
    Case(
        "an impossible date in the order",
        lines(**{f"line_{n}": f"0,1,2020-02-{n + 20:02},1" for n in range(2, 18)}),
        ("'t'", "not an ISO date", "line 10 of", "'2020-02-30'"),
    ),
    Case(
        "test after the last row",
        GOOD,
        ("split.test (1970-01-01T00:16:40", "after the last interaction (1970-01-01T00:00:03"),
        TEMPORAL | {"split": {"kind": "temporal", "validation": 2.0, "test": 1000.0}},
        exit_code=2,
    ),
    Case(
        "no column for a leave-one-out split",
        GOOD.replace(",t,", ",created_at,"),
        ("needs `time` or `order`", "--time COLUMN or --order", "log.csv has created_at;"),
        {"order": None},
        exit_code=2,
    ),
    Case(
        "no column for a temporal split",
        GOOD.replace(",t,", ",when,"),
        ("temporal split needs `time`", "--time COLUMN", "log.csv has when"),
        {"order": None, "split": {"kind": "temporal"}},
        exit_code=2,
    ),
    Case(
        "no likely column for a leave-one-out split",
        GOOD.replace(",t,", ",x,"),
        ("needs `time` or `order`", "the other columns x, w;"),
        {"order": None},
        exit_code=2,
    ),
    Case(
        "time of a wrong type",
        table_of(t=[True, False, True, True]),
        ("'t'", "Boolean", "a date, a number or text"),
        TEMPORAL,
        file="log.parquet",
    ),
    Case(
        "null id in parquet",
        table_of(item_id=[1, None, 3, None]),
        ("'item_id'", "2 empty values", "row 2 of", "log.parquet"),
        file="log.parquet",
    ),
    Case("unmapped role", GOOD, ("'t'", "'0' (4 rows)", "split.roles"), COLUMN),
    Case(
        "null role",
        table_of(t=["train", "test", None, "train"]),
        ("'t'", "1 empty values", "row 3", "split.drop_unassigned"),
        COLUMN,
        file="log.parquet",
    ),
    Case(
        "nothing to train on",
        table_of(t=["test"] * 4),
        ("log.parquet", "has no training interaction"),
        COLUMN,
        file="log.parquet",
    ),
    Case(
        "nothing held out",
        table_of(t=["train"] * 4),
        ("log.parquet", "has no validation or test interaction"),
        COLUMN,
        file="log.parquet",
    ),
    Case(
        "test items never trained, dropped",
        table_of(t=["train", "train", "test", "train"]),
        ("log.parquet", "all 1 test targets", "without training interactions"),
        {"order": None, "split": {"kind": "column", "column": "t", "unseen": "drop"}},
        file="log.parquet",
    ),
    Case(
        "one user",
        table_of(user_id=[7] * 4),
        ("log.parquet", "only one user", "(7)", "right column"),
        file="log.parquet",
    ),
    Case(
        "one item",
        table_of(item_id=["a"] * 4),
        ("log.parquet", "only one item", "('a')"),
        file="log.parquet",
    ),
    Case("everything filtered", GOOD, ("log.csv", "k_core drops the last 16"), {"k_core": 50}),
    Case(
        "every rating low",
        GOOD,
        ("log.csv", "low_rating drops 16 rows", "min_rating"),
        {"rating": "w", "min_rating": 5},
    ),
    Case(
        "cuts the wrong way round",
        GOOD,
        ("split.validation", "must be before"),
        TEMPORAL | {"split": {"kind": "temporal", "validation": 0.9, "test": 0.1}},
        exit_code=2,
    ),
    Case(
        "cut that is not a date",
        GOOD,
        ("'someday'", "ISO date"),
        TEMPORAL | {"split": {"kind": "temporal", "validation": "someday"}},
        exit_code=2,
    ),
    Case(
        "item table missing", GOOD, ("films.csv does not exist",), {"items": {"path": "films.csv"}}
    ),
    Case(
        "user table missing",
        GOOD,
        ("users.csv does not exist",),
        {"users": {"path": "users.csv", "attributes": ["age"]}},
    ),
    Case(
        "recbole header without types",
        GOOD.replace(",", "\t"),
        ("log.inter", "'user_id'", "name:type", "tsv"),
        file="log.inter",
    ),
    Case(
        "movielens line cut short",
        "1::2::3::4\n1::3\n",
        ("ratings.dat: line 2 has 2 fields, not 4",),
        {"order": "timestamp"},
        file="ratings.dat",
    ),
    Case("dat of unknown columns", "1::2::3\n", ("log.dat", "header"), file="log.dat"),
    Case(
        "unset variable", None, ("$CANDID_NOWHERE", "not set"), {"interactions": "$CANDID_NOWHERE"}
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_without_output(tmp_path, case):
    path = tmp_path / case.file
    if isinstance(case.content, pl.DataFrame):
        case.content.write_parquet(path)
    elif case.content is not None:
        data = case.content if isinstance(case.content, bytes) else case.content.encode()
        path.write_bytes(data)
    config = DataConfig.model_validate(
        {"interactions": str(path), "order": "t"} | case.settings, strict=False
    )
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CandidError) as caught:
        prepare_folder(config, tmp_path / "out")
    message = str(caught.value)
    for part in case.parts:
        assert part in message, message
    assert "\n" not in message
    assert caught.value.exit_code == case.exit_code
    assert sorted(tmp_path.iterdir()) == before


def test_folder_without_data_or_with_two_formats_is_refused(tmp_path):
    config = DataConfig(interactions=str(tmp_path), order="t")
    with pytest.raises(CandidError, match="has no data files"):
        prepare_folder(config, tmp_path / "out")
    (tmp_path / "a.csv").write_text(GOOD)
    table_of().write_parquet(tmp_path / "b.parquet")
    with pytest.raises(CandidError, match=r"several formats \(csv, parquet\)"):
        prepare_folder(config, tmp_path / "out")


def test_files_with_different_types_are_refused(tmp_path):
    table_of().write_parquet(tmp_path / "a.parquet")
    table_of(user_id=["a", "b", "c", "d"]).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(CandidError, match=r"'user_id' is String in .*b\.parquet and Int64 in"):
        prepare_folder(DataConfig(interactions=str(tmp_path), order="t"), tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ({"item_id": [1, 1], "title": ["a", "b"]}, "lists item 1 more than once"),
        ({"item_id": ["x", "y"], "title": ["a", "b"]}, "no row for any item"),
        ({"item_id": [1.5, 2.0], "title": ["a", "b"]}, "'item_id' .* row 1 of .* whole numbers"),
        ({"item_id": [True, False], "title": ["a", "b"]}, "'item_id' of .* must be int.* got Bool"),
        ({"item_id": [1, 2], "title": [["a"], ["b"]]}, "'title' of .* must be text, got List"),
        ({"item_id": [1, 2], "titel": ["a", "b"]}, "has no column 'title': did you mean 'titel'"),
    ],
)
def test_bad_item_table_is_refused(tmp_path, rows, parts):
    (tmp_path / "log.csv").write_text(GOOD)
    pl.DataFrame(rows).write_parquet(tmp_path / "items.parquet")
    config = DataConfig(
        interactions=str(tmp_path / "log.csv"),
        order="t",
        items={"path": str(tmp_path / "items.parquet")},
    )
    with pytest.raises(CandidError, match=parts) as caught:
        prepare_folder(config, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert "items.parquet" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ({"user_id": [1, 1], "age": [3, 4]}, "lists user 1 more than once"),
        ({"user_id": ["x", "y"], "age": [3, 4]}, "no row for any user .* 'user_id'"),
        ({"user_id": [1.0, 2.5], "age": [3, 4]}, "'user_id' .* row 2 of .* whole numbers"),
        ({"user_id": [[1], [2]], "age": [3, 4]}, "'user_id' of .* must be integer.* got List"),
        ({"user_id": [1, 2], "ages": [3, 4]}, "has no column 'age': did you mean 'ages'"),
        ({"uid": [1, 2], "age": [3, 4]}, "has no column 'user_id'"),
        ({"user_id": [1, 2], "age": [b"3", b"4"]}, "'age' of .* must be numbers.* got Binary"),
        (
            {"user_id": [1, 2], "age": [[b"3"], []]},
            r"'age' of .* got List\(Binary\)",
        ),
        (
            {"user_id": [1, 2], "age": [{"in": [b"3"]}, None]},
            "'age' of .* got Struct",
        ),
    ],
)
def test_bad_user_table_is_refused(tmp_path, rows, parts):
    (tmp_path / "log.csv").write_text(GOOD)
    pl.DataFrame(rows).write_parquet(tmp_path / "users.parquet")
    users = {"path": str(tmp_path / "users.parquet"), "attributes": ["age"]}
    config = DataConfig.model_validate(
        {"interactions": str(tmp_path / "log.csv"), "order": "t", "users": users}, strict=False
    )
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CandidError, match=parts) as caught:
        prepare_folder(config, tmp_path / "out")
    assert caught.value.exit_code == 3
    assert "users.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("users.csv", "user_id,age\n1,20\n2\n", "users.csv: line 3 has 1 fields"),
        ("users.dat", "1::F::20::4::z\n2::M\n", "users.dat: line 2 has 2 fields, not 5"),
        ("users.user", "user_id\tage\n1\t20\n", "users.user: column 'user_id' of the header"),
        ("users.csv", "", "users.csv is empty"),
    ],
)
def test_bad_user_table_of_text_is_refused(tmp_path, file, content, parts):
    (tmp_path / "log.csv").write_text(GOOD)
    (tmp_path / file).write_text(content)
    users = {"path": str(tmp_path / file), "attributes": ["age"]}
    config = DataConfig.model_validate(
        {"interactions": str(tmp_path / "log.csv"), "order": "t", "users": users}, strict=False
    )
    with pytest.raises(CandidError, match=parts) as caught:
        prepare_folder(config, tmp_path / "out")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("other", [["20"], [[20]], [None]])
def test_files_of_a_user_table_with_different_types_are_refused(tmp_path, other):
    (tmp_path / "log.csv").write_text(GOOD)
    users = tmp_path / "users"
    users.mkdir()
    pl.DataFrame({"user_id": [1], "age": [20]}).write_parquet(users / "a.parquet")
    pl.DataFrame({"user_id": [2], "age": other}).write_parquet(users / "b.parquet")
    table = {"path": str(users), "attributes": ["age"]}
    config = DataConfig.model_validate(
        {"interactions": str(tmp_path / "log.csv"), "order": "t", "users": table}, strict=False
    )
    with pytest.raises(CandidError, match=r"'age' is .* in .*b\.parquet and Int64 in .*a\.parquet"):
        prepare_folder(config, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"split": {"kind": "column"}}, "needs split.column"),
        ({"order": "t", "split": {"column": "c"}}, "needs split.column"),
        ({"order": "t", "explode": ("x",)}, "`explode` names 'x'"),
        ({"order": "t", "min_rating": 3}, "need each other"),
        ({"order": "t", "items": {"path": "x", "attributes": ["title"]}}, "distinct"),
        ({"order": "t", "users": {"path": "x"}}, "users.attributes is empty"),
        ({"order": "t", "users": {"path": "x", "attributes": ["source_id"]}}, "distinct"),
        ({"order": "t", "users": {"path": "x", "attributes": ["a", "a"]}}, "distinct"),
    ],
)
def test_contradictory_settings_are_a_config_error(settings, parts):
    with pytest.raises(ConfigError, match=f"^DataConfig: .*{parts}"):
        DataConfig(**{"interactions": "x"} | settings)
