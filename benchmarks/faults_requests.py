"""Hostile requests and clients: the server must stay up and answer ordinary requests.

No status of 5xx but 503 and 507 is allowed, and ordinary requests and probes are answered within a
second beside slow clients, endless heads, idle connections and reloads.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from faults_process import fork_lines, messages
from faults_server import ADMIN, Found, Server, ServerCampaign, is_healthy
from serve_fuzz import send_mutated
from serve_load import post

ANSWER = 1.0
"""Seconds within which an ordinary request and a probe are answered beside hostile clients."""
PROBE, LATE = 0.1, 0.05
"""Seconds within which a probe on its own port is answered beyond capacity, and the share of probes
that may be later: the clients share the cores with the server."""
OVERLOAD = 6.0
"""Seconds of load beyond capacity."""
RELOAD = 300.0
"""Seconds within which a reload is answered, with others before it."""
ACCEPTED_ERRORS = (503, 507)
LEVEL_MIB, LEAK_KIB = 2.0, 4.0
"""Growth of memory that is allowed: MiB of a case, and KiB of a request in a long one."""
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
            if grown := memory_growth(result["anonymous_mib"], count):
                yield grown, str(result["anonymous_mib"])
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
        """Send as fast as many clients can: refusals are 503, and probes are quick.

        A process of its own sends the probes to their port: here they would wait for the clients.
        """
        queries = [
            post("/v1/recommend", {"user": rng.randrange(60), "k": 40}, ADMIN) for _ in range(100)
        ]
        with self.serving("run", "-q", "--probe-port", "0") as server:
            is_over, statuses = threading.Event(), Counter[int]()
            port = server.probe_port()
            probe = fork_lines(lambda send: send(_probe(server.host, port, OVERLOAD)))
            clients = [
                threading.Thread(target=_send, args=(server, queries[n::8], is_over, statuses))
                for n in range(max(8, int(64 * self._size)))
            ]
            for thread in clients:
                thread.start()
            took = next(messages(*probe))
            is_over.set()
            for thread in clients:
                thread.join()
            self.measured.setdefault("overload /healthz, probe port", []).extend(took)
            others = {status: n for status, n in statuses.items() if status not in (200, 503)}
            if others:
                yield f"answers beyond capacity have status {others}", str(statuses)
            if problem := probe_problem(took):
                yield f"{problem} beyond capacity", str(statuses)
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


def probe_problem(took: Sequence[float]) -> str | None:
    """Describe probes that are too slow; None: they are not.

    Args:
        took: milliseconds of each.
    """
    if max(took) > 1000 * ANSWER:
        return f"a probe took {max(took):.0f} ms"
    late = sum(ms > 1000 * PROBE for ms in took)
    if late > LATE * len(took):
        return f"{late} of {len(took)} probes took more than {1000 * PROBE:.0f} ms"
    return None


def memory_growth(memory: Sequence[float], count: int) -> str | None:
    """Describe memory that grows with the requests; None: it is level.

    Args:
        memory: MiB before the first of the requests and after each tenth of them.
        count: of the requests.
    """
    # The first half fills caches. The second half of 2,000 requests took 0.1 to 0.3 MiB.
    half = memory[len(memory) // 2]
    allowed = max(LEVEL_MIB, count / 2 * LEAK_KIB / 1024)
    if memory[-1] - half <= allowed:
        return None
    return f"memory grew from {half} to {memory[-1]} MiB in the second half of {count:,} requests"


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


def _probe(host: str, port: int, seconds: float) -> list[float]:
    """Measure a probe every 50 ms, in milliseconds; one without a good answer took 20 s."""
    took, end = list[float](), time.monotonic() + seconds
    while time.monotonic() < end:
        began, is_alive = time.perf_counter(), False
        connection = http.client.HTTPConnection(host, port, timeout=20)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/healthz")
            is_alive = connection.getresponse().status == 200
        connection.close()
        took.append(round(1000 * (time.perf_counter() - began), 1) if is_alive else 20_000.0)
        time.sleep(0.05)
    return took


def _reload(server: Server, statuses: list[int]) -> None:
    for _ in range(3):
        try:
            statuses.append(server.ask("POST", "/v1/admin/reload", {}, RELOAD)[0])
        except OSError:
            statuses.append(0)
