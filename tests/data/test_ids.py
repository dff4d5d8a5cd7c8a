"""Ids that are kept from an earlier dataset, over many nights."""

import numpy as np
import polars as pl
import pytest

from candid.data import DataConfig, SplitConfig, open_dataset, prepare, prepare_folder
from candid.errors import ArtifactError, DataError

COLUMNS = ("user_id", "item_id", "t")


def write(path, rows):
    file = path.with_suffix(".parquet")
    pl.DataFrame(rows, schema=list(COLUMNS), orient="row").write_parquet(file)
    return str(file)


def config(path, **settings):
    return DataConfig(interactions=str(path), time="t", **settings)


def rows_by_source_id(dataset):
    """Every interaction in source ids, with its role, in order of users and of use."""
    owners = np.repeat(np.arange(dataset.num_users), np.diff(dataset.user_offsets))
    frame = pl.DataFrame(
        {
            "user": dataset.users["source_id"].gather(owners),
            "item": dataset.items["source_id"].gather(np.asarray(dataset.item_ids)),
            "role": np.asarray(dataset.roles),
            "time": np.asarray(dataset.timestamps),
        }
    )
    return frame.sort("user", maintain_order=True)


def random_rows(rng, *, text):
    """Interactions of a random set of users with a random set of items."""
    users, items = rng.choice(60, 30, replace=False), rng.choice(80, 40, replace=False)
    rows = [
        (int(user) - 20, int(item) * 7, step)
        for user in users
        for step, item in enumerate(rng.choice(items, 5, replace=False))
    ]
    return [(f"u{u}", f"i{i}", t) for u, i, t in rows] if text else rows


@pytest.mark.parametrize("text", [False, True], ids=["integers", "text"])
@pytest.mark.parametrize("in_place", [False, True], ids=["new folder", "same folder"])
def test_ids_are_stable_over_ten_nights(tmp_path, text, in_place):
    rng = np.random.default_rng(1)
    known = {"users": [], "items": []}
    before = tmp_path / "data"
    for night in range(10):
        log = write(tmp_path / f"log{night}", random_rows(rng, text=text))
        out = tmp_path / "data" if in_place else tmp_path / f"data{night}"
        first = night == 0 and not in_place
        ids_from = None if first else str(before)
        dataset = prepare_folder(config(log, ids_from=ids_from), out).dataset
        without = prepare_folder(config(log), tmp_path / f"plain{night}").dataset
        for kind, ids in known.items():
            now = getattr(dataset, kind)["source_id"].to_list()
            present = set(getattr(without, kind)["source_id"])
            # Earlier ids are a prefix, and new ones follow in ascending order.
            assert now == ids + sorted(present - set(ids))
            known[kind] = now
        assert rows_by_source_id(dataset).equals(rows_by_source_id(without))
        before = out


def test_report_counts_kept_new_and_retired_ids(tmp_path):
    first = write(tmp_path / "1", [(u, i, t) for u in (1, 2) for t, i in enumerate((5, 6, 7))])
    second = write(tmp_path / "2", [(u, i, t) for u in (0, 2) for t, i in enumerate((6, 7, 9, 4))])
    earlier = prepare_folder(config(first), tmp_path / "a")
    assert earlier.report["ids_from"] is None
    result = prepare_folder(config(second, ids_from=str(tmp_path / "a")), tmp_path / "b")
    assert result.report["ids_from"] == {
        "fingerprint": earlier.report["fingerprint"],
        "users": {"kept": 1, "new": 1, "retired": 1},
        "items": {"kept": 2, "new": 2, "retired": 1},
    }
    assert result.dataset.users["source_id"].to_list() == [1, 2, 0]
    assert result.dataset.items["source_id"].to_list() == [5, 6, 7, 4, 9]
    assert np.diff(result.dataset.user_offsets).tolist() == [0, 4, 4]


