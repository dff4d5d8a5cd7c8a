"""Damaged, cut, empty and misnamed files of every format: one sentence with the file."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys

import polars as pl
import pytest

from candid.data import DataConfig, prepare_folder
from candid.data.readers import collect, open_sources
from candid.data.readers.files import unreadable
from candid.errors import CandidError, DataError

ROWS = 20_000
TABLE = pl.DataFrame(
    {
        "user_id": [n % 997 for n in range(ROWS)],
        "item_id": [n * 7919 % 1009 for n in range(ROWS)],
        "t": range(ROWS),
    }
)


def binary(write):
    target = io.BytesIO()
    write(target)
    return target.getvalue()


def zstd_csv():
    return binary(lambda target: TABLE.write_csv(target, compression="zstd"))


CONTENT = {
    "log.csv.gz": lambda: gzip.compress(TABLE.write_csv().encode()),
    "log.csv.zst": zstd_csv,
    "log.csv.bz2": lambda: bz2.compress(TABLE.write_csv().encode()),
    "log.csv.xz": lambda: lzma.compress(TABLE.write_csv().encode()),
    "log.jsonl": lambda: TABLE.write_ndjson().encode(),
    "log.jsonl.gz": lambda: gzip.compress(TABLE.write_ndjson().encode()),
    "log.jsonl.xz": lambda: lzma.compress(TABLE.write_ndjson().encode()),
    "ratings.dat.gz": lambda: gzip.compress(
        "\n".join("::".join(map(str, row)) for row in [TABLE.columns, *TABLE.rows()]).encode()
    ),
    "log.inter.gz": lambda: gzip.compress(
        b"user_id:token\titem_id:token\tt:float\n"
        + TABLE.write_csv(separator="\t", include_header=False).encode()
    ),
    "log.parquet": lambda: binary(TABLE.write_parquet),
    "log.arrow": lambda: binary(lambda target: TABLE.write_ipc(target, compression="lz4")),
    "log.feather": lambda: binary(lambda target: TABLE.write_ipc(target, compression="zstd")),
}
CHECKED = [name for name in CONTENT if name.endswith((".gz", ".bz2", ".xz"))]
"""Formats with a checksum over all rows: no damage stays unseen."""


def refusal(path):
    """The error of preparing a file, or None."""
    try:
        prepare_folder(DataConfig(interactions=str(path), order="t"), path.parent / "out")
    except CandidError as error:
        return error
    return None


def message_of(path):
    """The message about a file, which must be one sentence with its name and exit code 3."""
    error = refusal(path)
    assert error is not None
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert error.exit_code == 3, error
    assert not (path.parent / "out").exists()
    return str(error)


@pytest.mark.parametrize("name", CONTENT)
def test_undamaged_file_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENT[name]())
    config = DataConfig(interactions=str(tmp_path / name), order="t")
    assert len(prepare_folder(config, tmp_path / "out").dataset.item_ids) == ROWS


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97, 0.999])
@pytest.mark.parametrize("name", CHECKED)
def test_flipped_byte_is_refused(tmp_path, name, share):
    content = bytearray(CONTENT[name]())
    content[int(share * len(content))] ^= 0x40
    (tmp_path / name).write_bytes(content)
    message_of(tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", CHECKED)
def test_overwritten_block_is_refused(tmp_path, name, share):
    """Here gzip fails in the decoder, before the checksum."""
    content = bytearray(CONTENT[name]())
    start = int(share * len(content))
    content[start : start + 64] = b"\xff" * 64
    (tmp_path / name).write_bytes(content)
    message_of(tmp_path / name)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", [name for name in CONTENT if name != "log.jsonl"])
def test_file_that_is_cut_short_is_refused(tmp_path, name, share):
    content = CONTENT[name]()
    (tmp_path / name).write_bytes(content[: max(1, int(share * len(content)))])
    message_of(tmp_path / name)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["log.parquet", "log.arrow", "log.feather"])
def test_random_damage_is_read_or_refused_in_a_sentence(tmp_path, name, seed):
    """Metadata has no checksum: the file is read or refused, and a panic is a refusal."""
    content = bytearray(CONTENT[name]())
    tail = len(content) - 1 - seed * 37
    content[tail - 40 : tail - 40 + 16] = bytes((seed * 31 + n * 17) % 256 for n in range(16))
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    if error is not None:
        assert str(tmp_path / name) in str(error)
        assert "\n" not in str(error)
        assert error.exit_code == 3


@pytest.mark.parametrize("name", CONTENT)
def test_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert "is empty" in message_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "compress"),
    [("a.csv.gz", gzip.compress), ("a.jsonl.bz2", bz2.compress), ("a.tsv.xz", lzma.compress)],
)
def test_empty_content_in_a_compressed_file_is_refused(tmp_path, name, compress):
    (tmp_path / name).write_bytes(compress(b""))
    assert "is empty" in message_of(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("log.csv", "log.csv.gz", "is a gzip file; rename it to"),
        ("log.jsonl", "log.csv.zst", "is a zstd file; rename it to"),
        ("ratings.dat", "log.csv.bz2", "is a bzip2 file; rename it to"),
        ("log.csv.gz", "log.jsonl", "is not a gzip file; rename it without .gz"),
        ("log.jsonl.xz", "log.csv.gz", "is not a xz file"),
        ("log.csv", "log.parquet", "is not UTF-8 text"),
        ("log.parquet", "log.arrow", "not a readable parquet file"),
        ("log.arrow", "log.parquet", "is not an Arrow file"),
        ("log.jsonl", "log.parquet", "not a JSON object"),
        ("log.parquet.gz", "log.parquet", "it is of format parquet: rename it to .parquet"),
        ("log.data", "log.arrow", "it is of format arrow: rename it to .arrow"),
        ("log.data", "log.csv.gz", "convert it to one of these"),
        ("log.data", "log.jsonl", "set format to one of csv, tsv, jsonl, movielens, recbole"),
    ],
)
def test_file_with_the_name_of_another_format_is_refused(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(CONTENT[content]())
    assert part in message_of(tmp_path / name)


@pytest.mark.parametrize("head", [b"PK\x03\x04rest", b"ORC\x0a", b"Obj\x01", b"\x80\x05", b"a\0b"])
def test_foreign_format_is_refused_without_a_format_to_set(tmp_path, head):
    (tmp_path / "log.xyz").write_bytes(head)
    message = message_of(tmp_path / "log.xyz")
    assert ".parquet" in message
    assert "set format" not in message


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ('{"user_id": 1}\n{"user_id":\n', "line 2 is not a JSON object"),
        ('{"user_id": 1}\n\n[1]\n', "line 3 is not a JSON object"),
        ('{"user_id": 1}\n{"user_id": NaN}\n', "NaN is not JSON; write null"),
        pytest.param(
            '{"user_id": 1}\n{"user_id": ' + "[" * 100_000,
            "line 2 is not a JSON object (nested",
            id="nested",
        ),
        ('[{"user_id": 1},\n{"user_id": 2}]\n', "one JSON array; write one object per line"),
        ("user_id,item_id\n1,2\n", "the first line is not a JSON object"),
        ('\ufeff{"user_id": 1}\n', "byte order mark"),
        ('{"user_id": 1}\n{"item_id": "\udcff"}\n', "line 2 is not UTF-8"),
    ],
)
def test_line_that_is_not_a_json_object_is_named(tmp_path, lines, part):
    (tmp_path / "log.jsonl").write_bytes(lines.encode(errors="surrogateescape"))
    assert part in message_of(tmp_path / "log.jsonl")


def test_panic_of_the_engine_is_a_sentence(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,t\n1,2,3\n")
    source = open_sources(str(tmp_path / "log.csv"))[0]

    def fail(batch):
        raise pl.exceptions.PanicException("index out of bounds")

    source = type(source)(source.path, source.frame.map_batches(fail), None, source.explain)
    with pytest.raises(DataError, match=r"log\.csv: .*index out of bounds"):
        collect(source.frame, [source])


def source_that_raises(path, error, output=b""):
    """A source whose rows cannot be read, after output to the descriptor of stderr."""
    path.write_text("user_id,item_id,t\n1,2,3\n")
    source = open_sources(str(path))[0]

    def fail(batch):
        os.write(2, output)
        raise error

    return type(source)(source.path, source.frame.map_batches(fail), None, source.explain)


PANIC_MESSAGE = b"""
thread 'polars-3' (711) panicked at crates/polars-parquet/src/arrow/read.rs:12:5:
range end index 8 out of range for slice of length 7
note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
"""


@pytest.mark.parametrize("debug", ["", "1"])
def test_only_other_output_is_printed_beside_a_panic(tmp_path, debug):
    """In a process of its own, whose stderr is descriptor 2, as on a terminal."""
    (tmp_path / "log.csv").write_text("user_id,item_id,t\n1,2,3\n")
    script = f"""
