"""Raw connections to a server process: malformed, slow, endless and abandoned requests."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import threading
import time

import httpx
import pytest

import serve_fuzz
from serve_load import ADMIN, start_server

BODY = b'{"user": "u3", "k": 1}'
HOST = b"host: x\r\n"
JSON = b"content-type: application/json\r\n"
GET = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
LIMITS = {
    "max_head": 8192,
    "max_body": 20_000,
    "head_timeout_ms": 1500,
    "body_timeout_ms": 1500,
    "write_timeout_ms": 1500,
    "timeout_ms": 5000,
    "max_connections": 300,
}


@pytest.fixture(scope="module")
def edge(runs):
    """The address of a server with small limits."""
    settings = [part for name, value in LIMITS.items() for part in ("--set", f"{name}={value}")]
    with start_server(str(runs.films), "--quiet", *settings) as (_, address):
        yield address


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=15)


def post(*headers: bytes, body: bytes = b"", path: bytes = b"/v1/recommend") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + JSON + lines + b"\r\n" + body


def exchange(address: str, data: bytes) -> tuple[list[int], bytes]:
    """Send bytes and read until the server closes; return the statuses and everything read."""
    with connect(address) as raw:
        # The server may answer and stop reading before everything is sent.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            raw.sendall(data)
        content = read_all(raw)
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", content)], content


def read_all(raw: socket.socket) -> bytes:
    parts = []
    while part := raw.recv(65536):
        parts.append(part)
    return b"".join(parts)


def get(raw: socket.socket) -> None:
    """Send a request on an open connection and read the answer."""
    raw.sendall(GET)
    content = b""
    while not content.endswith(b'{"status":"alive"}'):
        part = raw.recv(65536)
        assert part, content
        content += part


def code(content: bytes) -> str:
    return json.loads(content.rpartition(b"\r\n\r\n")[2])["error"]["code"]


def counter(address: str, name: str) -> float:
    text = httpx.get(f"{address}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.split()[-1]) for line in lines)


CHUNKED = b"transfer-encoding: chunked"
LENGTH = b"content-length: %d" % len(BODY)
MALFORMED = {
    "endless header": (b"GET / HTTP/1.1\r\nx: " + b"a" * 3_000_000, 431, "head_too_large"),
    "endless path": (b"GET /" + b"a" * 3_000_000, 431, "head_too_large"),
    "endless empty lines": (b"\r\n" * 1_000_000, 431, "head_too_large"),
    "many headers": (GET[:-2] + b"a: b\r\n" * 300 + b"\r\n", 431, "head_too_large"),
    "endless chunk extension": (post(CHUNKED, body=b"5;" + b"a" * 99_999), 431, "head_too_large"),
    "endless trailer": (post(CHUNKED, body=b"0\r\nx: " + b"a" * 99_999), 431, "head_too_large"),
    "no HTTP": (b"\x00\x01\x02\r\n\r\n", 400, "bad_request"),
    "TLS": (bytes.fromhex("1603010200010001fc0303") + b"U" * 500, 400, "bad_request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
    "CONNECT": (b"CONNECT a.test:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad_request"),
    "two lengths": (post(LENGTH, b"content-length: 5", body=BODY), 400, "bad_request"),
    "length and chunks": (post(LENGTH, CHUNKED, body=b"0\r\n\r\n"), 400, "bad_request"),
    "negative length": (post(b"content-length: -1", body=BODY), 400, "bad_request"),
    "length of 24 digits": (post(b"content-length: " + b"9" * 24), 400, "bad_request"),
    "chunk size": (post(CHUNKED, body=b"ZZ\r\n"), 400, "bad_request"),
    "chunk end": (post(CHUNKED, body=b"5\r\nhelloXX\r\n0\r\n\r\n"), 400, "bad_request"),
    "chunk of 2**68 bytes": (post(CHUNKED, body=b"f" * 17 + b"\r\n"), 400, "bad_request"),
    "transfer-encoding": (post(b"transfer-encoding: gzip", body=b"x"), 400, "bad_request"),
    "space after the name": (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400, "bad_request"),
    "bare line feeds": (b"GET / HTTP/1.1\nhost: x\n\n", 400, "bad_request"),
    "body with Upgrade": (
        post(b"connection: upgrade", b"upgrade: tls/1.0", LENGTH, body=BODY),
        400,
        "bad_request",
    ),
    "length above the limit": (
        post(b"content-length: 99999999", body=b" " * 3_000_000),
        413,
        "too_large",
    ),
    "chunks above the limit": (
        post(CHUNKED, body=(b"1000\r\n" + b" " * 4096 + b"\r\n") * 500),
        413,
        "too_large",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_gets_one_error_and_the_connection_is_closed(edge, name):
    data, status, expected = MALFORMED[name]
    started = time.monotonic()
    statuses, content = exchange(edge, data)
    assert statuses == [status]
    assert code(content) == expected
    assert b"connection: close" in content.lower()
    assert time.monotonic() - started < 10


ACCEPTED = {
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", [200]),
    "empty lines before": (b"\r\n\r\n" + GET, [200]),
    "absolute URL": (b"GET http://a.test/healthz HTTP/1.1\r\n" + HOST + b"\r\n", [200]),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", [404]),
    "OPTIONS": (b"OPTIONS /v1/recommend HTTP/1.1\r\n" + HOST + b"\r\n", [405]),
    "HEAD": (b"HEAD /healthz HTTP/1.1\r\n" + HOST + b"\r\n", [200]),
    "GET with a body": ((GET[:-2] + b"content-length: 5\r\n\r\nhello") * 2, [200, 200]),
    "chunks": (post(CHUNKED, body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)), [200]),
    "trailers": (post(CHUNKED, body=b"%x\r\n%s\r\n0\r\na: b\r\n\r\n" % (len(BODY), BODY)), [200]),
    "Expect": (post(b"expect: 100-continue", LENGTH, body=BODY), [100, 200]),
    "offer of HTTP/2": (
        post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", LENGTH, body=BODY),
        [200],
    ),
    "WebSocket": (GET[:-2] + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n", [200]),
    "pipelined": (GET * 20, [200] * 20),
    "no Host": (b"GET /v1/model HTTP/1.1\r\n\r\n", [400]),
    "two Hosts": (b"GET /v1/model HTTP/1.1\r\n" + HOST * 2 + b"\r\n", [400]),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_unusual_request_is_answered(edge, name):
    data, expected = ACCEPTED[name]
    with connect(edge) as raw:
        raw.sendall(data)
        content = b""
        while len(re.findall(rb"HTTP/1\.1 \d+", content)) < len(expected):
            part = raw.recv(65536)
            assert part, content
            content += part
    assert [int(s) for s in re.findall(rb"HTTP/1\.1 (\d+)", content)] == expected


def test_malformed_request_is_answered_after_the_earlier_ones(edge):
    statuses, content = exchange(edge, GET * 3 + b"\x00" * 9999)
    assert statuses == [200, 200, 200, 400]
    assert code(content) == "bad_request"


def test_pipelined_requests_have_a_limit(edge):
    statuses, content = exchange(edge, (b"GET /v1/model HTTP/1.1\r\n" + HOST + b"\r\n") * 2000)
    assert statuses[-1] == 400
    assert statuses[:-1] == [200] * 65  # one is answered, 64 wait
    assert b"at most 64 requests may wait for earlier answers" in content


@pytest.mark.campaign
def test_broken_http_never_gets_a_server_error(runs):
    settings = [part for limit in serve_fuzz.RAW_LIMITS for part in ("--set", limit)]
    with start_server(str(runs.films), "--quiet", *settings) as (_, address):
        found = serve_fuzz.send_raw(address, count=300, seed=3)
    assert found["findings"] == 0
    assert {"200", "400", "408", "431"} <= found["statuses"].keys()


def test_absolute_url_names_the_host(runs):
    with start_server(str(runs.films), "--allowed-host", "good.test") as (_, address):
        request = b"GET http://%s/v1/model HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n\r\n"
        assert exchange(address, request % (b"good.test", b"evil.test"))[0] == [200]
        assert exchange(address, request % (b"evil.test", b"good.test"))[0] == [421]
        assert httpx.get(f"{address}/healthz").status_code == 200


def test_head_of_one_byte_at_a_time_gets_408(edge):
    before = counter(edge, 'candid_connections_closed_total{reason="slow_head"}')
    with connect(edge) as raw:
        get(raw)  # The limit holds for later requests as well.
        started = time.monotonic()
        raw.settimeout(0.2)
        content = b""
        for byte in GET * 2:
            raw.sendall(bytes([byte]))
            try:
                content = raw.recv(65536)
                break
            except TimeoutError:
                pass
        assert 1.4 < time.monotonic() - started < 5
    assert content.startswith(b"HTTP/1.1 408 ")
    assert code(content) == "slow_head"
    assert counter(edge, 'candid_connections_closed_total{reason="slow_head"}') == before + 1


def test_connection_without_a_request_is_closed(edge):
    with connect(edge) as raw:
        started = time.monotonic()
        assert raw.recv(1) == b""
        assert 1.4 < time.monotonic() - started < 5


def test_connection_is_kept_for_the_next_request_after_the_time_of_a_head(edge):
    with connect(edge) as raw:
        for _ in range(2):
            get(raw)
            time.sleep(2)
        get(raw)


def test_rest_of_a_body_is_dropped_after_an_early_answer(edge):
    with connect(edge) as raw:
        raw.sendall(post(b"content-length: 5000", path=b"/nothing"))
        content = raw.recv(65536)
        assert content.startswith(b"HTTP/1.1 404 ")
        while not content.endswith(b"}"):  # The head and the body may arrive apart.
            content += raw.recv(65536)
        raw.sendall(b"x" * 5000)
        get(raw)
    with connect(edge) as raw:  # A body that does not arrive ends the connection.
        raw.sendall(post(b"content-length: 5000", path=b"/nothing"))
        content, started = b"", time.monotonic()
        while part := raw.recv(65536):
            content += part
        assert content.startswith(b"HTTP/1.1 404 ")
        assert content.count(b"HTTP/1.1 ") == 1
        assert 1.4 < time.monotonic() - started < 5


def test_client_that_does_not_read_is_disconnected(edge):
    before = counter(edge, 'candid_connections_closed_total{reason="slow_reader"}')
    query = json.dumps({"queries": [{"user": "u3", "k": 20}] * 100}).encode()
    request = post(b"content-length: %d" % len(query), body=query, path=b"/v1/recommend/batch")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = edge.removeprefix("http://").split(":")
    with raw:
        raw.connect((host, int(port)))
        raw.sendall(request * 30)
        for _ in range(100):
            time.sleep(0.1)
            if counter(edge, 'candid_connections_closed_total{reason="slow_reader"}') > before:
                break
        else:
            raise AssertionError("the connection is still open")
    assert counter(edge, "candid_requests_in_flight") == 1  # the request for the metrics


@pytest.mark.parametrize("is_idle", [True, False])
def test_oldest_waiting_connection_makes_place_for_a_new_one(edge, is_idle):
    name = 'candid_connections_closed_total{reason="limit"}'
    before = counter(edge, name)
    waiting = []
    try:
        with connect(edge) as kept:  # In use, so never closed.
            for _ in range(400):
                raw = connect(edge)
                if is_idle:
                    get(raw)
                else:
                    raw.sendall(b"GET /healthz HTTP/1.1\r\nx: ")
                waiting.append(raw)
                if len(waiting) % 50 == 0:
                    get(kept)
            assert httpx.get(f"{edge}/healthz").status_code == 200
            assert 90 <= counter(edge, name) - before <= 130
            assert counter(edge, "candid_connections") <= 301
            waiting[0].settimeout(5)
            assert waiting[0].recv(1) == b""
            # The latest ones are open.
            if is_idle:
                get(waiting[-1])
    finally:
        for raw in waiting:
            raw.close()


def test_request_of_a_client_that_has_gone_is_dropped(edge):
    name = 'candid_refused_total{reason="client_gone"}'
    before, queries = counter(edge, name), counter(edge, "candid_batch_size_sum")
    slow = json.dumps({"queries": [{"history": [101, 102], "k": 20}] * 128}).encode()
    request = post(b"content-length: %d" % len(slow), body=slow, path=b"/v1/recommend/batch")
    sockets = [connect(edge) for _ in range(10)]
    for raw in sockets:
        raw.sendall(request)
    for raw in sockets:
        raw.close()
    for _ in range(50):
        time.sleep(0.1)
        if counter(edge, "candid_requests_in_flight") == 1:
            break
    assert counter(edge, "candid_requests_in_flight") == 1
    gone = counter(edge, name) - before
    assert gone >= 5  # The first ones may have been answered before the connection was closed.
    computed = counter(edge, "candid_batch_size_sum") - queries
    assert computed < 6 * 128  # One batch was running when the clients went.


@pytest.mark.campaign
def test_two_thousand_idle_connections_and_endless_heads_leave_requests_answered(runs):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip(f"needs 5,000 file descriptors; the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stop, sockets = threading.Event(), []
    try:
        with start_server(str(runs.films), "--quiet") as (_, address):
            sockets = [connect(address) for _ in range(2000)]
            for raw in sockets[:1000]:
                get(raw)

            def send_endless_head():
                while not stop.is_set():
                    try:
                        with connect(address) as raw:
                            raw.sendall(b"GET / HTTP/1.1\r\nx: ")
                            while not stop.is_set():
                                raw.sendall(b"a" * 5000)
                                stop.wait(0.02)
                    except OSError:
                        stop.wait(0.05)

            threads = [threading.Thread(target=send_endless_head) for _ in range(20)]
            for thread in threads:
                thread.start()
            seconds = []
            with httpx.Client(base_url=address, headers={"x-api-key": ADMIN}) as client:
                for number in range(40):
                    started = time.monotonic()
                    path = "/healthz" if number % 2 else "/v1/recommend"
                    answer = (
                        client.get(path)
                        if number % 2
                        else client.post(path, json={"user": "u3", "k": 5})
                    )
                    assert answer.status_code == 200
                    seconds.append(time.monotonic() - started)
                    time.sleep(0.05)
            stop.set()
            for thread in threads:
                thread.join()
            assert max(seconds) < 1, seconds
    finally:
        stop.set()
        for raw in sockets:
            raw.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