def test_up_to_date_follows_the_earlier_dataset(tmp_path):
    rows = [(u, i, t) for u in (1, 2) for t, i in enumerate((5, 6, 7))]
    first, other = write(tmp_path / "1", rows), write(tmp_path / "2", [(9, 4, 1), *rows])
    prepare_folder(config(first), tmp_path / "a")
    today = config(first, ids_from=str(tmp_path / "a"))
    assert not prepare_folder(today, tmp_path / "b").up_to_date
    assert prepare_folder(today, tmp_path / "b").up_to_date
    prepare_folder(config(other), tmp_path / "a")
    lines = []
    assert not prepare_folder(today, tmp_path / "b", progress=lines.append).up_to_date
    assert "(ids_from) has changed" in lines[0]
    in_place = config(first, ids_from=str(tmp_path / "c"))
    assert not prepare_folder(in_place, tmp_path / "c", progress=lines.append).up_to_date
    assert any("has no dataset yet, so all ids are new" in line for line in lines)
    assert prepare_folder(in_place, tmp_path / "c").up_to_date


def test_negatives_and_tables_follow_the_kept_ids(tmp_path):
    log = tmp_path / "log.parquet"
    rows = {"user_id": [1] * 3 + [2] * 3, "item_id": [5, 6, 7, 7, 6, 5], "t": list(range(6))}
    pl.DataFrame({**rows, "shown": [[6], [], [5], [], [6, 5], []]}).write_parquet(log)
    titles = tmp_path / "items.csv"
    titles.write_text("item_id,title\n5,five\n6,six\n7,seven\n")
    earlier = write(tmp_path / "earlier", [(2, 7, 1), (2, 9, 2), (3, 5, 3), (3, 7, 4), (3, 9, 5)])
    prepare_folder(config(earlier), tmp_path / "a")
    settings = {"negatives": "shown", "items": {"path": str(titles)}}
    dataset = prepare_folder(
        config(log, ids_from=str(tmp_path / "a"), **settings), tmp_path / "b"
    ).dataset
    assert dataset.items.rows() == [(5, "five"), (7, "seven"), (9, None), (6, "six")]
    source = dataset.items["source_id"].to_numpy()
    shown = np.split(source[dataset.negative_ids], dataset.negative_offsets[1:-1])
    # Ids 2, 3 and 1: user 2 first, then user 3 without rows, then user 1.
    assert [list(ids) for ids in shown] == [[], [6, 5], [], [6], [], [5]]


