"""A real process: load, swaps, signals, an orderly end, and what it refuses to start with."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx

import serve_fuzz
import serve_load
from serve_load import ADMIN, served


def test_load_and_swaps_without_a_failed_request(runs):
    with served(str(runs.films), str(runs.by_user)) as (process, address):
        requests = [
            serve_load.post("/v1/recommend", body)
            for body in (
                {"user": "u3"},
                {"history": [101, 102]},
                {"user": "u3", "model": "by-user"},
            )
        ]
        stop = threading.Event()
        generations = []

        def reload():
            with httpx.Client(base_url=address, headers={"x-api-key": ADMIN}, timeout=30) as admin:
                while not stop.is_set():
                    answer = admin.post("/v1/admin/reload", json={"model": "films"})
                    assert answer.status_code == 200
                    generations.append(answer.json()["models"]["films"])
                    time.sleep(0.2)

        thread = threading.Thread(target=reload)
        thread.start()
        found = serve_load.loaded(address, requests, rate=40, seconds=3)
        stop.set()
        thread.join()
        assert found["failed"] == 0
        assert found["statuses"] == {"200": 120}
        assert generations == list(range(2, 2 + len(generations)))
        assert len(generations) >= 2
        # SIGHUP loads both; nobody waits for it.
        before = generations[-1]
        process.send_signal(signal.SIGHUP)
        for _ in range(100):
            models = httpx.get(f"{address}/v1/model").json()["models"]
            if [model["generation"] for model in models] == [before + 1, 2]:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(models)
    assert process.returncode == 0


def test_what_was_asked_before_the_end_is_answered(runs):
    settings = ["--set", "batch_wait_ms=700", "--set", "drain_ms=600"]
    with served(str(runs.films), *settings) as (process, address):
        results = []

        def ask():
            body = {"user": "u3"}
            results.append(httpx.post(f"{address}/v1/recommend", json=body).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        ready = httpx.get(f"{address}/readyz")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
        assert httpx.get(f"{address}/healthz").status_code == 200  # it still answers
        thread.join()
        assert results == [200]
        assert process.wait(20) == 0


def test_malformed_requests(server):
    process, address = server
    found = serve_fuzz.mutated(address, process.pid, count=1500, seed=0)
    assert found["server_errors"] == 0
    assert found["other_forms"] == 0
    assert found["requests"] == 1500
    assert set(found["statuses"]) <= {"200", "400", "404", "405", "413", "415", "422"}
    assert found["statuses"]["200"] > 0  # some mutations are fine: it reaches the model


def candid(*arguments, **environment):
    program = "from candid.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "serve", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=60,
        check=False,
    )


def test_an_address_in_use_is_told_in_one_sentence(runs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = candid(runs.films, "--port", port)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_line_is_json_and_tells_nothing_personal(runs):
    program = "from candid.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", str(runs.films), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:
        lines.append(json.loads(line))
        if lines[-1]["event"] == "listening":
            break
    address = lines[-1]["address"]
    httpx.post(f"{address}/v1/recommend", json={"user": "u31"})
    httpx.post(f"{address}/v1/recommend", json={"user": "someone else"})
    httpx.get(f"{address}/v1/items/104?query=private")
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(20) == 0
    lines += [json.loads(line) for line in rest.splitlines()]
    asked = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in asked] == [200, 422, 200]
    assert [line["route"] for line in asked] == ["/v1/recommend"] * 2 + ["/v1/items/{id:path}"]
    for word in ("u31", "someone", "private", "104", "127.0.0.1"):
        assert word not in rest.replace('"ms": 104', "")
