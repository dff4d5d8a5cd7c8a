"""Temporary folders: removed at the end, and after a kill by the next process that makes one."""

import gc
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from candid import temporary
from candid.temporary import TemporaryFolder

HOLDER = """
import sys, time
from candid.temporary import TemporaryFolder
folder = TemporaryFolder("test")
(folder.path / "large").write_bytes(b"content")
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


@pytest.fixture
def start(root):
    """Start processes that hold a temporary folder; return them with its name."""
    processes = []

    def holder():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        processes.append(process)
        return process, process.stdout.readline().strip().rpartition("/")[2]

    yield holder
    for process in processes:
        process.kill()
        process.communicate()


def test_folder_is_private_and_removed_at_the_end(root):
    with TemporaryFolder("test") as folder:
        assert re.fullmatch("candid-test-[0-9a-f]{32}", folder.path.name)
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        (folder.path / "content").touch()
    assert os.listdir(root) == []
    folder.remove()


def test_folder_is_removed_with_its_object(root):
    folder = TemporaryFolder("test")
    assert len(os.listdir(root)) == 2
    del folder
    gc.collect()
    assert os.listdir(root) == []


def test_folder_of_a_killed_process_is_removed_by_the_next(root, start):
    (killed, first), (_, second) = start(), start()
    killed.kill()
    killed.wait()
    (root / first / "subfolder").mkdir()
    with TemporaryFolder("other") as folder:
        names = {first, second, folder.path.name} - {first}
        assert set(os.listdir(root)) == names | {f"{name}.lock" for name in names}
    assert (root / second / "large").read_bytes() == b"content"


def test_folder_of_a_program_that_ends_is_removed(root, start):
    process, name = start()
    assert (root / name).exists()
    process.communicate("", timeout=60)
    assert os.listdir(root) == []


@pytest.mark.parametrize(
    ("folder", "lock", "content"),
    [
        ("candid-notes", "candid-notes.lock", ""),
        (f"candid-test-{'0' * 31}", f"candid-test-{'0' * 31}.lock", ""),
        (f"candid-test-{'0' * 32}", f"candid-test-{'0' * 32}.lock", "of another program"),
        (f"candid-test-{'0' * 32}", "other.lock", ""),  # perhaps in use: a cleaner took the lock
    ],
)
def test_folders_of_others_stay(root, folder, lock, content):
    (root / folder).mkdir()
    (root / folder / "mine").touch()
    (root / lock).write_text(content)
    TemporaryFolder("other").remove()
    assert (root / folder / "mine").exists()
    assert (root / lock).read_text() == content


def test_link_in_the_place_of_a_lock_is_not_followed(root):
    name = f"candid-test-{'0' * 32}"
    (root / name).mkdir()
    (root / f"{name}.lock").symlink_to(root / "elsewhere")
    TemporaryFolder("other").remove()
    assert sorted(os.listdir(root)) == [name, f"{name}.lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_folder_of_another_user_stays(root, start):
    process, name = start()
    process.kill()
    process.wait()
    os.chown(root / f"{name}.lock", 65534, -1)
    TemporaryFolder("other").remove()
    assert (root / name).exists()


def test_file_system_without_locks_keeps_all_folders(root, start, monkeypatch):
    process, name = start()
    process.kill()
    process.wait()
    monkeypatch.setattr("candid.locks._flock", lambda descriptor: False)
    TemporaryFolder("other").remove()
    assert sorted(os.listdir(root)) == [name, f"{name}.lock"]


def test_every_temporary_folder_of_the_package_is_one_of_these():
    """A folder of the standard library would stay after a kill."""
    package = Path(temporary.__file__).parent
    found = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if re.search("mkdtemp|TemporaryDirectory", path.read_text())
    }
    assert found == {"testing"}  # suites that the tests of other packages run
