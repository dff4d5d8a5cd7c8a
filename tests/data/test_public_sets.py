"""Public data sets: a tiny copy of each in the form in which its publisher provides it."""

import gzip
import json
import zipfile
from pathlib import Path

import polars as pl
import pytest

from candid.data import PUBLIC_SETS, DataConfig, find_public_copy, prepare_folder
from candid.errors import ConfigError, DataError, UnknownNameError

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "public_data.md"
START = 1_000_000_000
"""Time of the first interaction, in seconds."""

ROWS = [(user, item) for user in (3, 7) for item in (11, 12, 13, 14)]
"""Users and items, in order of time; the files below have them in reverse."""


def lines(form, header=None):
    """Write the rows as text with ``form``, the latest first."""
    rows = [
        form.format(user=user, item=item, second=START + n, iso=f"2001-09-09T01:46:4{n}Z", n=n)
        for n, (user, item) in enumerate(ROWS)
    ]
    return "\n".join([*([] if header is None else [header]), *reversed(rows), ""])


def reviews(user, item, time, factor):
    return "\n".join(
        json.dumps({user: f"U{u}", item: f"B{i}", time: (START + n) * factor, "text": 'a "b"'})
        for n, (u, i) in enumerate(ROWS)
    )


def yambda():
    users, items = zip(*ROWS, strict=True)
    # Seconds since the first day; the last two of a user are in the days of the split.
    times = [100, 200, 25_827_200, 25_913_600] * 2
    table = {"uid": users, "item_id": items, "timestamp": times, "is_organic": 1}
    return pl.DataFrame(table, schema_overrides={"timestamp": pl.UInt32})


def otto():
    sessions = {}
    for n, (user, item) in enumerate(ROWS):
        event = {"aid": item, "ts": 1000 * (START + n), "type": "clicks" if n % 4 else "carts"}
        sessions.setdefault(user, []).append(event)
    return "\n".join(json.dumps({"session": u, "events": e}) for u, e in sessions.items())


RATINGS_DAT = lines("{user}::{item}::4::{second}")
RATINGS_CSV = lines("{user},{item},4.5,{second}", "userId,movieId,rating,timestamp")
MOVIES_CSV = 'movieId,title,genres\n11,"Heat, the film",Crime|Drama\n12,Up,Animation\n'
FILES = {
    "ml-100k": {"u.data": lines("{user}\t{item}\t3\t{second}"), "u.item": "11|Heat (1995)|x\n"},
    "ml-1m": {
        "ratings.dat": RATINGS_DAT,
        "movies.dat": "11::Heat (1995)::Crime\n12::Am\xe9lie (2001)::Comedy\n".encode("latin-1"),
        "users.dat": "3::F::25::4::55117\n7::M::35::1::02460\n",
    },
    "ml-10m": {"ratings.dat": RATINGS_DAT, "movies.dat": "11::Heat (1995)::Crime\n"},
    "ml-20m": {"ratings.csv": RATINGS_CSV, "movies.csv": MOVIES_CSV, "tags.csv": "userId\n"},
    "ml-25m": {"ratings.csv": RATINGS_CSV, "movies.csv": MOVIES_CSV},
    "ml-32m": {"ratings.csv": RATINGS_CSV, "movies.csv": MOVIES_CSV},
    "amazon-2014": {"ratings_Beauty.csv": lines("U{user},B{item},5.0,{second}")},
    "amazon-2018": {"All_Beauty.csv": lines("B{item},U{user},5.0,{second}")},
    "amazon-2023": {
        "All_Beauty.csv": lines(
            "U{user},B{item},5.0,{second}000", "user_id,parent_asin,rating,timestamp"
        )
    },
    "yambda-50m": {"listens.parquet": yambda()},
    "yambda-500m": {"likes.parquet": yambda()},
    "yambda-5b": {"likes.parquet": yambda()},
    "otto": {"otto-recsys-train.jsonl": otto()},
    "yoochoose": {"yoochoose-clicks.dat": lines("{user},{iso},{item},0")},
    "retailrocket": {
        "events.csv": lines(
            "{second}000,{user},view,{item},", "timestamp,visitorid,event,itemid,transactionid"
        )
    },
    "diginetica": {
        "train-item-views.csv": lines(
            "{user};NA;{item};{n};2016-05-09", "sessionId;userId;itemId;timeframe;eventdate"
        )
    },
    "gowalla": {"loc-gowalla_totalCheckins.txt": lines("{user}\t{iso}\t30.2\t-97.7\t{item}")},
}
REVIEWS = {
    "amazon-2014": ("reviews_Beauty_5.json.gz", "reviewerID", "asin", "unixReviewTime", 1),
    "amazon-2018": ("All_Beauty_5.json.gz", "reviewerID", "asin", "unixReviewTime", 1),
    "amazon-2023": ("All_Beauty.jsonl.gz", "user_id", "parent_asin", "timestamp", 1000),
}
TITLES = {"ml-1m": ["Heat (1995)", "Amélie (2001)"], "ml-10m": ["Heat (1995)", None]}


