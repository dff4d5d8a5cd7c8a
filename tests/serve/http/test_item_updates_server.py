"""Item updates of a server process: full disks, kills, two servers on one file, moved links."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from candid.serve.update_log import ItemUpdates
from serve_load import ADMIN

pytestmark = pytest.mark.campaign  # each test starts processes
PROGRAM = "from candid.cli import main; main()"


class ServerProcess:
    """A server whose log a thread reads, with an admin client."""

    def __init__(self, *arguments):
        command = [sys.executable, "-c", PROGRAM, "serve", *map(str, arguments), "--port", "0"]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, env=os.environ | {"CANDID_ADMIN_KEY": ADMIN}
        )
        self._lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        while not (listening := self.events("listening")):
            assert self.process.poll() is None, self._lines
            time.sleep(0.05)
        self.address = listening[0]["address"]
        self.client = httpx.Client(base_url=self.address, headers={"x-api-key": ADMIN}, timeout=30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self._reader.join()
        self.process.stderr.close()

    def _read(self):
        self._lines.extend(self.process.stderr)

    def events(self, name):
        lines = map(json.loads, self._lines)
        return [line for line in lines if line["event"] == name]

    def put(self, item, title, **parameters):
        body = {"title": title, "attributes": {"genres": ["Horror"]}}
        return self.client.put(f"/v1/items/{item}", json=body, params=parameters)

    def title(self, item):
        answer = self.client.get(f"/v1/items/{item}")
        return answer.json()["title"] if answer.status_code == 200 else None


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="prlimit exists on Linux only")
def test_update_that_does_not_fit_is_507_and_has_no_effect(runs, tmp_path):
    file = tmp_path / "updates.jsonl"
    large = 9007199254740993  # beyond 2^53
    with ServerProcess(runs.films, "--item-updates", file) as server:
        assert server.put(large, "First").status_code == 200
        content = file.read_bytes()
        pid, infinite = server.process.pid, resource.RLIM_INFINITY
        # The system then takes a part of the record only, as a nearly full disk does.
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (len(content) + 20, infinite))
        for answer in (
            server.put(large, "Second"),
            server.put(501, "New"),
            server.client.delete("/v1/items/106"),
        ):
            assert answer.status_code == 507
            assert answer.headers["retry-after"] == "30"
            assert answer.json()["error"]["code"] == "not_stored"
        assert file.read_bytes() == content
        assert [server.title(item) for item in (large, 501, 106)] == [
            "First",
            None,
            "The 6th Film",
        ]
        assert len(server.events("item update not stored")) == 3
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (infinite, infinite))
        assert server.put(501, "New").json()["outcome"] == "added"
        assert server.title(501) == "New"


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a file system of ``size`` bytes in memory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_and_restart_on_a_full_disk(runs, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"):
        file = disk / "updates.jsonl"
        stored = {}
        with ServerProcess(runs.films, "--item-updates", file) as server:
            (disk / "other").write_bytes(b"x" * 40_000)
            for number in range(500, 700):
                answer = server.put(number, f"Film {number} " + "x" * 900)
                if answer.status_code != 200:
                    break
                stored[number] = f"Film {number} " + "x" * 900
            assert answer.status_code == 507
            assert 5 < len(stored) < 100
            assert server.title(number) is None
        with ServerProcess(runs.films, "--item-updates", file) as server:
            assert all(server.title(item) == title for item, title in stored.items())
            assert server.put(number, "x" * 900).status_code == 507
            (disk / "other").unlink()
            assert server.put(number, "Last").status_code == 200


def test_every_answered_update_survives_a_kill(runs, tmp_path):
    file = tmp_path / "updates.jsonl"
    rng = random.Random(0)
    answered = {}
    for _ in range(3):
        with ServerProcess(runs.films, "--item-updates", file) as server:
            for item, title in answered.items():
                assert server.title(item) == title

            def send(first, server=server, answered=answered):
                with contextlib.suppress(httpx.HTTPError):
                    for number in range(10_000):
                        item, title = first + number % 7, f"{first} {number}"
                        if number % 5 == 4:
                            item, title = first + (number - 1) % 7, None
                            status = server.client.delete(f"/v1/items/{item}").status_code
                        else:
                            status = server.put(item, title).status_code
                        assert status == 200
                        answered[item] = title

            # Each thread has its own items: the last answer of an item is its latest update.
            threads = [threading.Thread(target=send, args=(n,)) for n in (1000, 2000)]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.2, 1.5))
            server.process.kill()
            for thread in threads:
                thread.join()
        # An update without an answer may be stored or not: one of each thread.
        stored = latest(file)
        unanswered = [item for item in answered if stored[item] != answered[item]]
        assert len(unanswered) <= len(threads)
        answered |= {item: stored[item] for item in unanswered}
        assert answered


def latest(file):
    """Return the title of each item from the lines of a file of item updates."""
    titles = {}
    for line in file.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)["entry"]
            titles[entry["item"]] = entry["update"] and entry["update"]["title"]
    return titles


def test_second_server_on_one_file_is_refused_with_the_holder(runs, tmp_path):
    file = tmp_path / "updates.jsonl"
    with ServerProcess(runs.films, "--item-updates", file) as server:
        command = [sys.executable, "-c", PROGRAM, "serve", str(runs.films), "--port", "0"]
        second = subprocess.run(
            [*command, "--item-updates", str(file)], capture_output=True, text=True, timeout=60
        )
        assert second.returncode == 2
        assert f"another process writes {file} (pid {server.process.pid} on " in second.stderr
        assert server.put(500, "Still served").status_code == 200
    assert not file.with_name("updates.jsonl.lock").exists()


def test_link_that_is_moved_keeps_the_name_and_the_item_updates(runs, tmp_path):
    file = tmp_path / "updates.jsonl"
    with contextlib.closing(ItemUpdates(file)) as updates:
        updates.append("old", 500, None)
    options = ("--item-updates", file)
    link = tmp_path / "live" / "movies"
    link.parent.mkdir()
    link.symlink_to(runs.films)
    with ServerProcess(link, *options) as server:
        assert server.put(500, "Dark Wood", model="movies").status_code == 200
        [line] = server.events("item updates of models that are not served")
        assert (line["items"], line["level"]) == ({"old": 1}, "warning")
    tomorrow = tmp_path / "2026-11-28"
    shutil.copytree(runs.films, tomorrow)
    link.unlink()
    link.symlink_to(tomorrow)
    with ServerProcess(link, runs.films, "--name", "movies", "--name", "old", *options) as server:
        assert server.title(500) == "Dark Wood"
        answer = server.client.post("/v1/recommend", json={"user": "u3", "model": "movies"})
        assert answer.json()["model"] == "movies"
        assert server.events("item updates of models that are not served") == []
