"""The same interactions in every format, through every split, against a plain-Python oracle."""

import gzip

import numpy as np
import polars as pl
import pytest

from candid.data import DataConfig, ItemTableConfig, Role, SplitConfig, prepare_folder

ROWS = [
    # user, item, rating, time (seconds), role
    (7, 30, 5.0, 1_000_000_400, "test"),
    (7, 10, 4.0, 1_000_000_100, "train"),
    (7, 20, 3.0, 1_000_000_200, "train"),
    (7, 40, 5.0, 1_000_000_300, "val"),
    (3, 20, 1.0, 1_000_000_150, "train"),
    (3, 10, 2.0, 1_000_000_150, "val"),
    (3, 30, 5.0, 1_000_000_350, "test"),
    (5, 40, 5.0, 1_000_000_120, "train"),
    (5, 30, 5.0, 1_000_000_130, "train"),
]
COLUMNS = ["user_id", "item_id", "rating", "timestamp", "split"]
TITLES = {10: "Ten", 20: 'The "20"', 30: "Café: 30", 40: "Forty"}


def frame():
    return pl.DataFrame(ROWS, schema=COLUMNS, orient="row")


def write_parquet(folder):
    frame().write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def write_parquet_folder(folder):
    parts = folder / "parts"
    parts.mkdir()
    frame().head(4).write_parquet(parts / "a.parquet")
    frame().tail(5).with_columns(pl.col("user_id").cast(pl.Int16)).write_parquet(
        parts / "b.parquet"
    )
    (parts / "_SUCCESS").touch()
    return parts


def write_csv(folder):
    frame().write_csv(folder / "log.csv")
    return folder / "log.csv"


def write_csv_iso(folder):
    time = pl.from_epoch("timestamp", "s").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    frame().with_columns(time).write_csv(folder / "log.csv")
    return folder / "log.csv"


def write_parquet_datetime(folder):
    time = pl.from_epoch("timestamp", "s").dt.replace_time_zone("UTC")
    local = time.dt.convert_time_zone("Asia/Tokyo")
    frame().with_columns(local).write_parquet(folder / "log.parquet")
    return folder / "log.parquet"


