"""The file of item updates: its form, damage of every kind, failed writes."""

import errno
import json
import os
import random
import zlib

import pytest

from candid.errors import ArtifactError, ConfigError
from candid.serve.update_file import UpdateFile, read_records, to_record

ENTRIES = [
    {"model": "films", "item": 2**53 + 1, "update": {"title": "Ein Fluß", "attributes": {}}},
    {"model": "films", "item": "500", "update": None},
    {
        "model": 'a "name"',
        "item": "line\nbreak",
        "update": {"title": None, "attributes": {"crc32": "5f3a9c01", "year": [1, 2]}},
    },
    {"model": "films", "item": 500, "update": None},
]
RECORDS = [to_record(entry) for entry in ENTRIES]
DATA = b"".join(RECORDS)


def entries(data):
    return [entry for entry, _ in read_records(data).records]


def test_record_is_one_json_line_with_length_and_checksum():
    for entry, record in zip(ENTRIES, RECORDS, strict=True):
        assert record.endswith(b"\n")
        assert record.count(b"\n") == 1
        line = json.loads(record)
        assert line["entry"] == entry
        body = record.split(b', "entry": ', 1)[1].removesuffix(b"}\n")
        assert line["length"] == len(body)
        assert int(line["crc32"], 16) == zlib.crc32(body)


def test_records_are_read_with_ids_of_their_type():
    contents = read_records(DATA)
    assert [entry for entry, _ in contents.records] == ENTRIES
    assert [num_bytes for _, num_bytes in contents.records] == list(map(len, RECORDS))
    assert (contents.torn, contents.damaged, contents.end) == (0, 0, len(DATA))
    assert type(contents.records[0][0]["item"]) is int


def test_cut_at_any_byte_keeps_all_complete_records():
    ends = [sum(map(len, RECORDS[:n])) for n in range(len(RECORDS) + 1)]
    for size in range(len(DATA)):
        contents = read_records(DATA[:size])
        complete = sum(end <= size for end in ends[1:])
        # The last two bytes end the line: the entry before them is complete and checked.
        is_whole = size + 2 >= ends[min(complete + 1, len(RECORDS))]
        assert len(contents.records) == complete + is_whole
        assert contents.damaged == 0
        assert (contents.torn > 0) == (size not in ends and not (is_whole and size + 2 in ends))


def test_every_flipped_bit_costs_at_most_its_own_record():
    for position in range(len(DATA)):
        for bit in range(8):
            data = bytearray(DATA)
            data[position] ^= 1 << bit
            found = entries(bytes(data))
            assert all(entry in ENTRIES for entry in found)
            assert len(found) >= len(ENTRIES) - 1


def test_glued_record_after_half_a_record_is_found():
    contents = read_records(RECORDS[0] + RECORDS[1][:30] + RECORDS[2] + RECORDS[3])
    assert [entry for entry, _ in contents.records] == [ENTRIES[0], ENTRIES[2], ENTRIES[3]]
    assert (contents.torn, contents.damaged) == (0, 30)


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_keeps_the_records_that_it_does_not_touch(seed):
    rng = random.Random(seed)
    pieces, kept = [], []
    for entry, record in zip(ENTRIES * 5, RECORDS * 5, strict=True):
        if rng.random() < 0.3:
            begin = rng.randrange(len(record))
            length = rng.randrange(1, 40)
            record = record[:begin] + rng.randbytes(length) + record[begin + length :]
        else:
            kept.append(entry)
        pieces.append(record)
    found = entries(b"".join(pieces))
    iterator = iter(found)
    assert all(entry in iterator for entry in kept)  # in the order of the file
    assert all(entry in ENTRIES for entry in found)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "films", "item": 5}',
        b'{"model": "films", "item": true, "update": null}',
        b'{"model": "films", "item": 5.0, "update": null}',
        b'{"model": 3, "item": 5, "update": null}',
        b'{"model": "films", "item": 5, "update": {"title": "A"}}',
        b'{"model": "films", "item": 5, "update": {"title": 3, "attributes": {}}}',
        b'["films", 5]',
        pytest.param(b'{"model": ' + b"[" * 100_000, id="nested"),
    ],
)
def test_entry_of_another_form_is_damaged(body):
    head = f'{{"crc32": "{zlib.crc32(body):08x}", "length": {len(body)}, "entry": '
    contents = read_records(head.encode() + body + b"}\n" + DATA)
    assert len(contents.records) == len(ENTRIES)
    assert contents.damaged > 0


