from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from candid.atomic import (
    atomic_folder,
    remove_all_stale,
    remove_folder,
    replacing,
    umask,
    write_error,
    write_json,
)
from candid.errors import ArtifactError


def test_replacing_renames_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_replacing_keeps_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_replacing_removes_files_of_killed_processes_and_keeps_those_of_live_ones(tmp_path):
    path, token = tmp_path / "file.txt", "0123456789abcdef" * 2
    (tmp_path / f".file.txt.{token}.tmp").write_text("half")
    (tmp_path / f".file.txt.{token}.lock").write_text('{"pid": 12, "ho')
    (tmp_path / f".other.txt.{token}.tmp").write_text("of another file")
    with replacing(path) as first:
        first.write_text("one")
        first.unlink()  # as compilers do: the file that the lock protects is another one now
        first.write_text("one")
        with replacing(path) as second:
            second.write_text("two")
        assert first.read_text() == "one"
    assert path.read_text() == "one"
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".other.txt.{token}.tmp", "file.txt"]


@pytest.mark.parametrize("writes", [replacing, atomic_folder])
def test_full_disk_in_a_library_is_one_sentence(tmp_path, writes):
    """Polars and safetensors raise errors of their own, with the number in the text."""

    def fill_up(text: str) -> None:
        with writes(tmp_path / "out"):
            raise RuntimeError(text)

    with pytest.raises(ArtifactError, match=r"cannot write .*out: no space left"):
        fill_up("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="another reason"):
        fill_up("another reason")
    assert list(tmp_path.iterdir()) == []


def test_stale_files_of_all_targets_of_a_folder_are_removed(tmp_path):
    token = "0123456789abcdef" * 2
    for name in (f".a.{token}.tmp", f".b.txt.{token}.lock", f".data.{token}.old"):
        (tmp_path / name).write_text("")
    with replacing(tmp_path / "c") as temporary:
        temporary.write_text("live")
        remove_all_stale(tmp_path)
    # The earlier "data" was renamed and never replaced.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "data"]
    remove_all_stale(tmp_path / "missing")


def test_files_of_another_program_with_such_names_stay(tmp_path):
    token = "0123456789abcdef" * 2
    for suffix in ("tmp", "lock"):
        (tmp_path / f".a.{token}.{suffix}").write_text("mine")
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
    remove_all_stale(tmp_path)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine", "new"}
    assert len(list(tmp_path.iterdir())) == 3


def test_folder_is_removed_in_one_step(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("x")
    remove_folder(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArtifactError, match="cannot write"):
        remove_folder(tmp_path / "out")


def test_replacing_works_in_a_folder_without_locks(tmp_path, monkeypatch):
    """Nothing is removed there: a file of a live process looks the same as a stale one."""
    stale = tmp_path / f".file.txt.{'0123456789abcdef' * 2}.tmp"
    stale.write_text("half")

    def refuse(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("one")
    assert sorted(p.name for p in tmp_path.iterdir()) == [stale.name, "file.txt"]


def test_refused_write_is_an_artifact_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ArtifactError, match=r"cannot write .*inner\.txt: "),
        replacing(tmp_path / "file" / "inner.txt"),
    ):
        pass

    def fill_up() -> None:
        with replacing(tmp_path / "inner.txt") as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left"):
        fill_up()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(28, "No space left on device"), "no space left (No space left on device); free"),
        (
            OSError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "no space left (No space left on device); free",
        ),
        (OSError("cannot open (os error 30)"), "Read-only file system; fix that or choose"),
        (OSError("out of luck"), "out of luck; fix that or choose another path"),
    ],
)
def test_write_error_reads_the_reason_of_python_and_rust_errors(error, sentence):
    assert str(write_error(Path("x/y"), error)).startswith(f"cannot write x/y: {sentence}")


def test_write_json_is_atomic_and_refuses_nan(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"title": "Amélie", "ks": [1, 10]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"title": "Amélie", "ks": [1, 10]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["title"] == "Amélie"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_replacing_gives_private_files_the_default_mode(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("x")
            temporary.chmod(0o600)
        assert umask() == mask
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
