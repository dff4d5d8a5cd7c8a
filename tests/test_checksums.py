"""Checksums of files and documents: every change is found, and a sentence names the file."""

from __future__ import annotations

import hashlib
import json
import threading

import pytest

from candid import checksums
from candid.checksums import (
    FileChecks,
    check_file,
    check_seal,
    checksum,
    file_entry,
    has_valid_seal,
    is_verifying,
    read_error,
    sealed,
    verification,
    write_sealed_json,
)
from candid.errors import ArtifactError

DOCUMENT = {
    "format": 3,
    "best": 0.1 + 0.2,
    "names": ("a", "ü"),
    "codes": {1: "one", 2: None},
    "nested": {"z": [1, 2.5, True], "a": "x"},
}


def test_checksum_is_that_of_sha256sum(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert checksum(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert file_entry(tmp_path / "a") == {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"abcdeg"), "differs from its checksum"),
        (lambda path: path.write_bytes(b"abcde"), "has 5 bytes, not 6"),
        (lambda path: path.write_bytes(b"abcdef\0"), "has 7 bytes, not 6"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "is missing"),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_every_change_of_a_file_is_found(tmp_path, monkeypatch, damage, words, large):
    monkeypatch.setattr(checksums, "LARGE", 1 if large else 1 << 30)
    path, other = tmp_path / "a.npy", tmp_path / "b.npy"
    path.write_bytes(b"abcdef")
    other.write_bytes(b"rest")
    files = {file: file_entry(file) for file in (other, path)}
    check_file(path, files[path], "make it again")
    FileChecks(files, "make it again").wait()
    damage(path)
    sentence = rf"^{path} {words}; make it again$"
    with pytest.raises(ArtifactError, match=sentence):
        check_file(path, files[path], "make it again")
    with pytest.raises(ArtifactError, match=sentence):
        FileChecks(files, "make it again").wait()


def test_file_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    path.write_bytes(b"abcdef")
    entry = file_entry(path)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checksums, "checksum", refuse)
    sentence = r"a\.npy cannot be read: permission denied; give this user read permission$"
    with pytest.raises(ArtifactError, match=sentence):
        check_file(path, entry, "make it again")
    with pytest.raises(ArtifactError, match=sentence):
        FileChecks({path: entry}, "make it again")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "cannot allocate memory; close other programs"),
        (OSError(12, "Cannot allocate memory"), "cannot allocate memory; close other programs"),
        (OSError(5, "Input/output error"), "input/output error; check the disk"),
        (OSError(24, "Too many open files"), r"too many open files; raise .* \(ulimit -n\)"),
        (OSError(99, "Odd"), "; fix that"),
    ],
)
def test_reason_of_the_system_is_named_with_a_remedy(error, words):
    with pytest.raises(ArtifactError, match=f"^a.npy cannot be read: .*{words}"):
        raise read_error("a.npy", error)


def test_large_files_are_read_by_threads_while_the_caller_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "LARGE", 4)
    files = {}
    for name in "abcdefg":
        (tmp_path / name).write_bytes(name.encode() * 4)
        files[tmp_path / name] = file_entry(tmp_path / name)
    (tmp_path / "e").write_bytes(b"eeex")
    go_on, read = threading.Event(), []

    def slow(path):
        assert go_on.wait(30)
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(checksums, "checksum", slow)
    checks = FileChecks(files, "make it again")
    assert not checks.is_complete
    assert read == []
    go_on.set()
    for _ in range(2):
        with pytest.raises(ArtifactError, match="e differs from its checksum"):
            checks.wait()
    assert checks.is_complete
    assert sorted(read) == list("abcdefg")


def test_skipped_verification_compares_sizes_only(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abcdef")
    entry = file_entry(path)
    path.write_bytes(b"abcdeg")
    with verification(False):
        assert not is_verifying()
        check_file(path, entry, "")
        FileChecks({path: entry}, "").wait()
        check_seal(path, {"a": 1}, "")
        with verification(True):
            assert not is_verifying()
        path.write_bytes(b"abc")
        with pytest.raises(ArtifactError, match="has 3 bytes"):
            check_file(path, entry, "")
    assert is_verifying()


def test_seal_survives_the_file_and_its_layout(tmp_path):
    path = tmp_path / "run.json"
    written = write_sealed_json(path, DOCUMENT)
    content = json.loads(path.read_text())
    assert has_valid_seal(content)
    assert content["checksum"] == written["checksum"]
    assert list(content)[:-1] == list(DOCUMENT)
    assert has_valid_seal(json.loads(json.dumps(content, indent=7)))
    assert sealed(content) == content
    assert has_valid_seal(sealed(content | {"format": 4}))


def test_every_changed_value_key_or_order_breaks_the_seal(tmp_path):
    content = json.loads(json.dumps(sealed(DOCUMENT)))
    assert has_valid_seal(content)
    changes = [
        content | {"format": 4},
        content | {"format": "3"},
        content | {"best": 0.3},
        content | {"names": ["a", "u"]},
        content | {"nested": {"a": "x", "z": [1, 2.5, True]}},
        content | {"more": None},
        content | {"checksum": "0" * 64},
        {key: value for key, value in content.items() if key != "best"},
        {key: value for key, value in content.items() if key != "checksum"},
    ]
    for changed in changes:
        assert not has_valid_seal(changed)
        with pytest.raises(ArtifactError, match=r"^run\.json differs from its checksum; fix$"):
            check_seal("run.json", changed, "fix")


def test_no_flipped_bit_of_a_sealed_file_changes_its_content(tmp_path):
    path = tmp_path / "run.json"
    write_sealed_json(path, DOCUMENT)
    whole, content = json.loads(path.read_text()), path.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            read = json.loads(damaged)
        except ValueError:
            continue
        assert read == whole or not has_valid_seal(read)
