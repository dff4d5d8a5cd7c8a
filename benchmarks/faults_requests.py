"""Hostile requests and clients: the server must stay up and answer ordinary requests.

No status of 5xx but 503 and 507 is allowed, and ordinary requests and probes are answered within a
second beside slow clients, endless heads, idle connections and reloads.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from faults_server import ADMIN, Found, Server, ServerCampaign, is_healthy
from serve_fuzz import send_mutated
from serve_load import post

ANSWER = 1.0
"""Seconds within which an ordinary request and a probe are answered beside hostile clients."""
RELOAD = 300.0
"""Seconds within which a reload is answered, with others before it."""
ACCEPTED_ERRORS = (503, 507)
HEADS = (
    b"", b"\r\n", b"\r\n" * 2000, b"\x00" * 100, b"\x16\x03\x01\x02\x00\x01\x00", b"GET", b"GET /",
    b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET  /  HTTP/1.1\r\nhost: x\r\n\r\n",
    b"get / http/1.1\r\nhost: x\r\n\r\n", b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n host: x\r\n\r\n", b"GET /healthz HTTP/1.1\nhost: x\n\n",
    b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999999999\r\n\r\n{",
    b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
    b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    b"ffffffffffffffff1\r\n",
    b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n"
    b"content-length: 3\r\n\r\n0\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\na: " + b"b" * 300_000 + b"\r\n\r\n",
    b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET http://x/healthz HTTP/1.1\r\nhost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 200,
)  # fmt: skip


class Requests(ServerCampaign):
    """The campaign of hostile requests and clients."""

    name = "requests"

    def kinds(self) -> tuple[Callable[[random.Random], Found], ...]:
        """Return the kinds of cases."""
        return (
            self._mutated_requests, self._malformed_heads, self._slow_clients,
            self._reload_storm, self._clients_that_go, self._overload,
        )  # fmt: skip

    def _mutated_requests(self, rng: random.Random) -> Found:
        count = int(2000 * self._size)
        with self.serving("run_features", "--item-updates", "updates", "-q") as server:
            result = send_mutated(
                server.address, server.pid, count, rng.randrange(2**31), ADMIN, changes=True
            )
            for finding in result["findings"]:
                yield "an answer that is not allowed", json.dumps(finding)
            memory = result["anonymous_mib"]
            if count >= 50_000 and memory[-1] > 1.05 * memory[4]:
                yield f"memory grew from {memory[2]} to {memory[-1]} MiB", str(memory)
            yield from is_healthy(server)

    def _malformed_heads(self, rng: random.Random) -> Found:
        with self.serving() as server:
            heads = [rng.choice(HEADS) for _ in range(int(100 * self._size))]
            for head in heads:
                with suppress(OSError), server.connect() as connection:
                    connection.settimeout(0.3)
                    connection.sendall(
                        head[: rng.choice((len(head), rng.randrange(len(head) + 1)))]
                    )
                    status = connection.recv(100).split(b" ", 2)[1:2]
                    if status and status[0][:1] == b"5" and int(status[0]) not in ACCEPTED_ERRORS:
                        yield f"status {status[0].decode()}", repr(head[:300])
            yield from is_healthy(server)

    def _slow_clients(self, rng: random.Random) -> Found:
        with self.serving() as server:
            opened, is_over = [], threading.Event()
            for _ in range(int(150 * self._size)):
                with suppress(OSError):
                    opened.append(server.connect())
            endless = [threading.Thread(target=endless_head, args=(server.connect, is_over))
                       for _ in range(max(2, int(8 * self._size)))]  # fmt: skip
            for thread in endless:
                thread.start()
            for connection in opened[::3]:
                with suppress(OSError):
                    connection.sendall(b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\n"
                                       b"content-type: application/json\r\n"
                                       b"content-length: 40\r\n\r\n{")  # fmt: skip
            try:
                yield from self._ordinary(server, "slow_clients", 10)
            finally:
                is_over.set()
                for thread in endless:
                    thread.join()
                for connection in opened:
                    connection.close()
            yield from is_healthy(server)

    def _clients_that_go(self, rng: random.Random) -> Found:
        body = json.dumps({"user": 3, "k": 5}).encode()
        request = (b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                   b"content-length: %d\r\n\r\n" % len(body)) + body  # fmt: skip
        with self.serving() as server:
            for _ in range(int(400 * self._size)):
                with suppress(OSError), server.connect() as connection:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                          b"\x01\x00\x00\x00\x00\x00\x00\x00")  # fmt: skip
                    connection.sendall(request[: rng.randrange(1, len(request) + 60)])
            yield from self._ordinary(server, "clients_that_go", 5)
            yield from is_healthy(server)
            if "Traceback" in server.command.error_text():
                yield "a traceback in the log", server.command.error_text()[-600:]

    def _reload_storm(self, rng: random.Random) -> Found:
        with self.serving() as server:
            statuses: list[int] = []
            threads = [threading.Thread(target=_reload, args=(server, statuses)) for _ in range(6)]
            for thread in threads:
                thread.start()
            failed = []
            while any(thread.is_alive() for thread in threads):
                try:
                    status, document = server.ask("POST", "/v1/recommend", {"user": 3, "k": 5})
                except OSError as error:
                    status, document = 0, repr(error)
                if status != 200:
                    failed.append((status, str(document)[:200]))
            if failed:
                yield f"{len(failed)} requests failed during reloads", repr(failed[:3])
            wrong = [s for s in statuses if (s >= 500 and s not in ACCEPTED_ERRORS) or s == 0]
            if wrong:
                yield f"reloads answered with {wrong[0]}", server.command.error_text()[-600:]
            yield from is_healthy(server)

    def _overload(self, rng: random.Random) -> Found:
        """Send as fast as many clients can: refusals are 503, and probes are quick."""
        queries = [
            post("/v1/recommend", {"user": rng.randrange(60), "k": 40}, ADMIN) for _ in range(100)
        ]
        with self.serving("run", "-q") as server:
            is_over, took, statuses = threading.Event(), list[float](), Counter[int]()
            clients = [
                threading.Thread(target=_send, args=(server, queries[n::8], is_over, statuses))
                for n in range(max(8, int(64 * self._size)))
            ]
            probe = threading.Thread(target=_probe, args=(server, is_over, took))
            for thread in (*clients, probe):
                thread.start()
            is_over.wait(6)
            is_over.set()
            for thread in (*clients, probe):
                thread.join()
            self.measured.setdefault("overload /healthz", []).extend(took)
            others = {status: n for status, n in statuses.items() if status not in (200, 503)}
            if others:
                yield f"answers beyond capacity have status {others}", str(statuses)
            if max(took) > 1000 * ANSWER:
                yield f"/healthz took {max(took):.0f} ms beyond capacity", str(statuses)
            yield from is_healthy(server)

    def _ordinary(self, server: Server, name: str, count: int) -> Found:
        for method, path, body in (
            ("POST", "/v1/recommend", {"user": 3, "k": 5}), ("GET", "/healthz", None)
        ) * count:  # fmt: skip
            began = time.perf_counter()
            try:
                status, _ = server.ask(method, path, body, 20)
            except OSError as error:
                yield f"{path} is not answered beside {name}: {error!r}", ""
                continue
            took = time.perf_counter() - began
            self.measured.setdefault(f"{name} {path}", []).append(round(took * 1000, 1))
            if status != 200 or took > ANSWER:
                yield f"{path} has status {status} after {took:.2f} s beside {name}", ""


def endless_head(connect: Callable[[], socket.socket], is_over: threading.Event) -> None:
    """Send one request head without an end until the server closes the connection."""
    with suppress(OSError), connect() as connection:
        connection.settimeout(1)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: ")
        while not is_over.is_set():
            connection.sendall(b"a" * 16_384)
            is_over.wait(0.001)


def _send(
    server: Server, queries: list[bytes], is_over: threading.Event, statuses: Counter[int]
) -> None:
    """Send one request after the other, each on a connection of its own; status 0: no answer."""
    number = 0
    while not is_over.is_set():
        number += 1
        try:
            with server.connect() as connection:
                connection.settimeout(30)
                connection.sendall(queries[number % len(queries)])
                statuses[int(connection.recv(4096).split(b" ", 2)[1])] += 1
        except (OSError, IndexError, ValueError):
            statuses[0] += 1


def _probe(server: Server, is_over: threading.Event, took: list[float]) -> None:
    """Measure a probe every 50 ms, in milliseconds; one without an answer took 20 s."""
    while not is_over.wait(0.05):
        began = time.perf_counter()
        try:
            server.ask("GET", "/healthz", None, 20)
        except OSError:
            took.append(20_000.0)
            continue
        took.append(round(1000 * (time.perf_counter() - began), 1))


def _reload(server: Server, statuses: list[int]) -> None:
    for _ in range(3):
        try:
            statuses.append(server.ask("POST", "/v1/admin/reload", {}, RELOAD)[0])
        except OSError:
            statuses.append(0)
