"""Locks: one holder at a time, named in the message, released when its process is killed."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from candid.errors import ConfigError
from candid.locks import acquire, check_not_held, holder, is_lock_file, one_writer, stored_purpose

HOLD = "import sys, time; from pathlib import Path; from candid.locks import acquire\n" + (
    "lock = acquire(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds ``tmp_path / ".lock"``."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock"), "//me:secret@host/db"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_lock_is_removed_at_its_release(tmp_path):
    lock = acquire(tmp_path / ".lock")
    assert lock.is_exclusive
    record = json.loads((tmp_path / ".lock").read_text())
    assert record["pid"] == os.getpid()
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_second_lock_is_refused_in_one_process(tmp_path):
    with acquire(tmp_path / ".lock"), pytest.raises(BlockingIOError):
        acquire(tmp_path / ".lock")
    acquire(tmp_path / ".lock").release()


def test_message_names_the_holder_and_hides_passwords(tmp_path, other):
    with (
        pytest.raises(ConfigError) as refused,
        one_writer(tmp_path / ".lock", "runs/films", "name another folder with --out"),
    ):
        pass
    message = str(refused.value)
    assert message.startswith("another process is writing runs/films (pid ")
    assert f"pid {other.pid} on {socket.gethostname()} since 20" in message
    assert "//host/db" in message
    assert "secret" not in message
    assert message.endswith("): wait until it ends, or name another folder with --out")


def test_check_names_the_holder_and_leaves_the_lock(tmp_path, other):
    with pytest.raises(ConfigError, match=rf"writing runs/films \(pid {other.pid} on"):
        check_not_held(tmp_path / ".lock", "runs/films")
    other.kill()
    other.wait()
    check_not_held(tmp_path / ".lock", "runs/films")
    assert (tmp_path / ".lock").exists()
    check_not_held(tmp_path / "missing" / ".lock", "runs/films")


def test_lock_of_a_killed_process_is_free(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / ".lock").exists()
    with one_writer(tmp_path / ".lock", "runs/films"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_file_that_is_removed_before_the_lock_is_not_held(tmp_path, monkeypatch):
    """A waiting process that locks the file just removed must lock the one of that name."""
    path, real, calls = tmp_path / ".lock", fcntl.flock, []

    def flock(descriptor: int, flags: int) -> None:
        real(descriptor, flags)
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = acquire(path)
    assert len(calls) == 2
    assert path.exists()
    with pytest.raises(BlockingIOError):
        acquire(path)
    lock.release()


def test_one_of_many_threads_holds_a_lock_at_a_time(tmp_path):
    inside, largest, counted = [], [], []

    def work() -> None:
        while len(counted) < 200:
            try:
                with acquire(tmp_path / ".lock"):
                    inside.append(1)
                    largest.append(len(inside))
                    inside.pop()
                    counted.append(1)
            except BlockingIOError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(largest) == 1


def test_file_system_without_locks_is_not_refused(tmp_path, monkeypatch):
    def refuse(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with acquire(tmp_path / ".lock") as lock:
        assert not lock.is_exclusive


def test_purpose_of_a_killed_process_is_read_by_its_successor(tmp_path):
    path, program = (
        tmp_path / ".lock",
        HOLD.replace("(Path(sys.argv[1]))", "(Path(sys.argv[1]), {'init': 'r'})"),
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    assert stored_purpose(path) == {"init": "r"}
    with acquire(path):
        assert stored_purpose(path) is None
    path.write_text("{")
    assert stored_purpose(path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"\xff{",
        b"[1]",
        pytest.param(b'{"pid": ' + b"[" * 100_000, id="nested"),
        b'{"pid": Infinity, "host": "a"}',
    ],
)
def test_damaged_record_is_an_unknown_process(tmp_path, content):
    path = tmp_path / ".lock"
    path.write_bytes(content)
    assert holder(path) == "unknown process"
    assert stored_purpose(path) is None
    assert is_lock_file(path) == content.endswith(b"}")


@pytest.mark.parametrize("content", ["1234\n", "{}", '{"name": 1}', '{"pid":1}', "\0\0x"])
def test_file_that_is_not_a_lock_is_refused_and_stays(tmp_path, content):
    path = tmp_path / ".lock"
    path.write_text(content)
    with (
        pytest.raises(ConfigError, match=f"^{path} is a file that candid did not write.*move it"),
        one_writer(path, tmp_path),
    ):
        pass
    assert path.read_text() == content
    path.unlink()
    acquire(path).release()


@pytest.mark.parametrize("content", ["", "{", '{"pid": ', '{"pid": 12, "ho', "\0" * 40])
def test_lock_file_of_a_killed_process_without_its_whole_record_is_taken(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with acquire(tmp_path / ".lock"):
        assert holder(tmp_path / ".lock").startswith(f"pid {os.getpid()} ")


def test_missing_folder_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        acquire(tmp_path / "missing" / ".lock")
