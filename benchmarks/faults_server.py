"""A server process of the fault campaign, and what every case against a server shares."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults_process import Command, Skipped

ADMIN = "benchmark"
START = 180.0
"""Seconds within which a server must listen."""
ANSWER = 1.0
"""Seconds within which an ordinary request and a probe are answered beside hostile clients."""
ACCEPTED_ERRORS = (503, 507)


class Server:
    """``candid serve`` in a forked child.

    Args:
        folder: working folder.
        arguments: after ``candid serve``.
        given: of ``Command``.
    """

    def __init__(self, folder: Path, *arguments: str, **given: Any) -> None:
        environment = {"CANDID_ADMIN_KEY": ADMIN}
        self.command = Command(
            ["serve", *arguments, "--port", "0"], folder, environment=environment, **given
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self.command.pid

    def listen(self) -> bool:
        """Wait until the server listens; return whether it does."""
        limit = time.monotonic() + START
        while time.monotonic() < limit and not self.command.wait(0.02):
            for line in self.events("listening"):
                self.address = line["address"]
                host, port = self.address.removeprefix("http://").split(":")
                self.host, self.port = host, int(port)
                return True
        return False

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of the log of an event."""
        lines = self.command.error_text().splitlines()
        return [
            json.loads(line) for line in lines if f'"event": "{name}"' in line and line[-1:] == "}"
        ]

    def worker_pids(self) -> list[int]:
        """Return the processes of the workers that were started last."""
        latest = {line["worker"]: line["pid"] for line in self.events("worker started")}
        return list(latest.values())

    def wait_for(self, name: str, count: int, seconds: float = START) -> bool:
        """Wait until an event was logged ``count`` times; return whether it was."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and not self.command.wait(0.05):
            if len(self.events(name)) >= count:
                return True
        return False

    def probe_port(self) -> int:
        """Return the port of ``--probe-port``."""
        return int(self.events("probes listening")[0]["address"].rpartition(":")[2])

    def ask(
        self, method: str, path: str, body: Any = None, seconds: float = 30.0
    ) -> tuple[int, Any]:
        """Send one request on a connection of its own; return status and document."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=seconds)
        try:
            headers = {"x-api-key": ADMIN, "content-type": "application/json"}
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """Open a plain connection."""
        return socket.create_connection((self.host, self.port), timeout=10)


Found = Iterator[tuple[str, str]]
Result = list[dict[str, Any]] | Skipped


class SkippedError(Exception):
    """A case cannot do what it is for; the message has the reason."""


class NotListeningError(Exception):
    """The server ended, or did not listen in time."""


class ServerCampaign:
    """A campaign against the server: each kind of case in turn.

    Args:
        fixture: folder of the artifacts.
        work: folder for the cases.
        seed: of the campaign.
        size: factor of the numbers of requests and clients.

    Attributes:
        measured: milliseconds of requests beside hostile clients, by kind of case.
    """

    name = "server"

    def __init__(self, fixture: Path, work: Path, seed: int, size: float = 1.0) -> None:
        self._fixture, self._seed, self._size = fixture, seed, size
        self._folder = work / self.name
        self.measured: dict[str, list[float]] = {}

    def kinds(self) -> tuple[Callable[[random.Random], Found], ...]:
        """Return the kinds of cases."""
        raise NotImplementedError

    def scenario_of(self, number: int) -> str:
        """Return the name of the kind of a case."""
        kinds = self.kinds()
        return kinds[number % len(kinds)].__name__.strip("_")

    def run_batch(self, numbers: list[int]) -> Iterator[tuple[int, Result]]:
        """Run cases; yield the number of each with its result."""
        for number in numbers:
            yield number, self.run_case(number)

    def run_case(self, number: int) -> Result:
        """Run one case; return its failures, or why it was skipped."""
        kinds = self.kinds()
        kind = kinds[number % len(kinds)]
        rng = random.Random(f"{self.name}:{self._seed}:{number}")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        for name in ("data", "run", "run_features", "index_usearch"):
            shutil.copytree(self._fixture / name, self._folder / name)
        found: list[tuple[str, str]] = []
        try:
            found.extend(kind(rng))
        except SkippedError as error:
            return Skipped(str(error))
        except NotListeningError as error:
            found.append(("the server does not start", str(error)))
        except OSError as error:
            found.append((f"no answer: {error!r}", self.log))
        name = self.scenario_of(number)
        return [
            {"scenario": name, "failure": text, "output": output[-600:]} for text, output in found
        ]

    @contextmanager
    def serving(self, *arguments: str, **given: Any) -> Iterator[Server]:
        """Serve the runs of the fixture until the block ends."""
        self.log = ""
        server = Server(self._folder, *(arguments or ("run_features", "run")), **given)
        try:
            if not server.listen():
                raise NotListeningError(server.command.error_text())
            yield server
        finally:
            server.command.kill()
            self.log = server.command.finish().err[-600:]


@contextmanager
def small_disk(folder: Path, pages: int) -> Iterator[None]:
    """Mount a file system of a few pages at ``folder``, which needs root, for a block.

    Raises:
        SkippedError: this user may not.
    """
    folder.mkdir()
    size = f"size={4 * pages}k"
    command = ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise SkippedError("a small disk cannot be mounted, which needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def is_healthy(server: Server) -> Found:
    """Yield a failure if ordinary requests and probes are not answered."""
    try:
        answers = [server.ask("GET", "/healthz")[0], server.ask("GET", "/readyz")[0],
                   server.ask("POST", "/v1/recommend", {"user": 3, "k": 5})[0]]  # fmt: skip
    except OSError as error:
        yield f"the server does not answer afterwards: {error!r}", server.command.error_text()
        return
    if answers != [200, 200, 200]:
        yield f"/healthz, /readyz and /v1/recommend have status {answers} afterwards", ""
