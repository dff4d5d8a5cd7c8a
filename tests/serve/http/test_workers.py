"""A server of several processes: updates, reloads, deaths and signals reach all of them.

One short test of each kind is part of the usual tests; the others start more processes.
"""

import collections
import contextlib
import http.client
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from candid.serve.update_log import ItemUpdates

ADMIN = {"x-api-key": "admin"}
START_SECONDS = 180


class Server:
    """A server process whose log is in a file."""

    def __init__(self, folder, *arguments, num_workers=2, **environment):
        self.log_file = folder / "log"
        program = "from candid.cli import main; main()"
        command = [sys.executable, "-c", program, "serve", *map(str, arguments), "--port", "0"]
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", str(num_workers)],
                stderr=log,
                env=os.environ
                | {"CANDID_ADMIN_KEY": ADMIN["x-api-key"], "OMP_NUM_THREADS": "1"}
                | environment,
            )

    def lines(self, event=None, worker=None):
        """The lines of the log, or those of one event or one worker."""
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines()]
        return [
            line
            for line in lines
            if event in (None, line["event"]) and worker in (None, line.get("worker"))
        ]

    def wait_for(self, event, count=1, seconds=START_SECONDS, worker=None):
        """Wait until an event was logged ``count`` times; return its last line."""
        for _ in range(seconds * 10):
            lines = self.lines(event, worker)
            if len(lines) >= count:
                return lines[-1]
            assert self.process.poll() is None, self.log_file.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log_file.read_text())

    @property
    def port(self):
        return int(self.wait_for("listening")["address"].rsplit(":", 1)[1])

    def pid(self, worker):
        """The process of a worker."""
        self.wait_for("listening")
        return [line["pid"] for line in self.lines("worker started") if line["worker"] == worker][
            -1
        ]

    def connect(self):
        return contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=300))

    def send(self, method, path, body=None, headers=ADMIN, connection=None):
        """Send a request, over a new connection by default; return status and body."""
        with contextlib.ExitStack() as stack:
            if connection is None:
                connection = stack.enter_context(self.connect())
            content = None if body is None else json.dumps(body)
            kind = {"content-type": "application/json"}
            connection.request(method, path, content, {**headers, **kind})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")

    def everywhere(self, method, path, body=None, count=24):
        """Send a request over many connections, which reach all workers; count the answers."""
        answers = collections.Counter()
        with contextlib.ExitStack() as stack:
            # All are open at once: the workers accept them one by one in turn.
            connections = [stack.enter_context(self.connect()) for _ in range(count)]
            for connection in connections:
                connection.connect()
            for connection in connections:
                answer = self.send(method, path, body, connection=connection)
                answers[json.dumps(answer)] += 1
        return {answer: json.loads(answer) for answer in answers}.values()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def put(server, item, title):
    return server.send("PUT", f"/v1/items/{item}", {"title": title, "attributes": {"year": 2000}})


def versions(server):
    """The versions that the workers serve."""
    answers = server.everywhere("GET", "/v1/model")
    return {answer["models"][0]["version"] for _, answer in answers}


@pytest.fixture(scope="module")
def server(runs, tmp_path_factory):
    """Two workers that serve a copy of a run, whose updates are in a file."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "films").symlink_to(runs.films)
    server = Server(
        folder,
        folder / "films",
        "--item-updates",
        folder / "updates.jsonl",
        "--probe-port",
        "0",
        "--set",
        "timeout_ms=30000",
    )
    server.folder = folder
    server.wait_for("listening")
    yield server
    assert server.stop() == 0
    assert server.lines()[-1]["event"] == "stopped"


class Load:
    """Clients that send requests over connections of their own until the end of the block."""

    def __init__(self, server, request, num_clients=4):
        self.statuses = collections.Counter()
        self._request = request
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(num_clients)]

    def _run(self, number):
        count = 0
        while not self._stop.is_set():
            with self._server.connect() as connection:
                try:
                    while not self._stop.is_set():
                        status = self._request(connection, number, count)
                        count += 1
                        self.statuses[status] += 1
                        time.sleep(0.01)
                except (OSError, http.client.HTTPException):
                    self.statuses["disconnected"] += 1

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
def test_updates_are_seen_by_all_workers(server):
    assert put(server, 900, "First") == (200, {"model": "films", "item": 900, "outcome": "added"})
    [(status, item)] = server.everywhere("GET", "/v1/items/900")
    assert (status, item["title"]) == (200, "First")
    assert put(server, 900, "Second")[1]["outcome"] == "updated"
    [(status, item)] = server.everywhere("GET", "/v1/items/900")
    assert (status, item["title"]) == (200, "Second")
    assert server.send("DELETE", "/v1/items/900")[0] == 200
    [(status, _)] = server.everywhere("GET", "/v1/items/900")
    assert status == 404
    for worker in (1, 2):  # The lines of requests are written some tenths of a second later.
        server.wait_for("request", worker=worker)


@pytest.mark.campaign
def test_metrics_are_the_sum_of_all_workers(server):
    def requests():
        with server.connect() as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        name = 'candid_requests_total{method="GET",route="/v1/model",status="200"} '
        counts = [float(line.removeprefix(name)) for line in lines if line.startswith(name)]
        return sum(counts), lines

    before, _ = requests()
    server.everywhere("GET", "/v1/model", count=30)
    after, lines = requests()
    assert after - before == 30
    version = server.send("GET", "/v1/model")[1]["models"][0]["version"]
    assert f'candid_model_version{{model="films"}} {version}.0' in lines
    assert f'candid_reloads_total{{model="films",result="done"}} {version}.0' in lines


def probe_port(server):
    return int(server.wait_for("probes listening")["address"].rsplit(":", 1)[1])


def probe(port, path):
    """Ask for a path on a port of probes; return status and content."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.mark.campaign
