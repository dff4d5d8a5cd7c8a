import json
import os

import hypothesis.strategies as st
import polars as pl
import pytest
from hypothesis import given, settings

from candid.checksums import write_sealed_json
from candid.data import (
    DataConfig,
    ItemTableConfig,
    Role,
    SplitConfig,
    held_out,
    open_dataset,
    prepare_folder,
)
from candid.data.dataset_files import content_fingerprint
from candid.errors import ArtifactError, DataError


def log(folder, rows, columns=("user_id", "item_id", "t")):
    path = folder / "log.parquet"
    pl.DataFrame(rows, schema=list(columns), orient="row").write_parquet(path)
    return str(path)


ORDERS = {1: (10, 20, 30, 40), 2: (20, 30, 40, 10), 3: (40, 10, 20, 30)}
THREE = [
    (user, item, time)
    for user, items in ORDERS.items()
    for item, time in zip(items, (10, 20, 30, 40), strict=True)
]


def test_manifest_reports_the_preparation(tmp_path):
    rows = [*THREE, (9, 50, 1)]
    result = prepare_folder(
        DataConfig(interactions=log(tmp_path, rows), order="t"), tmp_path / "out"
    )
    assert not result.up_to_date
    on_disk = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert on_disk == result.report == result.dataset.manifest
    assert on_disk["counts"] == {
        "users": 4,
        "items": 5,
        "interactions": 13,
        "train": 7,
        "history": 0,
        "validation": 3,
        "test": 3,
        "train_users": 4,
        "validation_users": 3,
        "test_users": 3,
        "items_trained": 5,
    }
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.parquet", "out"]


def test_second_run_is_up_to_date_until_something_changes(tmp_path):
    config = DataConfig(interactions=log(tmp_path, THREE), time="t", k_core=2, split=temporal())
    out = tmp_path / "out"
    first = prepare_folder(config, out)
    again = prepare_folder(config, out)
    assert again.up_to_date
    assert again.report == first.report
    assert not prepare_folder(config, out, force=True).up_to_date
    other = prepare_folder(config.model_copy(update={"k_core": 3}), out)
    assert not other.up_to_date
    assert other.report["config"]["k_core"] == 3
    os.utime(tmp_path / "log.parquet", ns=(1, 1))
    assert not prepare_folder(config.model_copy(update={"k_core": 3}), out).up_to_date
    (out / "roles.npy").write_bytes((out / "roles.npy").read_bytes()[:-1])
    assert not prepare_folder(config.model_copy(update={"k_core": 3}), out).up_to_date


def temporal(**settings):
    return SplitConfig(kind="temporal", validation=30, test=40, unseen="keep", **settings)