@pytest.fixture(name="path")
def _path(tmp_path):
    path = tmp_path / "updates.jsonl"
    path.write_bytes(RECORDS[0])
    return path


def test_failed_write_leaves_the_file_as_before(path, monkeypatch):
    file = UpdateFile(path)
    real = os.write

    def write_half(descriptor, data):
        if len(data) > 20:
            return real(descriptor, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write_half)
    with pytest.raises(OSError, match="No space left"):
        file.append(RECORDS[1][:30])
    assert path.read_bytes() == RECORDS[0]
    monkeypatch.undo()
    file.append(RECORDS[2])
    assert path.read_bytes() == RECORDS[0] + RECORDS[2]


def test_failed_cut_is_repeated_before_the_next_write(path, monkeypatch):
    file = UpdateFile(path)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        file.append(RECORDS[1])
    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(OSError, match="Input/output"):
        file.append(RECORDS[1])
    monkeypatch.undo()
    file.append(RECORDS[2])
    assert path.read_bytes() == RECORDS[0] + RECORDS[2]


def test_replacement_keeps_what_was_appended_meanwhile_and_the_mode(path):
    path.chmod(0o640)
    file = UpdateFile(path)
    size = file.size
    temporary = file.write_copy([RECORDS[0]])
    file.append(RECORDS[1])
    file.replace_with(temporary, since=size)
    file.append(RECORDS[2])
    assert path.read_bytes() == b"".join(RECORDS[:3])
    assert file.size == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o640
    assert file.is_in_place


def test_failed_replacement_keeps_the_file(path, monkeypatch):
    file = UpdateFile(path)
    temporary = file.write_copy([])

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        file.replace_with(temporary)
    assert not temporary.exists()
    file.append(RECORDS[1])
    assert path.read_bytes() == RECORDS[0] + RECORDS[1]


def test_link_is_followed_and_stays(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    file = UpdateFile(link)
    file.replace_with(file.write_copy([RECORDS[1]]))
    assert link.is_symlink()
    assert path.read_bytes() == RECORDS[1]


def test_temporary_file_of_a_killed_writer_is_removed(path):
    stale = path.with_name(f".updates.jsonl.{'01' * 16}.tmp")
    mine = [path.with_name(".updates.jsonl.old.tmp"), path.with_name(f".updates.{'01' * 16}.tmp")]
    for file in (stale, *mine):
        file.write_bytes(b"half")
    UpdateFile(path)
    assert [file.exists() for file in (stale, *mine)] == [False, True, True]


@pytest.mark.parametrize(
    "content",
    [b"user,item\n1,2\n", b'{"model": "films", "item": 5, "update": null}\n', b"\x89PNG" * 99],
)
def test_file_of_another_program_is_refused_and_unchanged(path, content):
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"updates\.jsonl is not a file of item updates"):
        UpdateFile(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"crc32": "12', RECORDS[0][:40], b"\0" * 99, b"x" + RECORDS[1][1:-9]]
)
def test_file_that_holds_less_than_one_record_is_opened(path, content):
    path.write_bytes(content)
    assert UpdateFile(path).contents.records == []


def test_device_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="/dev/full is not a regular file"):
        UpdateFile(tmp_path.__class__("/dev/full"))


def test_second_writer_is_refused_with_the_name_of_the_first(path, tmp_path):
    file = UpdateFile(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    for same in (path, link):
        with pytest.raises(ConfigError, match=rf"another process writes .* \(pid {os.getpid()} on"):
            UpdateFile(same)
    file.replace_with(file.write_copy([RECORDS[1]]))  # The lock is not that of the old file.
    with pytest.raises(ConfigError):
        UpdateFile(path)
    file.close()
    UpdateFile(path).close()