def write_csv_crlf_bom(folder):
    text = frame().write_csv(separator=";").replace("\n", "\r\n")
    (folder / "log.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return folder / "log.csv"


def write_csv_gz(folder):
    (folder / "log.csv.gz").write_bytes(gzip.compress(frame().write_csv().encode()))
    return folder / "log.csv.gz"


def write_tsv(folder):
    frame().write_csv(folder / "log.tsv", separator="\t")
    return folder / "log.tsv"


def write_recbole(folder):
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\tsplit:token\n"
    body = frame().write_csv(separator="\t", include_header=False)
    (folder / "log.inter").write_text(header + body)
    return folder / "log.inter"


def write_movielens(folder):
    lines = ["::".join(COLUMNS), *("::".join(str(v) for v in row) for row in ROWS), ""]
    (folder / "ratings.dat").write_text("\n".join(lines))
    return folder / "ratings.dat"


WRITERS = [
    write_parquet,
    write_parquet_folder,
    write_parquet_datetime,
    write_csv,
    write_csv_iso,
    write_csv_crlf_bom,
    write_csv_gz,
    write_tsv,
    write_recbole,
    write_movielens,
]
SPLITS = {
    "leave-one-out": SplitConfig(kind="leave-one-out"),
    "temporal": SplitConfig(kind="temporal", validation=1_000_000_200, test="2001-09-09T01:52:30"),
    "column": SplitConfig(kind="column", column="split"),
}


def expected(kind):
    """user -> [(item, role)] in order of use."""
    roles = {"train": Role.TRAIN, "val": Role.VALIDATION, "test": Role.TEST}
    result = {}
    for user in (3, 5, 7):
        own = sorted((row for row in ROWS if row[0] == user), key=lambda row: row[3])
        if kind == "leave-one-out":
            held_out = [Role.VALIDATION, Role.TEST] if len(own) >= 3 else []
            assigned = [Role.TRAIN] * (len(own) - len(held_out)) + held_out
        elif kind == "temporal":
            cuts = (1_000_000_200, 1_000_000_350)
            assigned = [
                [Role.TRAIN, Role.VALIDATION, Role.TEST][sum(row[3] >= cut for cut in cuts)]
                for row in own
            ]
        else:
            assigned = [roles[row[4]] for row in own]
        result[user] = [(row[1], role) for row, role in zip(own, assigned, strict=True)]
    return result


def content(dataset):
    items = dataset.items["source_id"].to_list()
    offsets = dataset.user_offsets
    return {
        user: [
            (items[i], Role(role))
            for i, role in zip(
                dataset.item_ids[offsets[u] : offsets[u + 1]],
                dataset.roles[offsets[u] : offsets[u + 1]],
                strict=True,
            )
        ]
        for u, user in enumerate(dataset.users["source_id"].to_list())
    }


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("kind", SPLITS)
def test_all_formats_and_splits_give_the_same_dataset(tmp_path, write, kind):
    config = DataConfig(
        interactions=str(write(tmp_path)), time="timestamp", split=SPLITS[kind], weight="rating"
    )
    dataset = prepare_folder(config, tmp_path / "out").dataset
    assert content(dataset) == expected(kind)
    by_time = sorted(ROWS, key=lambda row: (row[0], row[3]))
    assert dataset.timestamps.tolist() == [row[3] * 1_000_000 for row in by_time]
    assert dataset.weights.tolist() == [row[2] for row in by_time]
    assert dataset.users["source_id"].dtype == pl.Int64


def test_all_formats_agree_on_the_fingerprint(tmp_path):
    fingerprints = set()
    for write in WRITERS:
        folder = tmp_path / write.__name__
        folder.mkdir()
        config = DataConfig(interactions=str(write(folder)), time="timestamp")
        fingerprints.add(prepare_folder(config, folder / "out").report["fingerprint"])
    assert len(fingerprints) == 1


def test_movielens_files_without_header_in_latin_1(tmp_path):
    lines = "\n".join("::".join(str(v) for v in row[:4]) for row in ROWS)
    (tmp_path / "ratings.dat").write_text(lines + "\n")
    movies = "".join(f"{item}::{title}::Drama\n" for item, title in TITLES.items())
    (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    config = DataConfig(
        interactions=str(tmp_path),
        time="timestamp",
        items=ItemTableConfig(path=str(tmp_path / "movies.dat"), attributes=("genres",)),
    )
    items = prepare_folder(config, tmp_path / "out").dataset.items
    assert items.to_dict(as_series=False) == {
        "source_id": list(TITLES),
        "title": list(TITLES.values()),
        "genres": ["Drama"] * 4,
    }


def test_recbole_item_table_with_single_quotes(tmp_path):
    body = "".join(f'{item}\t"{title}\n' for item, title in TITLES.items())
    (tmp_path / "log.item").write_text("item_id:token\tmovie_title:token_seq\n" + body)
    write_recbole(tmp_path)
    config = DataConfig(
        interactions=str(tmp_path),
        time="timestamp",
        items=ItemTableConfig(path=str(tmp_path / "log.item"), title="movie_title"),
    )
    items = prepare_folder(config, tmp_path / "out").dataset.items
    assert items["title"].to_list() == [f'"{title}' for title in TITLES.values()]


@pytest.mark.parametrize("write", [write_parquet, write_csv])
def test_text_ids_stay_text(tmp_path, write):
    path = write(tmp_path)
    padded = frame().with_columns(pl.format("0{}", "user_id").alias("user_id"))
    padded.write_csv(path) if path.suffix == ".csv" else padded.write_parquet(path)
    config = DataConfig(interactions=str(path), time="timestamp")
    dataset = prepare_folder(config, tmp_path / "out").dataset
    assert dataset.users["source_id"].to_list() == ["03", "05", "07"]
    assert dataset.items["source_id"].to_list() == [10, 20, 30, 40]


def test_integer_ids_far_apart(tmp_path):
    far = frame().with_columns(pl.col("item_id") * 10**15 - 5, pl.col("user_id").cast(pl.UInt64))
    far.write_parquet(tmp_path / "log.parquet")
    config = DataConfig(interactions=str(tmp_path / "log.parquet"), time="timestamp")
    dataset = prepare_folder(config, tmp_path / "out").dataset
    near = {
        u: [((item + 5) // 10**15, r) for item, r in rows] for u, rows in content(dataset).items()
    }
    assert near == expected("leave-one-out")


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["train", "val", "test"])])
def test_categorical_roles(tmp_path, dtype):
    frame().with_columns(pl.col("split").cast(dtype)).write_parquet(tmp_path / "log.parquet")
    config = DataConfig(
        interactions=str(tmp_path), time="timestamp", split=SPLITS["column"], format="parquet"
    )
    assert content(prepare_folder(config, tmp_path / "out").dataset) == expected("column")


def test_ties_keep_the_order_of_the_file(tmp_path):
    items = np.random.default_rng(0).permutation(50)
    tied = pl.DataFrame({"user_id": [1] * 50 + [2] * 50, "item_id": [*items, *items[::-1]], "t": 0})
    tied.write_csv(tmp_path / "log.csv")
    config = DataConfig(interactions=str(tmp_path / "log.csv"), order="t")
    dataset = prepare_folder(config, tmp_path / "out").dataset
    assert dataset.item_ids.tolist() == [*items, *items[::-1]]


def test_variables_in_the_path_are_expanded(tmp_path, monkeypatch):
    write_csv(tmp_path)
    monkeypatch.setenv("LOGS", str(tmp_path))
    config = DataConfig(interactions="${LOGS}/log.csv", time="timestamp")
    assert content(prepare_folder(config, tmp_path / "out").dataset) == expected("leave-one-out")