def test_two_runs_write_the_same_bytes(tmp_path):
    config = DataConfig(
        interactions=log(tmp_path, THREE), order="t", split=SplitConfig(validation_users=2, seed=5)
    )
    for name in ("a", "b"):
        prepare_folder(config, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("make", ["folder", "file", "foreign manifest", "nested manifest"])
def test_foreign_folder_is_refused_and_unchanged(tmp_path, make):
    out = tmp_path / "out"
    if make == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
        if make == "foreign manifest":
            (out / "manifest.json").write_text('{"kind": "other", "files": {}}')
        if make == "nested manifest":
            (out / "manifest.json").write_text("[" * 100_000)
    config = DataConfig(interactions=log(tmp_path, THREE), order="t")
    with pytest.raises(ArtifactError, match="not a prepared dataset"):
        prepare_folder(config, out, force=True)
    assert (out if make == "file" else out / "thesis.txt").read_text() == "mine"


def test_foreign_file_inside_a_dataset_is_never_deleted(tmp_path):
    config = DataConfig(interactions=log(tmp_path, THREE), order="t")
    prepare_folder(config, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        prepare_folder(config, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_prepare_accepts_the_folder_as_str_and_its_repr_is_short(tmp_path):
    config = DataConfig(interactions=log(tmp_path, THREE), order="t")
    result = prepare_folder(config, str(tmp_path / "out"))
    assert (tmp_path / "out" / "manifest.json").exists()
    assert len(repr(result)) < 300


def test_empty_folder_can_be_used(tmp_path):
    (tmp_path / "out").mkdir()
    config = DataConfig(interactions=log(tmp_path, THREE), order="t")
    assert prepare_folder(config, tmp_path / "out").dataset.num_users == 3


def test_filters_and_their_counts(tmp_path):
    rows = [
        *((user, item, order, 5.0) for user, item, order in THREE),
        (1, 10, 99, 5.0),  # repeated
        (2, 20, 99, 1.0),  # low rating
        (3, None, 99, 5.0),  # null
        (4, 10, 1, 5.0),  # user below the core
        (1, 77, 1, 5.0),  # item below the core
    ]
    config = DataConfig(
        interactions=log(tmp_path, rows, ("user_id", "item_id", "t", "stars")),
        order="t",
        rating="stars",
        min_rating=2,
        drop_nulls=True,
        deduplicate="first",
        user_core=2,
        item_core=2,
    )
    report = prepare_folder(config, tmp_path / "out").report
    assert report["rows_read"] == 17
    assert report["dropped"] == {"nulls": 1, "low_rating": 1, "repeated": 1, "k_core": 2}
    assert report["counts"]["interactions"] == 12


@pytest.mark.parametrize(("keep", "last"), [("first", 30), ("last", 10)])
def test_deduplicate_keeps_the_first_or_last_in_time(tmp_path, keep, last):
    rows = [(1, 10, 9), (1, 20, 2), (1, 10, 1), (1, 30, 3), (2, 10, 1), (3, 20, 2), (4, 30, 3)]
    config = DataConfig(
        interactions=log(tmp_path, rows), order="t", deduplicate=keep, split=SplitConfig()
    )
    dataset = prepare_folder(config, tmp_path / "out").dataset
    own = dataset.items["source_id"].gather(dataset.item_ids[: dataset.user_offsets[1]]).to_list()
    assert sorted(own) == [10, 20, 30]
    assert own[-1] == last


def test_min_history_drops_users(tmp_path):
    config = DataConfig(interactions=log(tmp_path, [*THREE, (4, 10, 1)]), order="t", min_history=4)
    result = prepare_folder(config, tmp_path / "out")
    assert result.dataset.users["source_id"].to_list() == [1, 2, 3]
    assert result.report["dropped"] == {"min_history": 1}


UNSEEN = [*THREE, (1, 99, 45), (8, 10, 41)]  # item 99 and user 8 appear in the test window only


def test_unseen_targets_are_counted_and_kept(tmp_path):
    config = DataConfig(interactions=log(tmp_path, UNSEEN), time="t", split=temporal())
    report = prepare_folder(config, tmp_path / "out").report
    assert report["split"]["unseen"]["test"] == {
        "targets": 5,
        "targets_of_unseen_items": 1,
        "unseen_items": 1,
        "targets_of_unseen_users": 1,
        "unseen_users": 1,
    }
    assert report["counts"]["items"] == 5


def test_unseen_targets_are_dropped_with_their_users_and_items(tmp_path):
    split = temporal().model_copy(update={"unseen": "drop"})
    config = DataConfig(interactions=log(tmp_path, UNSEEN), time="t", split=split)
    result = prepare_folder(config, tmp_path / "out")
    assert result.report["dropped"] == {"unseen": 2}
    assert result.dataset.users["source_id"].to_list() == [1, 2, 3]
    assert result.dataset.items["source_id"].to_list() == [10, 20, 30, 40]


def test_test_split_of_new_items_only_is_kept(tmp_path):
    rows = [row for row in THREE if row[2] < 40] + [(1, 98, 45), (2, 99, 46)]
    config = DataConfig(interactions=log(tmp_path, rows), time="t", split=temporal())
    report = prepare_folder(config, tmp_path / "out").report
    assert report["split"]["unseen"]["test"]["targets_of_unseen_items"] == 2
    assert report["counts"]["test"] == 2
    split = temporal().model_copy(update={"unseen": "drop"})
    dropped = config.model_copy(update={"split": split})
    with pytest.raises(DataError, match=r'attributes, set split\.unseen = "keep".*"cold"'):
        prepare_folder(dropped, tmp_path / "other")


def test_unseen_targets_stop_with_error(tmp_path):
    split = temporal().model_copy(update={"unseen": "error"})
    config = DataConfig(interactions=log(tmp_path, UNSEEN), time="t", split=split)
    with pytest.raises(DataError, match=r"held-out interactions.*split\.unseen"):
        prepare_folder(config, tmp_path / "out")


def test_column_split_sorts_by_role_and_counts_rows_out_of_time_order(tmp_path):
    rows = [(1, 10, 5, "train"), (1, 20, 1, "test"), (1, 30, 3, "later"), (2, 20, 1, "train")]
    split = SplitConfig(
        kind="column", column="part", roles={"train": "train", "test": "test", "later": "history"}
    )
    config = DataConfig(
        interactions=log(tmp_path, rows, ("user_id", "item_id", "t", "part")),
        order="t",
        split=split,
    )
    result = prepare_folder(config, tmp_path / "out")
    assert result.dataset.roles.tolist() == [Role.TRAIN, Role.HISTORY, Role.TEST, Role.TRAIN]
    assert result.report["split"]["out_of_order"] == 2
    question = held_out(result.dataset, Role.TEST)
    assert question.history_stop.tolist() == [2]


def test_rows_without_role_are_dropped_on_request(tmp_path):
    rows = [(1, 10, "train"), (1, 20, "test"), (2, 20, "train"), (2, 30, None)]
    split = SplitConfig(kind="column", column="part", drop_unassigned=True)
    config = DataConfig(
        interactions=log(tmp_path, rows, ("user_id", "item_id", "part")), split=split
    )
    result = prepare_folder(config, tmp_path / "out")
    assert result.report["dropped"] == {"unassigned": 1}
    assert result.dataset.items["source_id"].to_list() == [10, 20]
    assert result.dataset.timestamps is None


def test_nulls_of_order_in_filtered_rows_are_ignored(tmp_path):
    config = DataConfig(interactions=log(tmp_path, [*THREE, (1, 77, None)]), order="t", item_core=2)
    assert prepare_folder(config, tmp_path / "out").report["dropped"] == {"k_core": 1}


def test_item_table_gives_titles(tmp_path):
    pl.DataFrame(
        {"id": ["10", "20", "x"], "name": ["Ten", "Twenty", "-"], "year": [1, 2, 3]}
    ).write_csv(tmp_path / "items.csv")
    items = ItemTableConfig(
        path=str(tmp_path / "items.csv"), item="id", title="name", attributes=("year",)
    )
    config = DataConfig(interactions=log(tmp_path, THREE), order="t", items=items)
    result = prepare_folder(config, tmp_path / "out")
    assert result.dataset.items["title"].to_list() == ["Ten", "Twenty", None, None]
    assert result.report["items_without_row"] == 2


def test_the_reason_names_the_setting_of_the_split_alone(tmp_path):
    path = log(tmp_path, THREE)
    split = {"kind": "temporal", "validation": 25.0, "test": 35.0}
    config = DataConfig(interactions=path, time="t", split=split)
    prepare_folder(config, tmp_path / "out")
    lines: list[str] = []
    later = DataConfig(interactions=path, time="t", split=split | {"validation": 32.0})
    prepare_folder(later, tmp_path / "out", progress=lines.append)
    assert lines[0].endswith("it was prepared with data.split.validation = 25.0, not 32.0")
    prepare_folder(DataConfig(interactions=path, time="t"), tmp_path / "out", progress=lines.append)
    reason = "it was prepared with data.split.kind = 'temporal', not 'leave-one-out'"
    assert [line for line in lines if line.endswith(reason)]


def test_windows_of_an_earlier_version_hold_interactions(tmp_path):
    """Its settings have the unit "user", which it did not read."""
    split = {"kind": "temporal", "validation": 25.0, "test": 35.0}
    rows = [*THREE, (7, 10, 5), (7, 20, 6)]  # user 7 ends before validation
    config = DataConfig(interactions=log(tmp_path, rows), time="t", split=split)
    manifest = prepare_folder(config, tmp_path / "out").report
    manifest["config"]["split"]["unit"] = "user"
    del manifest["split"]["unit"]
    write_sealed_json(tmp_path / "out" / "manifest.json", manifest)
    assert open_dataset(tmp_path / "out").manifest["split"]["unit"] == "interaction"
    assert prepare_folder(config, tmp_path / "out").up_to_date
    by_user = config.model_copy(update={"split": SplitConfig(**split, unit="user")})
    assert not prepare_folder(by_user, tmp_path / "out").up_to_date


def test_a_failed_preparation_does_not_say_that_it_replaces(tmp_path):
    path = log(tmp_path, THREE)
    prepare_folder(DataConfig(interactions=path, time="t"), tmp_path / "out")
    lines: list[str] = []
    config = DataConfig(interactions=path, time="t", k_core=50)
    with pytest.raises(DataError, match="k_core drops"):
        prepare_folder(config, tmp_path / "out", progress=lines.append)
    assert not [line for line in lines if "replac" in line]


def test_a_folder_that_cannot_be_written_is_refused_before_reading(tmp_path):
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    config = DataConfig(interactions=log(tmp_path, THREE), time="t")
    with pytest.raises(ArtifactError, match=r"cannot write .*file/out: Not a directory"):
        prepare_folder(config, tmp_path / "file" / "out", progress=lines.append)
    assert not lines
    result = prepare_folder(config, tmp_path / "new" / "folder" / "out")
    assert not result.up_to_date


def test_a_final_slash_of_ids_from_changes_nothing(tmp_path):
    path = log(tmp_path, THREE)
    prepare_folder(DataConfig(interactions=path, time="t"), tmp_path / "earlier")
    for number, end in enumerate(["", "/", "/."]):
        config = DataConfig(interactions=path, time="t", ids_from=f"{tmp_path / 'earlier'}{end}")
        assert prepare_folder(config, tmp_path / "out").up_to_date == (number > 0)


def test_replacing_a_dataset_reports_the_reason(tmp_path):
    config = DataConfig(interactions=log(tmp_path, THREE), order="t")
    lines: list[str] = []
    prepare_folder(config, tmp_path / "out", progress=lines.append)
    assert lines[-1] == f"writing {tmp_path / 'out'}"
    lines.clear()
    prepare_folder(config.model_copy(update={"k_core": 2}), tmp_path / "out", progress=lines.append)
    assert lines[0].endswith("out again: it was prepared with data.k_core = 0, not 2")
    assert lines[-1] == f"replacing {tmp_path / 'out'}"
    log(tmp_path, [*THREE, (1, 10, 50)])
    lines.clear()
    prepare_folder(config.model_copy(update={"k_core": 2}), tmp_path / "out", progress=lines.append)
    assert lines[0].endswith("out again: its files have changed")


@pytest.mark.parametrize("name", ["items.csv", "items.parquet"])
def test_empty_title_is_null(tmp_path, name):
    table = pl.DataFrame({"item_id": [10, 20, 30], "title": ["Ten", "", "  "]})
    write = table.write_csv if name.endswith("csv") else table.write_parquet
    write(tmp_path / name)
    items = ItemTableConfig(path=str(tmp_path / name))
    config = DataConfig(interactions=log(tmp_path, THREE), order="t", items=items)
    titles = prepare_folder(config, tmp_path / "out").dataset.items["title"].to_list()
    assert titles[:3] == ["Ten", None, None]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=8, max_size=40),
    st.integers(0, 3),
)
def test_prepared_rows_equal_those_of_the_source(tmp_path_factory, pairs, k):
    """Every row that passes the filters occurs once, in order, with its own ids."""
    folder = tmp_path_factory.mktemp("case")
    rows = [(f"u{user}", item * 7, position) for position, (user, item) in enumerate(pairs)]
    config = DataConfig(interactions=log(folder, rows), order="t", k_core=k)
    remaining = list(rows)
    while True:
        left = [
            row
            for row in remaining
            if sum(o[0] == row[0] for o in remaining) >= k
            and sum(o[1] == row[1] for o in remaining) >= k
        ]
        if left == remaining:
            break
        remaining = left
    try:
        dataset = prepare_folder(config, folder / "out").dataset
    except DataError:
        users = {row[0] for row in remaining}
        lengths = [sum(row[0] == user for row in remaining) for user in users]
        trained = {
            row[1]
            for user, length in zip(users, lengths, strict=True)
            for row in [r for r in remaining if r[0] == user][
                : length - 2 if length >= 3 else length
            ]
        }
        last = [
            [r[1] for r in remaining if r[0] == user][at]
            for at in (-1, -2)
            for user, length in zip(users, lengths, strict=True)
            if length >= 3
        ]
        half = len(last) // 2
        all_unseen = any(
            part and not trained.intersection(part) for part in (last[:half], last[half:])
        )
        assert len(users) < 2 or len({r[1] for r in remaining}) < 2 or not last or all_unseen
        return
    users = dataset.users["source_id"].to_list()
    items = dataset.items["source_id"].to_list()
    pairs = [
        (users[u], items[i])
        for u in range(dataset.num_users)
        for i in dataset.item_ids[dataset.user_offsets[u] : dataset.user_offsets[u + 1]]
    ]
    assert pairs == [row[:2] for row in sorted(remaining, key=lambda row: (row[0], row[2]))]


def test_order_breaks_ties_of_time(tmp_path):
    # user, item, time, order: shuffled in the file.
    rows = [
        (1, 40, 20, 5),
        (1, 20, 10, 2),
        (1, 30, 20, 3),
        (1, 10, 10, 9),
        (2, 20, 5, 2),
        (2, 30, 5, 1),
        (2, 10, 5, 1),
        (2, 40, 4, 7),
        (3, 10, 5, 2),  # as the last row of user 2, which is not a tie
    ]
    path = log(tmp_path, rows, ("user_id", "item_id", "t", "n"))
    result = prepare_folder(DataConfig(interactions=path, time="t", order="n"), tmp_path / "out")
    dataset = result.dataset
    # By (user, time, order, row of the file).
    expected = [row[1] for row in sorted(rows, key=lambda row: (row[0], row[2], row[3]))]
    assert dataset.items["source_id"].gather(dataset.item_ids).to_list() == expected
    assert (dataset.timestamps // 10**6).tolist() == [10, 10, 20, 20, 4, 5, 5, 5, 5]
    assert result.report["tied"] == 2  # items 30 and 10 of user 2
    by_time = prepare_folder(DataConfig(interactions=path, time="t"), tmp_path / "by_time")
    assert by_time.report["tied"] == 7


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ", "date", "datetime"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_order_by_dates(tmp_path, form, suffix):
    days = pl.from_epoch(pl.Series("t", [row[2] for row in THREE]) * 86_400, "s")
    column = days if form == "datetime" else days.dt.date()
    column = column if form in ("date", "datetime") else days.dt.strftime(form)
    frame = pl.DataFrame(THREE, schema=["user_id", "item_id", "t"], orient="row")
    frame = frame.with_columns(column).sample(fraction=1, shuffle=True, seed=0)
    path = tmp_path / f"log.{suffix}"
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    dataset = prepare_folder(
        DataConfig(interactions=str(path), order="t"), tmp_path / "out"
    ).dataset
    items = dataset.items["source_id"].gather(dataset.item_ids).to_list()
    assert items == [item for user in sorted(ORDERS) for item in ORDERS[user]]
    assert dataset.timestamps is None


def test_rows_out_of_order_count_ties_of_time_by_order(tmp_path):
    rows = [
        (1, 10, 1, 1, "train"),
        (1, 20, 1, 0, "val"),
        (1, 30, 1, 5, "test"),
        (2, 10, 2, 1, "train"),
        (2, 20, 1, 9, "val"),
        (3, 10, 1, 9, "train"),
        (3, 20, 2, 1, "val"),  # later in time, although smaller in order
    ]
    path = log(tmp_path, rows, ("user_id", "item_id", "t", "n", "role"))
    split = SplitConfig(kind="column", column="role")
    config = DataConfig(interactions=path, time="t", order="n", split=split)
    # Item 20 of user 1 is earlier in order, item 20 of user 2 is earlier in time.
    assert prepare_folder(config, tmp_path / "out").report["split"]["out_of_order"] == 2


@pytest.mark.parametrize(
    ("factor", "unit"), [(1, "seconds"), (1_000, "milliseconds"), (1_000_000, "microseconds")]
)
def test_cut_is_in_the_unit_of_the_column(tmp_path, factor, unit):
    start = 1_700_000_000
    rows = [(user, item, (start + time) * factor) for user, item, time in THREE]
    split = SplitConfig(
        kind="temporal", validation=float((start + 25) * factor), test=float((start + 35) * factor)
    )
    config = DataConfig(interactions=log(tmp_path, rows), time="t", split=split)
    result = prepare_folder(config, tmp_path / "out")
    assert result.report["time"] == {
        "first": "2023-11-14T22:13:30.000000Z",
        "last": "2023-11-14T22:14:00.000000Z",
        "unit": unit,
    }
    assert [result.report["counts"][role] for role in ("train", "validation", "test")] == [6, 3, 3]


def test_small_cut_of_milliseconds_is_not_read_as_seconds(tmp_path):
    # The last row makes the unit milliseconds; the cuts alone would read as seconds.
    rows = [*THREE, (1, 50, 1_700_000_000_000)]
    split = SplitConfig(kind="temporal", validation=25.0, test=35.0)
    config = DataConfig(interactions=log(tmp_path, rows), time="t", split=split)
    counts = prepare_folder(config, tmp_path / "out").report["counts"]
    assert [counts[role] for role in ("train", "validation", "test")] == [6, 3, 4]


def test_dates_as_numbers_are_read_as_dates(tmp_path):
    rows = [(user, item, 20240100 + time) for user, item, time in THREE if time < 40]
    split = SplitConfig(kind="temporal", validation=20240115, test="2024-01-25")
    config = DataConfig(interactions=log(tmp_path, rows), time="t", split=split)
    result = prepare_folder(config, tmp_path / "out")
    assert result.report["time"] == {
        "first": "2024-01-10T00:00:00.000000Z",
        "last": "2024-01-30T00:00:00.000000Z",
        "unit": "YYYYMMDD",
    }
    assert [result.report["counts"][role] for role in ("train", "validation", "test")] == [3, 3, 3]


def test_more_rows_than_a_frame_can_number_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("candid.data.engine.MAX_ROWS", 11)
    config = DataConfig(interactions=log(tmp_path, THREE), order="t")
    expected = r'log.parquet has 12 rows, but at most 11 are prepared in memory; .* "duckdb"'
    with pytest.raises(DataError, match=expected):
        prepare_folder(config, tmp_path / "out", engine="memory")


def test_damaged_dataset_is_prepared_again(tmp_path):
    config = DataConfig(interactions=log(tmp_path, THREE), order="t")
    whole = prepare_folder(config, tmp_path / "out").dataset
    path = tmp_path / "out" / "item_ids.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    lines = []
    again = prepare_folder(config, tmp_path / "out", progress=lines.append)
    assert not again.up_to_date
    assert any("item_ids.npy differs from its checksum" in line for line in lines)
    assert content_fingerprint(*again.dataset._content()) == whole.fingerprint


def test_damaged_manifest_does_not_lose_the_ids_that_are_kept(tmp_path):
    """Treated as a missing dataset, it would have all its ids assigned anew."""
    out = tmp_path / "out"
    config = DataConfig(interactions=log(tmp_path, THREE), order="t", ids_from=str(out))
    prepare_folder(config, out)
    path = out / "manifest.json"
    path.write_text(path.read_text().replace('"counts"', '"countz"'))
    with pytest.raises(ArtifactError, match=r"manifest\.json differs from its checksum"):
        prepare_folder(config, out)