import os, sys
import polars as pl
from candid.data.readers import collect, open_sources
from candid.errors import DataError
source = open_sources({str(tmp_path / "log.csv")!r})[0]

def fail(batch):
    os.write(2, {PANIC_MESSAGE!r})
    raise pl.exceptions.PanicException("range end index 8 out of range")

def write(batch):
    sys.stderr.write("from Python\\n")
    os.write(2, b"from a library\\n")
    return batch

failing = type(source)(source.path, source.frame.map_batches(fail), None, source.explain)
try:
    collect(failing.frame, [failing])
except DataError as error:
    sys.stdout.write(str(error))
collect(source.frame.map_batches(write), [source])
os.write(2, b"afterwards\\n")
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CANDID_DEBUG": debug},
    )
    assert "log.csv: cannot be read (range end index 8 out of range)" in result.stdout
    lines = result.stderr.splitlines()
    assert set(lines[-3:-1]) == {"from Python", "from a library"}
    assert lines[-1] == "afterwards"
    assert (len(lines) > 3) == bool(debug)


@pytest.mark.parametrize(
    ("error", "part", "code"),
    [
        (OSError(28, "No space left on device"), "no space left for temporary files", 4),
        (MemoryError("unable to allocate"), "not enough memory to read", 1),
    ],
)
def test_fault_of_the_machine_while_rows_are_read(tmp_path, error, part, code):
    source = source_that_raises(tmp_path / "log.csv", error)
    with pytest.raises(CandidError, match=part) as raised:
        collect(source.frame, [source])
    assert raised.value.exit_code == code
    assert "again" not in str(raised.value), "the data is good"


