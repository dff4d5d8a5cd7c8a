"""Probes answered by a process of their own: health, readiness, metrics, under any load."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

import serve_load
from candid.serve.errors import RequestError
from candid.serve.http import probe_server, probes
from candid.serve.http.listening import bind
from candid.serve.http.probes import ProbeProcess
from candid.serve.metrics import Metrics
from candid.serve.server_status import STALLED_SECONDS, ServerStatus

WAIT_SECONDS = 30


@pytest.fixture(name="status")
def _status():
    return ServerStatus()


@contextlib.contextmanager
def running(status, to_text):
    """Run a process of probes; yield what the server has of it, and a client."""
    probes = ProbeProcess(bind("127.0.0.1", 0, "--probe-port"), status, to_text)
    probes.start()
    try:
        with client(probes.address[1]) as http:
            yield probes, http
    finally:
        probes.stop()


def client(port):
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)


@pytest.fixture(name="probes")
def _probes(status, monkeypatch):
    """A client; the process hears of changes only, and not again and again."""
    monkeypatch.setattr(probes, "REPORT_SECONDS", 1000)
    with running(status, Metrics().to_text) as (_, http):
        yield http


def wait_for(http, path, status, reason=""):
    """Wait until a probe has a status, and its body a reason; return the seconds."""
    began = time.monotonic()
    while True:
        answer = http.get(path)
        seconds = time.monotonic() - began
        if answer.status_code == status and reason in answer.text:
            return seconds
        assert seconds < WAIT_SECONDS, answer.text
        time.sleep(0.02)


def processes_of(parent):
    """The processes of probes that a server has started."""
    listing = subprocess.run(
        ["pgrep", "-P", str(parent), "-f", "probe_server"], capture_output=True, text=True
    )
    return [int(pid) for pid in listing.stdout.split()]


def assert_refused(port):
    began = time.monotonic()
    while time.monotonic() - began < WAIT_SECONDS:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.02)
    raise AssertionError("the port still accepts connections")


def test_readiness_follows_the_status(probes, status):
    loading = probes.get("/readyz")
    assert (loading.status_code, loading.json()["error"]["code"]) == (503, "not_ready")
    assert loading.json()["error"]["message"] == "the server loads its models"
    assert probes.get("/healthz").json() == {"status": "alive"}
    status.not_ready = None
    wait_for(probes, "/readyz", 200)
    assert probes.get("/readyz").json() == {"status": "ready"}
    status.not_ready = "the server is shutting down"
    wait_for(probes, "/readyz", 503, "the server is shutting down")
    assert probes.get("/readyz").headers["retry-after"] == "1"
    assert probes.get("/healthz").status_code == 200


def test_metrics_and_other_addresses(probes):
    metrics = probes.get("/metrics")
    assert "candid_connections " in metrics.text
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4"
    assert probes.get("/v1/model").json()["error"]["code"] == "not_found"
    assert probes.post("/healthz").status_code == 405
    assert (probes.head("/healthz").status_code, probes.head("/healthz").content) == (200, b"")
    assert probes.get("/healthz?a=b").headers["x-content-type-options"] == "nosniff"


def test_failure_of_the_metrics_is_an_error_and_the_next_request_is_answered(status):
    texts = iter([OSError("secret"), b"again 1\n"])

    def to_text():
        text = next(texts)
        if isinstance(text, Exception):
            raise text
        return text

    with running(status, to_text) as (_, http):
        failed = http.get("/metrics")
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal")
        assert "secret" not in failed.text
        assert http.get("/metrics").text == "again 1\n"


@pytest.mark.parametrize(
    ("content", "answered", "code"),
    [
        (b"\x00\r\n\r\n", 400, "bad_request"),
        (b"\r\n\r\n\r\n\r\n", 400, "bad_request"),
        (b"GET /healthz HTTP/1.1\r\nhost : a\r\n\r\n", 400, "bad_request"),
        (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", 404, "not_found"),
        (b"CONNECT healthz HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\na: " + b"a" * probe_server.MAX_HEAD, 431, "head_too_large"),
    ],
)
def test_malformed_probe_gets_the_common_error(probes, content, answered, code):
    answer = answer_to(probes, content)
    assert answer.startswith(b"HTTP/1.1 %d " % answered)
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["code"] == code


def answer_to(probes, content):
    with socket.create_connection(("127.0.0.1", probes.base_url.port), timeout=20) as raw:
        raw.sendall(content)
        answer = b""
        while part := raw.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://a.test/healthz HTTP/1.1\r\nhost: a.test\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    ],
    ids=["absolute URL", "HTTP/1.0", "upgrade"],
)
def test_unusual_heads_are_answered(probes, head):
    answer = answer_to(probes, head)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'\r\n\r\n{"status":"alive"}')


def test_oldest_connections_make_place_for_probes(probes):
    with contextlib.ExitStack() as stack:
        idle = []
        for _ in range(2 * probe_server.MAX_CONNECTIONS):
            address = ("127.0.0.1", probes.base_url.port)
            idle.append(stack.enter_context(socket.create_connection(address, timeout=20)))
        assert probes.get("/healthz").status_code == 200
        assert idle[0].recv(1) == b""
        idle[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[-1].recv(1)


def test_process_of_probes_imports_no_large_library():
    code = (
        "import sys, candid.serve.http.probe_server\n"
        "print(*({'torch', 'numpy', 'pydantic', 'uvicorn', 'prometheus_client'} & {*sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "\n"


def test_probes_do_not_wait_for_the_server(probes, status):
    """The server holds Python's lock for seconds: a sum in C."""
    status.not_ready = None
    wait_for(probes, "/readyz", 200)
    script = (
        "import sys, time, urllib.request as u\n"
        "for _ in range(20):\n"
        "    began = time.monotonic()\n"
        "    u.urlopen(sys.argv[1]).read()\n"
        "    print(time.monotonic() - began)\n"
    )
    url = str(probes.base_url.join("/readyz"))
    sampler = subprocess.Popen(
        [sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True
    )
    held = 0.0
    while sampler.poll() is None:
        began = time.monotonic()
        sum(range(100_000_000))
        held = time.monotonic() - began
    seconds = [float(line) for line in sampler.stdout.read().split()]
    sampler.stdout.close()
    assert len(seconds) == 20
    assert max(seconds) < held


def test_process_that_ended_is_started_again(status, caplog):
    status.not_ready = None
    with running(status, Metrics().to_text) as (_, http):
        wait_for(http, "/readyz", 200)
        [pid] = processes_of(os.getpid())
        os.kill(pid, signal.SIGKILL)
        wait_for(http, "/readyz", 200)
        [new] = processes_of(os.getpid())
        assert new != pid
        assert "candid_connections " in http.get("/metrics").text
    assert processes_of(os.getpid()) == []
    assert_refused(http.base_url.port)


SERVER = """
import sys, time
from candid.serve.http.listening import bind
from candid.serve.http.probes import ProbeProcess
from candid.serve.server_status import ServerStatus

# The rounds of this server are always some seconds old.
status = ServerStatus(clock=lambda: time.monotonic() - float(sys.argv[1]))
probes = ProbeProcess(bind("127.0.0.1", 0, "--probe-port"), status, lambda: b"a 1\\n")
probes.start()
status.beat()
status.not_ready = None
print(probes.address[1], flush=True)
while True:
    status.beat()
    time.sleep(0.1)
"""


@pytest.fixture(name="server")
def _server():
    """A server without models in a process, whose last round is 28 seconds old."""
    age = STALLED_SECONDS - 2
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(age)], stdout=subprocess.PIPE
    ) as process:
        try:
            with client(int(process.stdout.readline())) as http:
                wait_for(http, "/readyz", 200)
                yield process, http
        finally:
            process.kill()


