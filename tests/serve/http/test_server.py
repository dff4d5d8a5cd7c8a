"""A server process: load, reloads, signals, shutdown, log, malformed requests."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

import serve_fuzz
import serve_load
from serve_load import ADMIN, start_server
from serve_reloads import ReloadStorm


@pytest.mark.slow
def test_load_and_reloads_without_a_failed_request(runs):
    # On a machine with other work a request may wait longer than the default limit of one second.
    slow = ["--set", "timeout_ms=10000"]
    with start_server(str(runs.films), str(runs.by_user), *slow) as (process, address):
        requests = [
            serve_load.post("/v1/recommend", body)
            for body in (
                {"user": "u3"},
                {"history": [101, 102]},
                {"user": "u3", "model": "by-user"},
            )
        ]
        stop = threading.Event()
        versions = []

        def reload():
            with httpx.Client(base_url=address, headers={"x-api-key": ADMIN}, timeout=120) as admin:
                while not stop.is_set():
                    answer = admin.post("/v1/admin/reload", json={"model": "films"})
                    assert answer.status_code == 200
                    versions.append(answer.json()["models"]["films"])
                    time.sleep(0.2)

        thread = threading.Thread(target=reload)
        thread.start()
        loads = []
        while len(loads) < 2 or len(versions) < 2:
            loads.append(serve_load.run_load(address, requests, rate=40, seconds=3))
        stop.set()
        thread.join()
        assert [load["statuses"] for load in loads] == [{"200": 120}] * len(loads)
        assert versions == list(range(2, 2 + len(versions)))
        assert len(versions) >= 2
        # SIGHUP reloads both in the background.
        before = versions[-1]
        process.send_signal(signal.SIGHUP)
        for _ in range(1200):
            models = httpx.get(f"{address}/v1/model").json()["models"]
            if [model["version"] for model in models] == [before + 1, 2]:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(models)
        found = serve_fuzz.send_mutated(address, process.pid, count=500, seed=1, changes=True)
        assert (found["server_errors"], found["other_forms"]) == (0, 0)
        assert set(found["statuses"]) & {"200", "400", "404", "422"}
    assert process.returncode == 0


@pytest.mark.campaign
def test_storm_of_reloads_fails_no_request_and_bad_models_are_refused(runs, tmp_path):
    link = tmp_path / "films"
    link.symlink_to(runs.films)
    requests = [
        serve_load.post("/v1/recommend", body) for body in ({"user": "u3"}, {"history": [101]})
    ]
    arguments = [str(link), "--data", str(runs.films.parent / "data"), "--set", "timeout_ms=10000"]
    with start_server(*arguments) as (process, address):
        storm = ReloadStorm(address, clients=6)
        with storm.running():
            load = serve_load.run_load(address, requests, rate=30, seconds=5)
        assert load["statuses"] == {"200": 150}
        assert set(storm.answers) == {"200"}
        # Two reloads at most for six clients: the running one and the one that all wait for.
        assert len(storm.versions) < sum(storm.answers.values())
        # A run that cannot be served: the reason, the current version, and a counter.
        version = httpx.get(f"{address}/v1/model").json()["models"][0]["version"]
        link.unlink()
        link.symlink_to(tmp_path / "nowhere")
        answer = httpx.post(f"{address}/v1/admin/reload", headers={"x-api-key": ADMIN}, timeout=120)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "reload_failed")
        assert "the current model keeps serving" in answer.json()["error"]["message"]
        metrics = httpx.get(f"{address}/metrics").text
        assert 'candid_reloads_total{model="films",result="failed"} 1.0' in metrics
        again = httpx.post(f"{address}/v1/recommend", json={"user": "u3"}).json()
        assert again["version"] == version
        # A shutdown does not wait for a reload.
        with ReloadStorm(address, clients=1).running():
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def start(*arguments):
    """Start a server whose log the test reads; return the process and the address."""
    program = "from candid.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        entry = json.loads(line)
        if entry["event"] == "listening":
            return process, entry["address"]
    raise AssertionError("the server did not start")


@pytest.mark.slow
def test_shutdown_answers_open_requests_and_the_log_has_no_personal_data(runs):
    settings = ["--set", "batch_wait_ms=500", "--set", "drain_ms=1000"]
    process, address = start(runs.films, *settings)
    httpx.post(f"{address}/v1/recommend", json={"user": "someone else"})
    httpx.get(f"{address}/v1/items/104?query=private")
    results = []

    def send_request():
        results.append(httpx.post(f"{address}/v1/recommend", json={"user": "u31"}).status_code)

    thread = threading.Thread(target=send_request)
    thread.start()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    ready = httpx.get(f"{address}/readyz")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
    assert httpx.get(f"{address}/healthz").status_code == 200  # it still answers
    thread.join()
    assert results == [200]
    log = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["event"] for line in lines][-1] == "stopped"
    requests = [line for line in lines if line["event"] == "request"]
    assert [(line["route"], line["status"]) for line in requests] == [
        ("/v1/recommend", 422),
        ("/v1/items/{id}", 200),
        ("/v1/recommend", 200),
    ]
    for word in ("u31", "someone", "private", "/104", "127.0.0.1"):
        assert word not in log


def test_malformed_requests_get_the_common_error(server):
    process, address = server
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"NO HTTP\r\n\r\n")
        answer = raw.recv(9999)
    assert b"400 Bad Request" in answer
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "bad_request"
    found = serve_fuzz.send_mutated(address, process.pid, count=1500, seed=0)
    assert found["server_errors"] == 0
    assert found["other_forms"] == 0
    assert found["requests"] == 1500
    assert set(found["statuses"]) <= {"200", "400", "404", "405", "413", "415", "422", "503"}
    assert found["statuses"]["200"] > 0  # some mutations are valid and reach the model