def write(folder, name):
    folder.mkdir(parents=True)
    for file, content in FILES[name].items():
        if isinstance(content, pl.DataFrame):
            content.write_parquet(folder / file)
        else:
            (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def prepared(name, source, out, **settings):
    copy = find_public_copy(name, source)
    config = DataConfig(**{**copy.settings, "k_core": 0, **settings})
    return prepare_folder(config, out).dataset


def rows_of(dataset):
    users, items = (table["source_id"].to_list() for table in (dataset.users, dataset.items))
    digits = [[int(str(one).strip("UB")) for one in ids] for ids in (users, items)]
    counts = dataset.user_offsets[1:] - dataset.user_offsets[:-1]
    owners = [user for user, count in zip(digits[0], counts, strict=True) for _ in range(count)]
    return list(zip(owners, [digits[1][item] for item in dataset.item_ids], strict=True))


def test_every_set_has_a_case_and_a_line_in_the_guide():
    assert FILES.keys() == PUBLIC_SETS.keys()
    lines = GUIDE.read_text(encoding="utf-8").splitlines()
    for name, one in PUBLIC_SETS.items():
        sizes = ["-" if n is None else f"{n:,}" for n in (one.rows, one.users, one.items)]
        cells = [f"`{name}`", one.title, *sizes, one.licence, f"[page]({one.url})"]
        assert f"| {' | '.join(cells)} |" in lines


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_terms_have_a_licence_or_state_its_absence(name):
    known = ("research only", "Apache-2.0", "CC BY", "no licence", "those of the competition")
    assert PUBLIC_SETS[name].licence.startswith(known)


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_folder_is_read_in_order_of_time(tmp_path, name):
    dataset = prepared(name, write(tmp_path / "copy" / "below", name).parent, tmp_path / "out")
    assert rows_of(dataset) == ROWS
    counts = dataset.manifest["counts"]
    assert (counts["train"], counts["validation"], counts["test"]) == (4, 2, 2)
    titles = TITLES.get(name, ["Heat, the film", "Up"])
    if PUBLIC_SETS[name].files[0].items is not None:
        assert dataset.items["title"].to_list()[:2] == titles
    if name == "ml-1m":
        assert dataset.users["gender"].to_list() == ["F", "M"]
    if name == "otto":
        assert sorted(dataset.event_type_names) == ["carts", "clicks"]


@pytest.mark.parametrize("name", REVIEWS)
def test_reviews_are_read_as_the_ratings_are(tmp_path, name):
    file, user, item, time, factor = REVIEWS[name]
    with gzip.open(tmp_path / file, "wt") as stream:
        stream.write(reviews(user, item, time, factor))
    assert rows_of(prepared(name, tmp_path / file, tmp_path / "out")) == ROWS


def test_zip_archive_is_read_without_its_other_files(tmp_path):
    folder = write(tmp_path / "ml-1m", "ml-1m")
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("__MACOSX/ml-1m/ratings.dat", "x")
        for path in folder.iterdir():
            archive.write(path, f"ml-1m/{path.name}")
        archive.writestr("ml-1m/README", "terms")
    copy = find_public_copy("ml-1m", tmp_path / "ml-1m.zip")
    assert sorted(path.name for path in copy._folder.path.rglob("*.*")) == [
        "movies.dat",
        "ratings.dat",
        "users.dat",
    ]
    dataset = prepared("ml-1m", tmp_path / "ml-1m.zip", tmp_path / "out")
    assert rows_of(dataset) == ROWS
    assert dataset.items["title"].to_list()[1] == "Amélie (2001)"


def test_cut_file_is_refused_before_anything_is_written(tmp_path):
    source = write(tmp_path / "copy", "ml-1m") / "ratings.dat"
    copy = find_public_copy("ml-1m", source)
    with pytest.raises(DataError, match=r"ratings\.dat has 8 rows, .* 1,000,209: download"):
        prepare_folder(DataConfig(**copy.settings), tmp_path / "out", complete_rows=copy.rows)
    assert not (tmp_path / "out").exists()


def test_copy_without_its_tables_names_them(tmp_path):
    source = write(tmp_path / "copy", "ml-1m")
    (source / "movies.dat").unlink()
    copy = find_public_copy("ml-1m", source)
    assert copy.missing == ("movies.dat",)
    assert "items" not in copy.settings


def test_wrong_copies_are_one_sentence(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'ml-1m'"):
        find_public_copy("ml1m", tmp_path)
    with pytest.raises(DataError, match=r"no-file does not exist"):
        find_public_copy("ml-1m", tmp_path / "no-file")
    with pytest.raises(DataError, match=r"none of the files of MovieLens 1M; download ml-1m\.zip"):
        find_public_copy("ml-1m", tmp_path)
    both = write(tmp_path / "both", "yambda-50m")
    yambda().write_parquet(both / "likes.parquet")
    with pytest.raises(DataError, match=r"several files of Yambda-50M .*; name one of them"):
        find_public_copy("yambda-50m", both)
    folder = write(tmp_path / "zipped", "ml-100k")
    with zipfile.ZipFile(tmp_path / "cut.zip", "w") as archive:
        archive.write(folder / "u.data", "u.data")
    content = bytearray((tmp_path / "cut.zip").read_bytes())
    content[40:60] = bytes(20)
    (tmp_path / "cut.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"cut\.zip cannot be read as a zip archive"):
        find_public_copy("ml-100k", tmp_path / "cut.zip")


def test_file_without_a_header_is_checked(tmp_path):
    """Blank lines and lines with another number of fields are those of the file."""
    (tmp_path / "log.csv").write_text("1,5,10\n\n2,6,11\n,,\n1,7,x\n")
    defaults = {
        "interactions": str(tmp_path / "log.csv"),
        "column_names": ("user_id", "item_id", "t"),
        "time": "t",
        "drop_nulls": True,
        "split": {"kind": "none"},
    }

    def prepare(**settings):
        return prepare_folder(DataConfig(**{**defaults, **settings}), tmp_path / "out")

    with pytest.raises(DataError, match=r"line 5 of .*log\.csv"):
        prepare()
    (tmp_path / "log.csv").write_text("1,5,10\n\n2,6,11\n,,\n1,7,12\n")
    assert prepare().dataset.items["source_id"].to_list() == [5, 6, 7]
    with pytest.raises(DataError, match=r"line 1 has 3 fields .* column_names has 2 names"):
        prepare(column_names=("user_id", "item_id"), time=None)
    with pytest.raises(ConfigError, match="`column_names` has a name twice"):
        prepare(column_names=("user_id", "item_id", "item_id"))
    (tmp_path / "log.csv").write_text("1,5,10\n1,6\n")
    with pytest.raises(DataError, match=r"line 2 has 2 fields, but column_names has 3"):
        prepare(drop_nulls=False)
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ConfigError, match="is of format parquet, which has names of columns"):
        prepare(interactions=str(tmp_path / "log.parquet"))
