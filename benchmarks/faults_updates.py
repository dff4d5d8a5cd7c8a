"""Updates and reloads of the server: kills, full disks, torn files and damaged models.

An update that was acknowledged is there after every restart, one that was refused has no effect,
and a model that cannot be loaded leaves the served one in use.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults_content import damaged
from faults_kills import left_processes
from faults_process import TEMPORARY, Stop, fork_lines, messages
from faults_server import START, Found, Server, ServerCampaign, is_healthy, small_disk
from faults_snapshot import temporary_files


class Updates(ServerCampaign):
    """The campaign of updates and reloads."""

    name = "updates"

    def kinds(self) -> tuple[Callable[[random.Random], Found], ...]:
        """Return the kinds of cases."""
        return (
            self._killed_updates, self._damaged_reload, self._full_disk, self._torn_updates,
            self._killed_worker,
        )  # fmt: skip

    def _killed_updates(self, rng: random.Random) -> Found:
        """Kill the server twice in a stream of updates; the acknowledged ones must be there.

        The update that a kill cut off may be stored without an acknowledgement, and stays then.
        """
        state, sent = dict[int, tuple[str, str | None]](), 0
        arguments = ("run_features", "--item-updates", "updates", "-q")
        for _ in range(2):
            stop = Stop(rng.randrange(1, 60)) if rng.random() < 0.5 else None
            server, unsure = Server(self._folder, *arguments, stop=stop), None
            try:
                if server.listen():
                    yield from self._compare_updates(server, state)
                    limit = rng.randrange(1, 60)
                    while sent < 1000 and limit:
                        sent, limit = sent + 1, limit - 1
                        unsure = _random_update(rng, sent)
                        try:
                            if _send_update(server, *unsure):
                                state[unsure[0]] = unsure[1:]
                        except OSError:
                            break
                        unsure = None
                elif stop is None:
                    yield "the server does not start", server.command.error_text()
                    return
            finally:
                server.command.kill()
                server.command.finish()
            with self.serving(*arguments) as second:
                if unsure is not None:
                    yield from self._settle(second, state, unsure)
                yield from self._compare_updates(second, state)

    def _killed_worker(self, rng: random.Random) -> Found:
        """Kill a worker of two in a stream of updates, then the supervisor, or all processes.

        The other worker answers and another one is started; no process and no temporary folder
        stays after the next start.
        """
        arguments = ("run_features", "--item-updates", "updates", "--workers", "2")
        state: dict[int, tuple[str, str | None]] = {}
        with self.serving(*arguments) as server:
            for number in range(1, 3 + rng.randrange(30)):
                yield from self._update(server, state, _random_update(rng, number))
            ready = len(server.events("worker ready"))
            os.kill(rng.choice(server.worker_pids()), signal.SIGKILL)
            for number in range(100, 110):
                yield from self._update(server, state, _random_update(rng, number))
            if not server.wait_for("worker ready", ready + 1):
                yield "a killed worker is not started again", server.command.error_text()[-600:]
                return
            for _ in range(3):  # both workers
                yield from self._compare_updates(server, state)
            server.command.kill()
            for pid in server.worker_pids() if rng.random() < 0.5 else ():
                with contextlib.suppress(ProcessLookupError):  # it ends with its supervisor
                    os.kill(pid, signal.SIGKILL)
        yield from left_processes(self._folder)
        with self.serving(*arguments) as server:
            yield from self._compare_updates(server, state)
            folders = temporary_files(self._folder / TEMPORARY)
            if len(folders) != 2:  # the folder of the metrics, and its lock
                yield "temporary folders of a killed server stay", str(folders)

    def _update(
        self, server: Server, state: dict[int, Any], update: tuple[int, str, str | None]
    ) -> Found:
        """Send an update to a server of which one worker may have just ended."""
        try:
            if _send_update(server, *update):
                state[update[0]] = update[1:]
        except (OSError, http.client.HTTPException):
            yield from self._settle(server, state, update)

    def _torn_updates(self, rng: random.Random) -> Found:
        """Cut the file of updates at a random byte; the server must start with those before."""
        arguments = ("run_features", "--item-updates", "updates", "-q")
        with self.serving(*arguments) as server:
            sizes = []
            for number in range(8):
                _send_update(server, 900 + number, "put", f"Title {number}")
                sizes.append((self._folder / "updates").stat().st_size)
        path = self._folder / "updates"
        cut = rng.randrange(sizes[0], sizes[-1] + 1)
        path.write_bytes(path.read_bytes()[:cut])
        whole = sum(size <= cut for size in sizes)
        with self.serving(*arguments) as server:
            state = {900 + number: ("put", f"Title {number}") for number in range(whole)}
            yield from self._compare_updates(server, state)

    def _full_disk(self, rng: random.Random) -> Found:
        """Fill the disk while updates arrive: refused ones must not take effect."""
        arguments = ("run_features", "--item-updates", "disk/updates", "-q")
        state: dict[int, tuple[str, str | None]] = {}
        with small_disk(self._folder / "disk", rng.randrange(2, 10)):
            yield from self._fill(arguments, state, rng)

    def _fill(self, arguments: tuple[str, ...], state: dict[int, Any], rng: random.Random) -> Found:
        with self.serving(*arguments) as server:
            for number in range(1, 400):
                update = _random_update(rng, number)
                status = _status_of_update(server, *update)
                if status in (200, 201, 204):
                    state[update[0]] = update[1:]
                elif status == 507:
                    yield from self._is_refused(server, update, state)
                elif status != 404:
                    yield f"an update on a full disk has status {status}", ""
                    break
        with self.serving(*arguments) as server:
            yield from self._compare_updates(server, state)

    def _is_refused(
        self, server: Server, update: tuple[int, str, str | None], state: dict[int, Any]
    ) -> Found:
        if update[0] in state:
            yield from self._compare_updates(server, {update[0]: state[update[0]]})
        elif update[0] >= 900 and server.ask("GET", f"/v1/items/{update[0]}")[0] != 404:
            yield "an update that was refused took effect", str(update)

    def _settle(
        self,
        server: Server,
        state: dict[int, tuple[str, str | None]],
        unsure: tuple[int, str, str | None],
    ) -> Found:
        """Add an update without an acknowledgement to the state if the server has stored it."""
        item, change = unsure[0], unsure[1:]
        status, document = server.ask("GET", f"/v1/items/{item}")
        if _is_result(change, status, document):
            state[item] = change
        elif item in state and not _is_result(state[item], status, document):
            yield (
                f"an item is neither as before a cut update nor as after it: {item}",
                str(document),
            )

    def _compare_updates(self, server: Server, state: dict[int, tuple[str, str | None]]) -> Found:
        for item, change in state.items():
            status, document = server.ask("GET", f"/v1/items/{item}")
            if not _is_result(change, status, document):
                yield f"an acknowledged update is lost: {change[0]} {item}", str(document)[:300]

    def _damaged_reload(self, rng: random.Random) -> Found:
        with self.serving("run", "--index", "index_usearch") as server:
            query = {"history": [101, 105], "k": 5}
            before = server.ask("POST", "/v1/recommend", query)
            for _ in range(3):
                name = rng.choice(("run", "run", "index_usearch", "data"))
                files = sorted(p for p in (self._folder / name).rglob("*") if p.is_file())
                path = rng.choice([p for p in files if p.suffix not in ("", ".jsonl", ".lock")])
                content = path.read_bytes()
                what = _damage(path, rng)
                change = f"{name}/{path.name}: {what}"
                try:
                    status, document = server.ask("POST", "/v1/admin/reload", {}, START)
                    after = server.ask("POST", "/v1/recommend", query)
                except OSError as error:
                    yield f"no answer after a damaged reload ({change}): {error!r}", ""
                    return
                if status not in (200, 409):
                    yield f"a damaged reload has status {status} ({change})", str(document)[:500]
                if after[0] != 200:
                    yield f"requests fail after a damaged reload ({change})", str(after[1])[:500]
                elif _answers(before) != _answers(after):
                    yield f"another answer after a damaged reload ({change})", ""
                path.with_name("new").write_bytes(content)
                path.with_name("new").replace(path)
            yield from is_healthy(server)


def _damage(path: Path, rng: random.Random) -> str:
    """Change a file in a child: a process that has used Polars cannot be forked any more."""

    def work(send: Callable[[Any], None]) -> None:
        content = path.read_bytes()
        what, changed = damaged(content, path.name, [content[::-1]], rng)
        path.with_name("new").write_bytes(changed)
        path.with_name("new").replace(path)
        send(what)

    what = "nothing"
    for message in messages(*fork_lines(work)):
        what = str(message)
    return what


def _is_result(change: tuple[str, str | None], status: int, document: Any) -> bool:
    """Whether an item is as a change made it."""
    method, title = change
    return status == 404 if method == "delete" else status == 200 and document["title"] == title


def _answers(answer: tuple[int, Any]) -> Any:
    document = answer[1]
    return document.get("items") if isinstance(document, dict) else document


def _random_update(rng: random.Random, number: int) -> tuple[int, str, str | None]:
    item = rng.choice((900 + rng.randrange(20), 100 + rng.randrange(40)))
    if rng.random() < 0.25:
        return item, "delete", None
    return item, "put", f"Title {number} " + "é" * rng.randrange(60)


def _status_of_update(server: Server, item: int, method: str, title: str | None) -> int:
    body = {"title": title, "attributes": {"kind": "new", "price": 1.5}} if title else None
    return server.ask(method.upper(), f"/v1/items/{item}", body)[0]


def _send_update(server: Server, item: int, method: str, title: str | None) -> bool:
    """Send an update; return whether it was acknowledged."""
    return _status_of_update(server, item, method, title) in (200, 201, 204)
