"""The supervisor of workers: hanging ones, ones that cannot start, and files that have changed."""

import dataclasses
from pathlib import Path
from time import monotonic

import pytest

from candid.errors import CandidError
from candid.serve.config import ServeConfig
from candid.serve.model_files import ModelFiles
from candid.serve.supervisor import HUNG_SECONDS, MAX_FAILED_STARTS, SILENT_SECONDS, Supervisor
from candid.serve.update_log import ItemUpdates
from candid.serve.worker_process import WorkerProcess

WEIGHTS = {"films": "identity of the weights"}


class Process:
    """A process that only notes how it was ended."""

    pid = 1
    returncode = 1

    def __init__(self):
        self.signals = []

    def send_signal(self, number):
        self.signals.append(number.name)


class NoChannel:
    def close(self):
        pass


@dataclasses.dataclass
class Server:
    supervisor: Supervisor
    reports: list[str | None]
    restarts: list[int]

    def add(self, number, **fields):
        worker = WorkerProcess(number, Process(), versions={"films": 1}, **fields)
        worker.channel = NoChannel()
        self.supervisor._group.workers.append(worker)
        return worker


@pytest.fixture(name="server")
def _server(tmp_path, monkeypatch):
    """A listening supervisor of two workers, which are added by the test."""
    reports, restarts = [], []
    supervisor = Supervisor(
        {"films": ModelFiles(Path("films"))},
        config=ServeConfig(),
        access={},
        listener=None,
        address="",
        updates=ItemUpdates(),
        metrics=tmp_path,
        report=reports.append,
        beat=lambda: None,
        num_workers=2,
    )
    supervisor._is_listening = True
    # The test calls the handlers itself.
    monkeypatch.setattr(supervisor, "_later", lambda seconds, handle, value=None: None)
    monkeypatch.setattr(supervisor, "_restart", restarts.append)
    return Server(supervisor, reports, restarts)


def test_hanging_workers_are_ended_and_the_server_is_not_ready(server):
    workers = [server.add(n, is_ready=True) for n in (1, 2)]
    server.supervisor._watch(None)
    assert server.reports == []
    for worker in workers:
        worker.alive = monotonic() - SILENT_SECONDS - 1
    server.supervisor._watch(None)
    assert server.reports == ["no worker answers"]
    workers[1].alive = monotonic()
    server.supervisor._watch(None)
    assert server.reports == ["no worker answers", None]
    workers[0].alive = monotonic() - HUNG_SECONDS - 1
    server.supervisor._watch(None)
    assert [worker.process.signals for worker in workers] == [["SIGKILL"], []]


def test_suspended_supervisor_does_not_take_its_workers_for_hanging(server):
    worker = server.add(1, is_ready=True, alive=monotonic() - 100)
    server.supervisor._watched = monotonic() - 100
    server.supervisor._watch(None)
    assert worker.process.signals == []
    assert server.reports == []


def test_worker_that_cannot_start_does_not_end_a_server_that_answers(server):
    server.supervisor._on_ready(server.add(2, is_ready=True))
    for _ in range(MAX_FAILED_STARTS + 3):
        server.supervisor._on_end(server.add(1, failure=("damaged", 4)))
    assert server.reports == [None]


def test_server_whose_workers_all_fail_ends_with_the_exit_code_of_the_worker(server):
    for _ in range(MAX_FAILED_STARTS - 1):
        server.supervisor._on_end(server.add(1, failure=("damaged", 4)))
        server.supervisor._on_end(server.add(2, failure=("damaged", 4)))
    server.supervisor._on_end(server.add(1, failure=("damaged", 4)))
    with pytest.raises(CandidError, match="damaged") as caught:
        server.supervisor._on_end(server.add(2, failure=("damaged", 4)))
    assert caught.value.exit_code == 4


def test_worker_of_other_files_than_the_first_one_is_not_admitted(server):
    group = server.supervisor._group
    first, second, third = (server.add(number) for number in (1, 2, 2))
    assert group.admit(first, WEIGHTS)
    assert not group.admit(second, {"films": "other weights"})
    assert "the files of model 'films' have changed" in second.failure[0]
    assert not second.is_ready
    assert group.admit(third, WEIGHTS)


def test_folder_of_the_metrics_is_made_again_before_a_worker_starts(server, monkeypatch):
    supervisor = server.supervisor
    folder = supervisor._metrics

    class Started(Exception):
        pass

    def start(*arguments, **settings):
        assert folder.is_dir()
        raise Started

    folder.rmdir()
    monkeypatch.setattr(WorkerProcess, "start", start)
    with pytest.raises(Started):
        supervisor._start(1, is_first=False)