def test_one_process_answers_probes_for_all_workers(server):
    assert server.send("GET", "/readyz")[0] == 200
    listing = ["pgrep", "-P", str(server.process.pid), "-f", "probe_server"]
    assert len(subprocess.run(listing, capture_output=True, check=True).stdout.split()) == 1
    assert probe(probe_port(server), "/readyz") == (200, b'{"status":"ready"}')
    status, metrics = probe(probe_port(server), "/metrics")
    assert status == 200
    assert b"candid_workers 2.0" in metrics.splitlines()


@pytest.mark.campaign
def test_reloads_under_load_fail_no_request(server):
    def recommend(connection, number, count):
        body = {"user": f"u{(number + count) % 40}", "k": 3}
        return server.send("POST", "/v1/recommend", body, connection=connection)[0]

    version = server.send("GET", "/v1/model")[1]["models"][0]["version"]
    with Load(server, recommend) as load:
        for number in (version + 1, version + 2):
            status, answer = server.send("POST", "/v1/admin/reload")
            assert (status, answer["models"]) == (200, {"films": number})
            assert versions(server) == {number}
    assert set(load.statuses) == {200}
    assert load.statuses[200] > 20


@pytest.mark.campaign
def test_failed_reload_keeps_the_version_of_all_workers(server, runs):
    version = server.send("GET", "/v1/model")[1]["models"][0]["version"]
    link = server.folder / "films"
    empty = server.folder / "empty"
    empty.mkdir()
    link.unlink()
    link.symlink_to(empty)
    try:
        status, answer = server.send("POST", "/v1/admin/reload")
        assert (status, answer["error"]["code"]) == (409, "reload_failed")
        assert answer["error"]["message"].endswith("the current model keeps serving")
        # A worker that starts now loads what the others serve, not what the link names.
        os.kill(server.pid(1), signal.SIGKILL)
        server.wait_for("worker ready", count=len(server.lines("worker ready")) + 1)
    finally:
        link.unlink()
        link.symlink_to(runs.films)
    assert versions(server) == {version}


@pytest.mark.slow
def test_update_on_a_full_disk_is_refused_and_changes_nothing(server):
    assert put(server, 901, "Before")[0] == 200
    size = (server.folder / "updates.jsonl").stat().st_size
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
    try:
        status, answer = put(server, 901, "After")
        assert (status, answer["error"]["code"]) == (507, "not_stored")
    finally:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
    [(_, item)] = server.everywhere("GET", "/v1/items/901")
    assert item["title"] == "Before"
    assert put(server, 901, "After")[0] == 200


@pytest.mark.slow
def test_index_that_crashes_its_library_is_refused_on_reload(
    server, runs, write_index, damage_index, tmp_path
):
    shutil.copytree(runs.films, tmp_path / "films")
    write_index(tmp_path / "films")
    damage_index(tmp_path / "films" / "index")
    before = versions(server)
    link = server.folder / "films"
    link.unlink()
    link.symlink_to(tmp_path / "films")
    try:
        status, answer = server.send("POST", "/v1/admin/reload")
    finally:
        link.unlink()
        link.symlink_to(runs.films)
    assert (status, answer["error"]["code"]) == (409, "reload_failed")
    assert "in a process of its own crashed (SIG" in answer["error"]["message"]
    assert versions(server) == before


@pytest.mark.slow
def test_killed_worker_starts_again_with_all_updates(server):
    assert put(server, 903, "Before")[0] == 200
    ready = len(server.lines("worker ready"))
    killed = server.pid(1)
    os.kill(killed, signal.SIGKILL)
    server.wait_for("worker ready", count=ready + 1)
    assert server.pid(1) != killed
    [(status, item)] = server.everywhere("GET", "/v1/items/903")
    assert (status, item["title"]) == (200, "Before")
    assert server.lines("worker ended")[-1]["reason"] == "SIGKILL"


