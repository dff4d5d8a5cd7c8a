"""Sources of ``candid prepare``: several files, patterns, queries, damaged files."""

import gzip
import json

import pytest


@pytest.fixture
def parts(tmp_path):
    rows = [f"{user},{item},{item}\n" for user in range(3) for item in range(4)]
    for name, part in (("a", rows[:5]), ("b", rows[5:])):
        (tmp_path / f"{name}.csv").write_text("user_id,item_id,t\n" + "".join(part))
    return tmp_path


def test_prepare_reads_several_files_and_patterns(candid, parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    files = [str(parts / "a.csv"), str(parts / "b.csv")]
    for number, interactions in enumerate([files, [str(parts / "*.csv")], [str(parts)]]):
        options = [word for path in interactions for word in ("--interactions", path)]
        out = folder / str(number)
        answer = candid("prepare", *options, "--order", "t", "--out", out, "--json")
        assert answer.code == 0, answer.err
        report = json.loads(answer.out)
        assert report["counts"]["interactions"] == 12
        assert [source["path"] for source in report["sources"]] == files


def test_prepare_reads_a_query(candid, parts):
    pytest.importorskip("duckdb", reason="needs the extra database")
    query = f"SELECT * FROM '{parts}/*.csv' WHERE item_id < 3"
    options = ("--interactions", "duckdb://", "--query", query, "--order", "t")
    answer = candid("prepare", *options, "--out", parts / "out", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["counts"]["interactions"] == 9


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--interactions", "duckdb:///shop.db"), "is a database; set `query`"),
        (("--interactions", "a.csv", "--query", "SELECT 1"), "`query` needs a database"),
    ],
)
def test_query_without_a_database_is_bad_usage(candid, parts, options, part):
    answer = candid("prepare", *options, "--order", "t", "--out", parts / "out")
    assert answer.code == 2
    assert part in answer.err


def test_flipped_byte_is_bad_data_and_names_the_file(candid, parts):
    rows = "".join(f"{n % 9},{n % 7},{n}\n" for n in range(9000))
    content = bytearray(gzip.compress(b"user_id,item_id,t\n" + rows.encode()))
    content[len(content) // 2] ^= 0x40
    (parts / "log.csv.gz").write_bytes(content)
    options = ("--interactions", parts / "log.csv.gz", "--order", "t")
    answer = candid("prepare", *options, "--out", parts / "out")
    assert answer.code == 3
    assert f"{parts}/log.csv.gz" in answer.err
    assert answer.err.splitlines()[-1].startswith("error: ")
    assert not (parts / "out").exists()
