"""Ordinary requests and probes while clients keep the server busy.

    python benchmarks/serve_edge.py --out build/serve_edge   # results/serve_edge.json, the docs

One server process with the protections of ``serve_load``, in five phases: no other client; 2,000
idle connections, open after a first request each, and 20 endless request heads, each begun again a
second after the server closed it;
twice the requests that it can answer; reloads without a pause beside a light load; malformed
requests. A process of its own sends an ordinary request over an open connection, and ``/healthz``
over new connections to both ports, every 50 ms, and measures from the time at which each was due.
The clients of a phase share the cores of the machine with the server and this process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from faults_requests import endless_head
from page_blocks import with_block
from serve_fuzz import send_mutated, send_raw
from serve_load import (
    PROTECTIONS,
    READ,
    Connection,
    fire,
    histories,
    recommend_requests,
    resident_mib,
    run_client,
    run_load,
    start_protected_server,
)
from serve_reloads import ReloadStorm
from serve_workers import load

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serve_edge.json"
DOCS = ROOT / "docs" / "benchmarks" / "serve.md"
RATE = 20.0
"""Samples of each kind a second."""
IDLE, HEADS = 2000, 20
LIGHT = 50.0
"""Requests a second beside reloads."""
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
FIRST = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
"""First request of an idle connection."""
KINDS = ("request", "healthz", "healthz_probe_port")
REQUEST_GOAL, PROBE_GOAL = 1000.0, 100.0
"""Milliseconds within which a request beside idle connections and a probe are to be answered."""


@dataclass
class Target:
    """The server that is measured.

    Attributes:
        address: of the server.
        probes: address of its port for probes.
        pid: of its process.
        requests: ordinary requests.
        capacity: requests that it answers a second.
    """

    address: str
    probes: str
    pid: int
    requests: list[bytes]
    capacity: float = 0.0

    def connect(self) -> socket.socket:
        """Open a plain connection."""
        host, port = self.address.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=10)


def sample(target: Target, seconds: float) -> dict[str, Any]:
    """Return milliseconds of ordinary requests and of probes on both ports."""
    probe_port = int(target.probes.rsplit(":", 1)[1])

    async def samples(host: str, port: int) -> list[Any]:
        kinds = ((port, target.requests), (port, [HEALTH]), (probe_port, [HEALTH]))
        return await asyncio.gather(
            *(fire(host, at, requests, RATE, seconds) for at, requests in kinds)
        )

    found = {}
    for kind, result in zip(KINDS, run_client(samples, target.address), strict=True):
        summary = result.summary(seconds)
        ms = {name: summary["ms"][name] for name in ("p50", "p99", "max")}
        found[kind] = {"count": len(result.latencies), "statuses": result.statuses, "ms": ms}
    return found


def idle_connections(target: Target, is_over: threading.Event, seconds: float) -> dict[str, Any]:
    """Open idle connections, and send heads without an end.

    Raises:
        SystemExit: an idle connection was closed before the end of the phase.
    """

    def send_heads() -> None:
        while not is_over.is_set():
            endless_head(target.connect, is_over)
            is_over.wait(1)

    async def stay(host: str, port: int) -> int:
        loop = asyncio.get_running_loop()
        opened = [(await loop.create_connection(Connection, host, port))[1] for _ in range(IDLE)]
        # A new connection without a request is closed after head_timeout_ms, one that had a request
        # after keep_alive_ms.
        await asyncio.gather(*(connection.send(FIRST) for connection in opened))
        await asyncio.to_thread(is_over.wait)
        num_open = sum(connection.is_open for connection in opened)
        for connection in opened:
            connection.close()
        return num_open

    with ThreadPoolExecutor(HEADS) as heads:
        for _ in range(HEADS):
            heads.submit(send_heads)
        try:
            num_open = run_client(stay, target.address)
        finally:
            is_over.set()
    if num_open < IDLE:
        raise SystemExit(
            f"{num_open:,} of {IDLE:,} idle connections were open at the end of the phase: shorten "
            "--seconds below keep_alive_ms"
        )
    return {"idle": IDLE, "idle_at_the_end": num_open, "endless_heads": HEADS}


def overload(target: Target, is_over: threading.Event, seconds: float) -> dict[str, Any]:
    """Send twice the requests that the server can answer."""
    return run_load(target.address, target.requests, 2 * target.capacity, seconds)


def reloads(target: Target, is_over: threading.Event, seconds: float) -> dict[str, Any]:
    """Reload without a pause beside a light load."""
    storm = ReloadStorm(target.address, 1)
    with storm.running():
        result = run_load(target.address, target.requests, LIGHT, seconds)
    return result | {"reloads": dict(storm.answers)}


def malformed(target: Target, is_over: threading.Event, seconds: float) -> dict[str, Any]:
    """Send requests with mutated content, and broken HTTP at the same time."""

    def raw() -> int:
        sent = 0
        while not is_over.is_set():
            # A connection that stays open is closed after a second; serve_fuzz tests that it ends.
            sent += send_raw(target.address, 64, sent, READ, seconds=1)["connections"]
        return sent

    with ThreadPoolExecutor(1) as other:
        connections, answers = other.submit(raw), list[dict[str, Any]]()
        while not is_over.is_set():
            answers.append(send_mutated(target.address, target.pid, 100, len(answers), READ))
        num_errors = sum(each["server_errors"] for each in answers)
        return {"requests": 100 * len(answers), "server_errors": num_errors,
                "connections_with_broken_http": connections.result()}  # fmt: skip


def no_other_client(target: Target, is_over: threading.Event, seconds: float) -> dict[str, Any]:
    """Send nothing."""
    return {}


PHASES: dict[str, tuple[str, Callable[[Target, threading.Event, float], dict[str, Any]]]] = {
    "none": ("no other client", no_other_client),
    "idle": (f"{IDLE:,} idle connections, {HEADS} endless heads", idle_connections),
    "overload": ("twice the requests that it can answer", overload),
    "reloads": (f"reloads, {LIGHT:g} requests a second", reloads),
    "malformed": ("malformed requests", malformed),
}


def measure(run: Path, index: Path, seconds: float, phases: Sequence[str]) -> dict[str, Any]:
    """Measure phases on one server."""
    requests = recommend_requests(histories(run.parent / "data", 500))
    updates = run.parent / "item_updates.jsonl"
    spawn = multiprocessing.get_context("spawn")
    with (
        start_protected_server(str(run), "--index", str(index), item_updates=updates) as started,
        ProcessPoolExecutor(1, mp_context=spawn) as pool,
    ):
        process, address, probes = started
        target = Target(address, probes, process.pid, requests)
        pool.submit(sample, target, 1).result()  # The first samples import and open connections.
        load(address, requests, 32, 1)
        target.capacity = load(address, requests, 32, min(10, seconds))["answered_a_second"]
        result: dict[str, Any] = {"answered_a_second": target.capacity, "phases": {}}
        for name in phases:
            is_over, attack = threading.Event(), PHASES[name][1]
            with ThreadPoolExecutor(1) as one:
                # The load begins a second before the samples, and ends a second after them.
                work = one.submit(attack, target, is_over, seconds + 2)
                time.sleep(1)
                try:
                    sampled = pool.submit(sample, target, seconds).result()
                finally:
                    is_over.set()
                result["phases"][name] = {"sampled": sampled, "load": work.result()}
            print(name, json.dumps(result["phases"][name]), flush=True)
            time.sleep(1)
        result["memory_mib"] = resident_mib(process.pid)
    return result | {"exit_code": process.returncode}


def verdicts(phases: dict[str, Any]) -> list[str]:
    """Return whether each goal is met, a line each."""
    idle, probes = phases["idle"]["sampled"]["request"], {}
    for name, phase in phases.items():
        found = phase["sampled"]["healthz_probe_port"]
        # An answer with another status, or none, is not in the milliseconds.
        is_complete = found["statuses"] == {"200": found["count"]}
        probes[name] = found["ms"]["max"] if is_complete else float("inf")
    slowest = max(probes, key=probes.__getitem__)
    took = f"took {probes[slowest]:.0f} ms" if probes[slowest] < float("inf") else "had no answer"
    waiting = phases["overload"]["sampled"]["healthz"]["ms"]["max"] / 1000
    return [
        f"- {_verdict(idle['ms']['max'], REQUEST_GOAL)}: an ordinary request within "
        f"{REQUEST_GOAL:,.0f} ms beside {PHASES['idle'][0]}; the slowest took "
        f"{idle['ms']['max']:.0f} ms.",
        f"- {_verdict(probes[slowest], PROBE_GOAL)}: a probe on `--probe-port` within "
        f"{PROBE_GOAL:.0f} ms always; the slowest {took}, beside {PHASES[slowest][0]}.",
        "- Probes on the port of the server wait for the requests before them, "
        f"{waiting:.0f} s under overload: use `--probe-port`.",
    ]


def _verdict(milliseconds: float, goal: float) -> str:
    return "Met" if milliseconds <= goal else "Missed"


def table(result: dict[str, Any] | None) -> str:
    """Return the block of docs/benchmarks/serve.md; None: there are no results."""
    if result is None:
        return "Not measured yet.\n"
    titles = dict(zip(KINDS, ("request", "probe", "probe, `--probe-port`"), strict=True))
    lines = [
        f"{result['items']:,} items × {result['dim']}, {result['cores']} cores, "
        f"{result['seconds']:g} s for each phase; the server answers "
        f"{result['answered_a_second']:,.0f} requests a second. Load average before the start: "
        f"{result['load_average']:g}.",
        "",
        *verdicts(result["phases"]),
        *idle_note(result["phases"]["idle"]["load"]),
        "",
        "| beside | sampled | answered | refused or failed | p50, ms | p99, ms | largest, ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, phase in result["phases"].items():
        for kind, found in phase["sampled"].items():
            ms, others = found["ms"], sum(found["statuses"].values()) - found["count"]
            lines.append(
                f"| {PHASES[name][0]} | {titles[kind]} | {found['count']:,} | {others:,} | "
                f"{ms['p50']:.1f} | {ms['p99']:.1f} | {ms['max']:.1f} |"
            )
    return "\n".join([*lines, ""])


def idle_note(load: dict[str, Any]) -> list[str]:
    """Return a line about idle connections that were closed within the phase; none: all stayed."""
    left, idle = load["idle_at_the_end"], load["idle"]
    if left == idle:
        return []
    return [
        "- The idle connections of this run sent nothing, and the server closes such ones after "
        f"10 s: {left:,} of {idle:,} were open at the end of that phase. The benchmark now keeps "
        "them open with a first request."
    ]


def with_table(content: str) -> str:
    """Replace the generated block of the page by the table of the stored results."""
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else None
    return with_block(content, "serve edge", table(result))


def main() -> None:
    """Make the run and the index if they do not exist, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=60, help="training steps")
    parser.add_argument("--seconds", type=float, default=60, help="of each phase")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and the index")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.results == RESULTS and set(given.phases) != set(PHASES):
        parser.error("some --phases only: give --results, because the page shows all of them")
    from serve_run import make_index, make_run

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    run = make_run(given.out, given.items, given.users, steps=given.steps)
    index = make_index(run, given.out / "index")
    result = {
        "command": " ".join(["python benchmarks/serve_edge.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "protections": [*PROTECTIONS, "--item-updates", "FILE"],
        "items": given.items,
        "dim": 64,
        "seconds": given.seconds,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("uvicorn", "httptools", "fastapi", "torch")},
        **measure(run, index, given.seconds, given.phases),
    }
    given.results.write_text(json.dumps(result, indent=2) + "\n")
    if given.results == RESULTS:
        DOCS.write_text(with_table(DOCS.read_text()))
    print(f"written to {given.results}")


if __name__ == "__main__":
    main()