@pytest.mark.parametrize("kind", ["user", "item"])
def test_ids_of_another_type_are_refused(tmp_path, kind):
    rows = [(u, i, t) for u in (1, 2) for t, i in enumerate((5, 6, 7))]
    position = COLUMNS.index(f"{kind}_id")
    text = [tuple(f"a{v}" if n == position else v for n, v in enumerate(row)) for row in rows]
    prepare_folder(config(write(tmp_path / "1", rows)), tmp_path / "a")
    log = write(tmp_path / "2", text)
    with pytest.raises(
        DataError, match=f"{kind} ids are text, such as 'a.', and those of .* are integers"
    ):
        prepare_folder(config(log, ids_from=str(tmp_path / "a")), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_night_with_numbers_alone_keeps_text_ids(tmp_path):
    first = write(tmp_path / "1", [(u, i, i) for u in ("7", "u") for i in (5, 6, 7)])
    second = write(tmp_path / "2", [(u, i, i) for u in (7, 10, 9) for i in (5, 6, 7)])
    prepare_folder(config(first), tmp_path / "a")
    result = prepare_folder(config(second, ids_from=str(tmp_path / "a")), tmp_path / "b")
    assert result.dataset.users["source_id"].to_list() == ["7", "u", "10", "9"]
    assert result.report["ids_from"]["users"] == {"kept": 1, "new": 2, "retired": 1}
    assert np.diff(result.dataset.user_offsets).tolist() == [3, 0, 3, 3]


def test_integers_that_outgrow_int64_keep_their_ids(tmp_path):
    small = [(u, i, t) for u in (1, 2) for t, i in enumerate((5, 6, 7))]
    prepare_folder(config(write(tmp_path / "1", small)), tmp_path / "a")
    frame = pl.DataFrame(
        [(u, i, t) for u in (1, 2) for t, i in enumerate((5, 6, 2**63 + 1))],
        schema={"user_id": pl.Int64, "item_id": pl.UInt64, "t": pl.Int64},
        orient="row",
    )
    frame.write_parquet(tmp_path / "2.parquet")
    log = config(tmp_path / "2.parquet", ids_from=str(tmp_path / "a"))
    dataset = prepare_folder(log, tmp_path / "b").dataset
    assert dataset.items["source_id"].to_list() == [5, 6, 7, 2**63 + 1]


def test_ids_from_something_else_is_refused(tmp_path):
    log = write(tmp_path / "1", [(u, i, t) for u in (1, 2) for t, i in enumerate((5, 6, 7))])
    with pytest.raises(ArtifactError, match="is not a folder with a prepared dataset"):
        prepare_folder(config(log, ids_from=str(tmp_path / "missing")), tmp_path / "b")


def test_temporal_split_keeps_its_roles(tmp_path):
    rng = np.random.default_rng(3)
    logs = [write(tmp_path / str(n), random_rows(rng, text=False)) for n in range(2)]
    split = SplitConfig(kind="temporal", validation=2, test=4)
    prepare_folder(config(logs[0], split=split), tmp_path / "a")
    kept = config(logs[1], split=split, ids_from=str(tmp_path / "a"))
    assert rows_by_source_id(prepare_folder(kept, tmp_path / "b").dataset).equals(
        rows_by_source_id(prepare_folder(config(logs[1], split=split), tmp_path / "c").dataset)
    )
    assert open_dataset(tmp_path / "b", verify=True).num_items > 40


@pytest.mark.parametrize("is_saved", [False, True], ids=["in memory", "on disk"])
def test_ids_are_those_of_an_open_dataset(tmp_path, is_saved):
    rng = np.random.default_rng(2)
    columns = {"user": "u", "item": "i", "time": "t"}

    def table():
        rows = random_rows(rng, text=True)
        return pl.DataFrame(rows, schema=["u", "i", "t"], orient="row")

    earlier = prepare(table(), **columns)
    folder = earlier.save(tmp_path / "earlier").path
    now = table()
    expected = prepare(now, ids_from=folder, **columns)
    given = open_dataset(folder) if is_saved else earlier
    dataset = prepare(now, ids_from=given, **columns)
    assert dataset.fingerprint == expected.fingerprint
    assert dataset.items["source_id"][: earlier.num_items].equals(earlier.items["source_id"])
    assert dataset.manifest["ids_from"] == expected.manifest["ids_from"]
    log = write(tmp_path / "log", now.rows())
    lines = []
    for _ in range(2):
        stored = prepare(
            str(log), user="user_id", item="item_id", time="t", ids_from=given,
            out=tmp_path / "data", progress=lines.append,
        )  # fmt: skip
        assert stored.fingerprint == expected.fingerprint
        is_written = bool(lines)
        lines.clear()
    assert not is_written, "a second call with the same ids has nothing to do"
    other = prepare(table(), **columns)
    prepare(
        str(log), user="user_id", item="item_id", time="t", ids_from=other, out=tmp_path / "data",
        progress=lines.append,
    )  # fmt: skip
    assert "ids_from" in lines[0]
    numbers = pl.DataFrame({"u": [1, 1, 2, 2], "i": [1, 2, 1, 2], "t": [1, 2, 3, 4]})
    with pytest.raises(DataError, match=r"\(ids_from\) are text, so that no id can be kept"):
        prepare(numbers, ids_from=given, split="none", **columns)