@pytest.mark.campaign
def test_killed_worker_loses_no_update_and_starts_again(server):
    acknowledged = {}

    def update(connection, number, count):
        item, title = 1000 + 10 * number + count % 5, f"{number}-{count}"
        body = {"title": title, "attributes": {}}
        acknowledged[item] = None, title  # sent
        status, _ = server.send("PUT", f"/v1/items/{item}", body, connection=connection)
        if status == 200:
            acknowledged[item] = title, title
        return status

    ready = len(server.lines("worker ready"))
    with Load(server, update) as load:
        time.sleep(1)
        for kill in range(2):
            os.kill(server.pid(kill + 1), signal.SIGKILL)
            server.wait_for("worker ready", count=ready + kill + 1)
        time.sleep(1)
    # Only the connections of the killed process break.
    assert set(load.statuses) <= {200, "disconnected"}
    assert load.statuses["disconnected"] <= 8
    assert load.statuses[200] > 50
    for item, (title, sent) in acknowledged.items():
        [(_, answer)] = server.everywhere("GET", f"/v1/items/{item}", count=12)
        assert answer["title"] == title or (title is None and answer["title"] == sent)
    reasons = [line["reason"] for line in server.lines("worker ended")]
    assert set(reasons) == {"SIGKILL"}


@pytest.mark.campaign
def test_worker_that_hangs_is_ended_and_gets_the_update(server):
    hanging = server.pid(1)
    ready = len(server.lines("worker ready"))
    os.kill(hanging, signal.SIGSTOP)
    with server.connect() as connection:
        # The worker that hangs may have accepted the connection: then another is tried.
        for _ in range(20):
            connection.close()
            connection.timeout = 60
            with contextlib.suppress(OSError):
                body = {"title": "During", "attributes": {}}
                if server.send("PUT", "/v1/items/902", body, connection=connection)[0] == 200:
                    break
        else:
            raise AssertionError
    server.wait_for("worker ready", count=ready + 1)
    assert server.pid(1) != hanging
    [(_, item)] = server.everywhere("GET", "/v1/items/902")
    assert item["title"] == "During"


def are_running(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.campaign
def test_stop_answers_open_requests_and_a_restart_has_all_updates(runs, tmp_path):
    updates = tmp_path / "updates.jsonl"
    settings = ["batch_wait_ms=500", "quick_ms=0", "timeout_ms=30000"]
    options = [option for setting in settings for option in ("--set", setting)]
    server = Server(tmp_path, runs.films, "--item-updates", updates, *options)
    assert put(server, 900, "Stored")[0] == 200
    pids = [server.pid(1), server.pid(2)]
    statuses = []

    def recommend():
        statuses.append(server.send("POST", "/v1/recommend", {"user": "u3"})[0])

    threads = [threading.Thread(target=recommend) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert server.stop() == 0
    for thread in threads:
        thread.join()
    assert statuses == [200] * 6
    assert are_running(pids) == []
    with contextlib.closing(ItemUpdates(updates)) as log:
        assert log.get("films", 900).title == "Stored"


@pytest.mark.campaign
def test_workers_end_with_their_supervisor(runs, tmp_path):
    server = Server(tmp_path, runs.films, "--probe-port", "0", TMPDIR=str(tmp_path))
    ports = [server.port, probe_port(server)]
    assert probe(ports[1], "/readyz")[0] == 200
    pids = [server.pid(1), server.pid(2)]
    server.process.kill()
    server.process.wait()
    for _ in range(200):
        if not are_running(pids):
            break
        time.sleep(0.1)
    assert are_running(pids) == []
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.1", port).connect()
    assert list(tmp_path.glob("candid-metrics-*")) == []


@pytest.mark.campaign
def test_run_that_cannot_be_loaded_ends_the_server_with_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    server = Server(tmp_path, tmp_path / "empty")
    assert server.process.wait(START_SECONDS) == 4
    last = server.log_file.read_text().splitlines()[-1]
    assert "empty" in last
    assert "Traceback" not in server.log_file.read_text()


@pytest.mark.campaign
def test_damaged_checkpoint_ends_the_server_with_its_exit_code(runs, tmp_path):
    shutil.copytree(runs.films, tmp_path / "films")
    for weights in tmp_path.glob("films/**/*.safetensors"):
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    server = Server(tmp_path, tmp_path / "films")
    assert server.process.wait(START_SECONDS) == 4
    assert "damaged" in server.log_file.read_text().splitlines()[-1]


@pytest.mark.campaign
def test_restarted_worker_does_not_serve_a_replaced_run_before_a_reload(runs, tmp_path):
    films = tmp_path / "films"
    shutil.copytree(runs.films, films)
    server = Server(tmp_path, films)
    server.wait_for("listening")
    films.rename(tmp_path / "before")
    shutil.copytree(runs.by_user, films)
    os.kill(server.pid(1), signal.SIGKILL)
    ended = server.wait_for("worker ended", count=2)
    assert "the files of model 'films' have changed" in ended["reason"]
    assert versions(server) == {1}
    assert server.send("POST", "/v1/admin/reload")[1]["models"] == {"films": 2}
    server.wait_for("worker ready", count=3)
    assert versions(server) == {2}
    # Workers that hang are ended, and the port answers again.
    for worker in (1, 2):
        os.kill(server.pid(worker), signal.SIGSTOP)
    server.wait_for("worker hangs", count=2)
    server.wait_for("worker ready", count=5)
    assert versions(server) == {2}
    assert server.stop() == 0
