"""The same interactions in every format, through every split, against a plain-Python oracle."""

import bz2
import gzip
import io
import lzma

import numpy as np
import polars as pl
import pytest

from candid.data import DataConfig, ItemTableConfig, Role, SplitConfig, prepare_folder
from candid.errors import DataError

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


def write_json_lines(folder):
    (folder / "log.jsonl").write_text(frame().write_ndjson().replace("\n", "\n\n", 1))
    return folder / "log.jsonl"


def write_json_lines_parts(folder):
    """Objects without empty keys: the first part has no user 7 and a rating that is an integer."""
    parts = folder / "parts"
    parts.mkdir()
    frame().filter(user_id=3).cast({"rating": int}).write_ndjson(parts / "b.ndjson")
    rest = frame().filter(pl.col("user_id") != 3).with_columns(note=pl.lit("x"))
    rest.write_ndjson(parts / "a.ndjson")
    (parts / "c.ndjson").touch()  # as Spark writes a part without rows
    return parts


def write_arrow(folder):
    frame().write_ipc(folder / "log.arrow", compression="zstd")
    return folder / "log.arrow"


def write_feather(folder):
    frame().write_ipc(folder / "log.feather", compression="lz4")
    return folder / "log.feather"


def write_arrow_stream(folder):
    frame().write_ipc_stream(folder / "log.arrows")
    return folder / "log.arrows"


def write_hive_partitions(folder):
    """Roles and users are in the names of folders only."""
    for (role, user), rows in frame().group_by("split", "user_id", maintain_order=True):
        part = folder / "log" / f"split={role}" / f"user_id={user}"
        part.mkdir(parents=True)
        rows.drop("split", "user_id").write_parquet(part / "part-0.parquet")
    return folder / "log"


def write_glob(folder):
    for day, rows in enumerate([frame().head(2), frame().slice(2, 3), frame().tail(4)]):
        (folder / f"2026-11-0{day}").mkdir()
        rows.write_csv(folder / f"2026-11-0{day}" / "log.csv")
    (folder / "2026-12-01").mkdir()
    frame().write_csv(folder / "2026-12-01" / "log.csv")
    return folder / "2026-11-*" / "*.csv"


def compressed(suffix, compress, write):
    """Return a writer of what ``write`` writes, compressed."""

    def write_compressed(folder):
        plain = write(folder)
        path = plain.with_name(plain.name + suffix)
        path.write_bytes(compress(plain.read_bytes()))
        plain.unlink()
        return path

    write_compressed.__name__ = f"{write.__name__}{suffix}"
    return write_compressed


def zstd(content):
    """Compress lines with the writer of Polars; it has no function for bytes."""
    target = io.BytesIO()
    lines = pl.DataFrame({"line": content.decode().removesuffix("\n").split("\n")})
    lines.write_csv(
        target, include_header=False, quote_style="never", compression="zstd", separator="\x01"
    )
    return target.getvalue()


COMPRESSED = [
    compressed(suffix, compress, write)
    for suffix, compress in {
        ".gz": gzip.compress,
        ".zst": zstd,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }.items()
    for write in (write_csv, write_tsv, write_json_lines, write_recbole, write_movielens)
]
WRITERS = [
    write_parquet,
    write_parquet_folder,
    write_parquet_datetime,
    write_csv,
    write_csv_iso,
    write_csv_crlf_bom,
    write_tsv,
    write_recbole,
    write_movielens,
    write_json_lines,
    write_json_lines_parts,
    write_arrow,
    write_feather,
    write_arrow_stream,
    write_hive_partitions,
    write_glob,
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
    for write in [*WRITERS, *COMPRESSED]:
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


LOCATED = {
    "blank lines": ("log.csv", "user_id,item_id\n1,5\n\n\n,6\n3,7\n", 5),
    "line break in quotes": ("log.csv", 'user_id,item_id,title\n1,5,"a\n\nb"\n,6,x\n', 5),
    "windows": ("log.csv", "user_id,item_id\r\n1,5\r\n\r\n,6\r\n", 4),
    "row of empty fields": ("log.csv", "user_id,item_id\n1,5\n\n,\n3,7\n\n", 4),
    "row of empty fields at the end": ("log.tsv", "user_id\titem_id\n1\t5\n\t", 3),
    "compressed": ("log.csv.gz", "user_id,item_id\n1,5\n\n,\r\n3,7\n", 4),
    "movielens": ("ratings.dat", "user_id::item_id\n1::5\n\n::7\n", 4),
}


@pytest.mark.parametrize("name", LOCATED)
def test_message_names_the_line_of_the_file(tmp_path, name):
    file, text, line = LOCATED[name]
    content = text.encode()
    (tmp_path / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    config = DataConfig(interactions=str(tmp_path / file), split={"kind": "none"})
    with pytest.raises(DataError, match=rf"'user_id' has 1 empty values, .* in line {line} of "):
        prepare_folder(config, tmp_path / "out")


def test_row_of_empty_fields_is_counted_and_blank_lines_are_not(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,5\n\n,\n,\n3,7\n\n")
    config = DataConfig(
        interactions=str(tmp_path / "log.csv"), split={"kind": "none"}, drop_nulls=True
    )
    report = prepare_folder(config, tmp_path / "out").report
    assert (report["rows_read"], report["dropped"]) == (4, {"nulls": 2})


def test_row_of_empty_fields_inside_quotes_is_text(tmp_path):
    (tmp_path / "log.csv").write_text('user_id,item_id,title\n1,5,"a\n,,\nb"\n\n3,7,x\n')
    config = DataConfig(interactions=str(tmp_path / "log.csv"), split={"kind": "none"})
    report = prepare_folder(config, tmp_path / "out").report
    assert (report["rows_read"], report["dropped"]) == (2, {})


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("log.csv", 'user_id,item_id\n1,5\n2,"6\n3,7\n', 'line 3 has a quote " that is not closed'),
        (
            "log.jsonl",
            '{"user_id":1,"item_id":5}\n\n{"user_id":2,"item_id":true}\n',
            r"line 3 has a value of another type in 'item_id' \(true\)",
        ),
    ],
)
def test_unreadable_value_is_reported_with_its_line(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    config = DataConfig(interactions=str(tmp_path / file), split={"kind": "none"})
    with pytest.raises(DataError, match=message):
        prepare_folder(config, tmp_path / "out")