def test_server_that_hangs_is_not_alive(server):
    process, http = server
    process.send_signal(signal.SIGSTOP)
    assert http.get("/healthz").status_code == 200
    seconds = wait_for(http, "/healthz", 503, "the server has not read a request for 3")
    assert seconds > 0.5  # The bound was not reached at once.
    assert http.get("/readyz").status_code == 503
    process.send_signal(signal.SIGCONT)
    wait_for(http, "/healthz", 200)
    wait_for(http, "/readyz", 200)


def test_metrics_of_a_server_that_hangs_are_an_error(server, monkeypatch):
    process, http = server
    process.send_signal(signal.SIGSTOP)
    answer = http.get("/metrics")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
    process.send_signal(signal.SIGCONT)
    assert http.get("/metrics").text == "a 1\n"


def test_probes_end_with_their_server(server):
    process, http = server
    process.kill()
    process.wait()
    assert_refused(http.base_url.port)


def test_signals_of_a_group_do_not_end_the_probes(server):
    process, http = server
    [pid] = processes_of(process.pid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    assert http.get("/readyz").status_code == 200
    assert processes_of(process.pid) == [pid]


def test_stalled_loop_is_not_alive():
    times = [0.0]
    status = ServerStatus(clock=lambda: times[0])
    status.not_ready = None
    times[0] = 1000.0
    status.check_alive()  # The loop has not begun: models are loaded.
    status.beat()
    times[0] += STALLED_SECONDS
    status.check_ready()
    times[0] += 1
    with pytest.raises(RequestError, match="has not read a request for 31 seconds"):
        status.check_alive()
    with pytest.raises(RequestError, match="has not read a request"):
        status.check_ready()
    status.beat()
    status.check_ready()


@contextlib.contextmanager
def serving(runs, *arguments):
    """Run a server with a port for probes; yield process, address and a client of the probes."""
    arguments = (str(runs.films), "--quiet", "--probe-port", "0", *arguments)
    with serve_load.start_logged_server(*arguments) as (process, lines):
        listening = next(line for line in lines if line["event"] == "probes listening")
        with httpx.Client(base_url=listening["address"], timeout=20) as http:
            yield process, lines[-1]["address"], http


@pytest.mark.slow
def test_server_that_drains_is_alive_and_not_ready_until_it_ends(runs):
    with serving(runs, "--set", "drain_ms=2000") as (process, address, probes):
        assert probes.get("/readyz").status_code == 200
        assert probes.get("/metrics").text.count("candid_workers 1.0\n") == 1
        process.send_signal(signal.SIGTERM)
        wait_for(probes, "/readyz", 503, "the server is shutting down")
        assert probes.get("/healthz").status_code == 200
        assert httpx.get(f"{address}/v1/model").status_code == 200
        assert process.wait(20) == 0
        assert_refused(probes.base_url.port)


@pytest.mark.campaign
def test_served_model_that_hangs_is_not_alive_after_the_bound(runs):
    with serving(runs) as (process, _, probes):
        process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            while time.monotonic() - began < STALLED_SECONDS - 2:
                assert probes.get("/healthz").status_code == 200
                time.sleep(0.5)
            wait_for(probes, "/healthz", 503)
        finally:
            process.send_signal(signal.SIGCONT)
        wait_for(probes, "/readyz", 200)


@pytest.mark.campaign
def test_probe_port_answers_while_the_server_has_more_requests_than_it_can_answer(runs):
    with serving(runs) as (_, address, probes):
        assert probes.get("/readyz").status_code == 200
        request = serve_load.post("/v1/recommend", {"history": [101, 102], "k": 20})
        loads = []

        def send():
            loads.append(serve_load.run_load(address, [request], rate=3000, seconds=2))

        thread = threading.Thread(target=send)
        thread.start()
        seconds = []
        while thread.is_alive():
            started = time.monotonic()
            assert probes.get("/readyz").status_code == 200
            seconds.append(time.monotonic() - started)
            time.sleep(0.05)
        thread.join()
        assert loads[0]["statuses"].keys() - {"error"} <= {"200", "503"}
        # The client of this test shares the interpreter with the load: half a second is its own.
        assert sorted(seconds)[len(seconds) // 2] < 0.5
        assert probes.get("/metrics").text.count("candid_refused_total") >= 1
