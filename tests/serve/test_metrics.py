"""Counters of several processes in one view."""

import os
import stat
import subprocess
import sys

import pytest

from candid.errors import ConfigError
from candid.serve.metrics import free_files, read_all, restore_folder

PROGRAM = """
import os, resource, sys
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from candid.errors import ArtifactError
from candid.serve.metrics import Metrics
try:
    metrics = Metrics(os.environ["PROMETHEUS_MULTIPROC_DIR"])
except ArtifactError as error:
    sys.exit(str(error))
count = int(sys.argv[1])
metrics.requests.labels("/v1/model", "GET", "200").inc(count)
metrics.seconds.labels("/v1/model").observe(0.003 * count)
metrics.in_flight.set(count)
metrics.model_version.labels("films").set(count)
print("ready", flush=True)
sys.stdin.readline()
print(metrics.to_text().decode())
"""


@pytest.fixture
def start(tmp_path):
    """Starts a process that counts; returns it when it has counted."""
    environment = os.environ | {
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    processes = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        processes.append(process)
        process.stdout.readline()
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def values(process):
    text, _ = process.communicate("\n")
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {line[0]: float(line[1]) for line in lines if len(line) == 2}


def test_every_process_shows_the_sum_of_all(start):
    ended, first, second = start(5), start(2), start(3)
    assert values(ended)['candid_requests_total{method="GET",route="/v1/model",status="200"}'] == 10
    shown = values(first)
    assert shown['candid_requests_total{method="GET",route="/v1/model",status="200"}'] == 10
    assert shown['candid_request_seconds_count{route="/v1/model"}'] == 3
    assert shown['candid_request_seconds_bucket{le="0.01",route="/v1/model"}'] == 2
    assert shown['candid_model_version{model="films"}'] == 5
    assert values(second) == shown


def test_gauges_of_a_dead_process_do_not_count(start, tmp_path):
    from prometheus_client.multiprocess import mark_process_dead

    dead, alive = start(5), start(2)
    dead.kill()
    dead.wait()
    mark_process_dead(dead.pid, str(tmp_path))
    shown = values(alive)
    assert shown["candid_requests_in_flight"] == 2
    assert shown['candid_model_version{model="films"}'] == 2
    assert shown['candid_requests_total{method="GET",route="/v1/model",status="200"}'] == 7


def test_space_of_the_files_is_reserved(start, tmp_path):
    """A write to a mapped file on a full disk would end the process with SIGBUS."""
    process = start(1)
    files = list(tmp_path.glob(f"*_{process.pid}.db"))
    assert len(files) == 4
    for file in files:
        assert file.stat().st_blocks * 512 >= 1 << 20


def test_missing_space_is_one_sentence(start):
    process = start(1, "limited")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "no space for the metrics of a worker" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(("keeps_counters", "count"), [(True, 7), (False, 2)])
def test_ended_process_needs_little_space(start, tmp_path, keeps_counters, count):
    dead, alive = start(5), start(2)
    dead.kill()
    dead.wait()
    free_files(tmp_path, dead.pid, keeps_counters=keeps_counters)
    sizes = [path.stat().st_size for path in tmp_path.glob(f"*_{dead.pid}.db")]
    assert sum(sizes) < 10_000
    assert len(sizes) == (2 if keeps_counters else 0)
    name = 'candid_requests_total{method="GET",route="/v1/model",status="200"}'
    assert float(values(alive)[name]) == count


def test_removed_folder_is_made_again_and_has_no_counters(tmp_path):
    folder = tmp_path / "candid-metrics"
    assert read_all(folder) == b""
    restore_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "kept").touch()
    folder.chmod(0)
    restore_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "kept").exists()


@pytest.mark.parametrize("kind", ["link", "file", "owner"])
def test_folder_of_another_user_is_refused(tmp_path, monkeypatch, kind):
    folder = tmp_path / "candid-metrics"
    if kind == "link":
        folder.symlink_to(tmp_path)
    elif kind == "file":
        folder.touch()
    else:
        folder.mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    mode = folder.lstat().st_mode
    with pytest.raises(ConfigError, match=f"{folder} .* belongs to another user: remove it"):
        restore_folder(folder)
    assert folder.lstat().st_mode == mode


def test_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be used \(No such file or directory\): create"):
        restore_folder(tmp_path / "gone" / "candid-metrics")
