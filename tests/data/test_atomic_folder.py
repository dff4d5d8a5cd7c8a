"""Atomic folders, such as prepared datasets: complete or absent."""

import errno
import io
import os
import signal
import subprocess
import sys

import polars as pl
import pytest

from candid import atomic
from candid.data import DataConfig, open_dataset, prepare_folder
from candid.errors import ArtifactError

SCRIPT = """
import resource, signal, sys, time
from pathlib import Path
from candid import atomic
from candid.data import DataConfig, dataset_files, prepare_folder
# Processes that a shell starts in the background inherit an ignored SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
source, out, mode = sys.argv[1:]
write = atomic.write_file
def slow(path, *parts):
    done = write(path, *parts)
    print("wrote", path.name, flush=True)
    time.sleep(30)
    return done
if mode == "slow":
    dataset_files.write_file = slow
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(mode), int(mode)))
try:
    prepare_folder(DataConfig(interactions=source, order="t"), Path(out))
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def source(tmp_path):
    rows = [(user, (user + step) % 40, step) for user in range(200) for step in range(20)]
    path = tmp_path / "log.parquet"
    pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row").write_parquet(path)
    return path


def config(source):
    return DataConfig(interactions=str(source), order="t")


def start(source, mode):
    command = [sys.executable, "-c", SCRIPT, str(source), str(source.parent / "out"), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_killed_process_leaves_no_dataset_and_the_next_one_cleans_up(source):
    with start(source, "slow") as process:
        assert process.stdout.readline().startswith("wrote")
        assert any(name.endswith(".tmp") for name in names(source.parent))
        process.kill()
    assert "out" not in names(source.parent)
    prepare_folder(config(source), source.parent / "out")
    assert names(source.parent) == ["log.parquet", "out"]


def test_temporary_folder_of_a_live_process_stays(source):
    with start(source, "slow") as process:
        assert process.stdout.readline().startswith("wrote")
        prepare_folder(config(source), source.parent / "out")
        assert any(name.endswith(".tmp") for name in names(source.parent))
        process.kill()


def test_ctrl_c_removes_the_temporary_folder(source):
    with start(source, "slow") as process:
        assert process.stdout.readline().startswith("wrote")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    assert names(source.parent) == ["log.parquet"]


def test_file_size_limit_is_an_artifact_error(source):
    with start(source, "10000") as process:
        message = process.stdout.read()
    assert process.returncode == 4
    assert message.startswith("ArtifactError cannot write")
    assert "no space left" in message
    assert names(source.parent) == ["log.parquet"]


class FullDisk(io.FileIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_keeps_the_earlier_dataset(source, monkeypatch):
    out = source.parent / "out"
    before = prepare_folder(config(source), out).report
    plain = atomic.Path.open

    def full(path, mode="r", **options):
        return FullDisk(path, "w") if mode == "wb" else plain(path, mode, **options)

    monkeypatch.setattr(atomic.Path, "open", full)
    with pytest.raises(ArtifactError, match="no space left"):
        prepare_folder(config(source), out, force=True)
    monkeypatch.undo()
    assert open_dataset(out, verify=True).manifest == before
    assert names(source.parent) == ["log.parquet", "out"]


def test_error_in_the_block_keeps_the_earlier_folder(tmp_path):
    out = tmp_path / "out"
    with atomic.atomic_folder(out) as folder:
        atomic.write_file(folder / "a", b"first")

    def fail():
        with atomic.atomic_folder(out) as folder:
            atomic.write_file(folder / "a", b"second")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (out / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["out"]


def test_atomic_folder_replaces_the_earlier_content(tmp_path):
    out = tmp_path / "out"
    for name in ("first", "second"):
        with atomic.atomic_folder(out) as folder:
            atomic.write_file(folder / name, b"x")
    assert names(out) == ["second"]
    assert names(tmp_path) == ["out"]


TOKEN = "0123456789abcdef" * 2


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folder_is_never_missing_or_recovered(tmp_path, monkeypatch, can_exchange):
    """A kill after any rename: the folder holds the earlier or the new content, at latest after
    the clean-up of the next run."""
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    out = tmp_path / "out"
    with atomic.atomic_folder(out) as folder:
        atomic.write_file(folder / "a", b"first")
    rename, done = atomic.Path.rename, []

    def killed(path, target):
        rename(path, target)
        done.append(target)
        os._exit(9)

    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if can_exchange else 9)
    else:
        atomic.Path.rename = killed
        with atomic.atomic_folder(out) as folder:
            atomic.write_file(folder / "a", b"second")
        os._exit(0)
    assert out.exists() == can_exchange
    atomic.remove_stale(out)
    assert (out / "a").read_bytes() == (b"second" if can_exchange else b"first")
    assert names(tmp_path) == ["out"]


def test_exchange_that_the_system_refuses_keeps_the_earlier_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with atomic.atomic_folder(out) as folder:
        atomic.write_file(folder / "a", b"first")

    def refuse(first, second):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(atomic, "_exchange", refuse)
    with (
        pytest.raises(ArtifactError, match="cannot write"),
        atomic.atomic_folder(out) as folder,
    ):
        atomic.write_file(folder / "a", b"second")
    assert (out / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["out"]


def test_replaced_folder_is_the_same_one_for_its_readers(tmp_path):
    """A reader that has files of the earlier folder mapped still reads them."""
    out = tmp_path / "out"
    with atomic.atomic_folder(out) as folder:
        atomic.write_file(folder / "a", b"first")
    with (out / "a").open("rb") as reader:
        with atomic.atomic_folder(out) as folder:
            atomic.write_file(folder / "a", b"second")
        assert reader.read() == b"first"


def test_renamed_folder_gets_its_name_back(tmp_path):
    (tmp_path / f".out.{TOKEN}.old").mkdir()
    (tmp_path / f".out.{TOKEN}.old" / "a").write_bytes(b"good")
    (tmp_path / f".out.{TOKEN}.tmp").mkdir()
    atomic.remove_stale(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"good"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [True, False])
def test_prepare_restores_the_dataset_of_a_kill_between_two_renames(source, force):
    """Only where the file system cannot exchange two folders: there the dataset has no name for
    a moment."""
    out = source.parent / "out"
    before = prepare_folder(config(source), out).report
    out.rename(source.parent / f".out.{TOKEN}.old")
    (source.parent / f".out.{TOKEN}.tmp").mkdir()
    prepared = prepare_folder(config(source), out, force=force)
    assert prepared.up_to_date == (not force)
    assert open_dataset(out, verify=True).manifest["fingerprint"] == before["fingerprint"]
    assert names(source.parent) == ["log.parquet", "out"]


def test_stale_folders_are_those_of_the_same_target(tmp_path):
    kept = [f".out2.{TOKEN}.tmp", ".out.tmp", f".out.x.{TOKEN}.tmp", f"out.{TOKEN}.tmp"]
    for name in [*kept, f".out.{TOKEN}.tmp", f".out.{TOKEN}.old"]:
        (tmp_path / name).mkdir()
    with atomic.atomic_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([*kept, "out"])


def test_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ArtifactError, match="cannot write"),
        atomic.atomic_folder(tmp_path / "file" / "out"),
    ):
        pass


def test_write_file_returns_size_and_checksum(tmp_path):
    size, checksum = atomic.write_file(tmp_path / "a", b"ab", memoryview(b"c"))
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert size == 3
    # FIPS 180-2, appendix B.1
    assert checksum == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
