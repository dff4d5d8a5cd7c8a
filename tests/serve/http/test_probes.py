"""Probes on a thread of their own: health, readiness, metrics, also while the loop is busy."""

import json
import socket
import threading
import time

import httpx
import pytest

import serve_load
from candid.serve.errors import RequestError
from candid.serve.http.probes import STALLED_SECONDS, ProbeServer, ServerStatus
from candid.serve.metrics import Metrics


@pytest.fixture(name="status")
def _status():
    return ServerStatus()


@pytest.fixture(name="probes")
def _probes(status):
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = ProbeServer(sock, status, Metrics().to_text)
    server.start()
    host, port = server.address
    with httpx.Client(base_url=f"http://{host}:{port}", timeout=10) as client:
        yield client
    server.stop()


def test_readiness_follows_the_status(probes, status):
    loading = probes.get("/readyz")
    assert (loading.status_code, loading.json()["error"]["code"]) == (503, "not_ready")
    assert loading.json()["error"]["message"] == "the server loads its models"
    assert probes.get("/healthz").json() == {"status": "alive"}
    status.not_ready = None
    ready = probes.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    status.not_ready = "the server is shutting down"
    assert probes.get("/readyz").status_code == 503
    assert probes.get("/readyz").headers["retry-after"] == "1"


def test_metrics_and_other_addresses(probes):
    assert "candid_connections " in probes.get("/metrics").text
    assert probes.get("/v1/model").json()["error"]["code"] == "not_found"
    assert probes.post("/healthz").status_code == 405
    assert (probes.head("/healthz").status_code, probes.head("/healthz").content) == (200, b"")


def test_malformed_probe_gets_the_common_error(probes):
    port = probes.base_url.port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(b"\x00\r\n\r\n")
        content = b""
        while part := raw.recv(65536):
            content += part
    assert content.startswith(b"HTTP/1.1 400 ")
    assert json.loads(content.rpartition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"


def test_probes_are_answered_while_another_thread_computes(probes):
    stop = threading.Event()

    def compute():
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        assert [probes.get("/healthz").status_code for _ in range(10)] == [200] * 10
    finally:
        stop.set()
        thread.join()


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


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.campaign
def test_probe_port_answers_while_the_server_has_more_requests_than_it_can_answer(runs):
    port = free_port()
    arguments = ("--quiet", "--probe-port", str(port))
    with (
        serve_load.start_server(str(runs.films), *arguments) as (_, address),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as probes,
    ):
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