@pytest.mark.parametrize(
    ("error", "part", "code"),
    [
        (OSError(12, "Cannot allocate memory"), "not enough memory to read log.csv", 1),
        (MemoryError(), "not enough memory", 1),
        (OSError(28, "No space left on device"), "no space left for temporary files", 4),
        (OSError(122, "Disk quota exceeded"), "set TMPDIR to a folder with more", 4),
        (
            pl.exceptions.ComputeError("No space left on device (os error 28)"),
            "no space left for temporary files while reading log.csv",
            4,
        ),
        (PermissionError(13, "Permission denied"), "fix the permissions", 3),
        (OSError("Too many open files (os error 24)"), "ulimit -n", 3),
        (OSError("snappy: corrupt"), "log.csv: damaged", 3),
    ],
)
def test_fault_of_the_machine_is_not_called_damage(error, part, code):
    result = unreadable("log.csv", error, lambda error: "damaged")
    assert part in str(result)
    assert ("damaged" in str(result)) == ("corrupt" in str(error))
    assert result.exit_code == code


@pytest.mark.slow
def test_too_little_memory_is_not_called_damage(tmp_path):
    """A process with 700 MB of address space reads a file of 320 MB."""
    rows = 20_000_000
    pl.select(user_id=pl.int_range(rows), item_id=pl.int_range(rows) * 7).write_parquet(
        tmp_path / "log.parquet", compression="uncompressed"
    )
    script = f"""
import resource, sys
from candid.data.readers import collect, open_sources
from candid.errors import CandidError
sources = open_sources({str(tmp_path / "log.parquet")!r})
resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))
try:
    collect(sources[0].frame.sort("user_id"), sources)
except CandidError as error:
    print(error, error.exit_code)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "not enough memory to read" in result.stdout, result.stdout + result.stderr
    assert result.stdout.endswith(" 1\n")
