"""Latency, recall, start-up time and model reloads of the server under load.

    python benchmarks/serve_load.py --out build/serve_load   # results/serve_load.json, the docs

The server is ``candid serve`` in a process of its own; this process sends requests at fixed times,
whether or not earlier ones are answered (an open loop), and measures latency from the time at which
a request was due, so that a stalled server shows. Both share the cores of the machine. Recall
compares the answers with all inner products, without seen items in both. Finally a server of two
processes, and one that runs all batches in a thread (``quick_ms = 0``), get the highest rate. Loads
without reloads are repeated: quantiles are medians over the repeats, p99 has its range, and the
repeats with p99 below the goal are counted. All servers have the protections of ``PROTECTIONS``, a
read key and a file of item updates, which stays empty.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serve_load.json"
DOCS = ROOT / "docs" / "benchmarks" / "serve.md"
ADMIN = "benchmark"
READ = "reader"
PROGRAM = "from candid.cli import main; main()"
PROTECTIONS = (
    "--probe-port", "0", "--allowed-host", "localhost", "--allowed-host", "127.0.0.1",
    "--trusted-proxy", "127.0.0.1", "--set", "rate=10000", "--set", "burst=10000",
)  # fmt: skip
"""Of a server that is measured; no client reaches the rate limit."""
CLIENTS = 100
"""Addresses in X-Forwarded-For, which the server trusts."""
GOAL_MS = 15.0
"""Of p99 at the highest rate."""
K = 100
Result = TypeVar("Result")


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = transport
        self.is_open = True

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the open request."""
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed"))

    def data_received(self, data: bytes) -> None:
        """Collect an answer with a content-length."""
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0 or self._answer is None:
            return
        headers = bytes(self._buffer[:head]).lower()
        at = headers.find(b"content-length:")
        length = int(headers[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < head + 4 + length:
            return
        body = bytes(self._buffer[head + 4 : head + 4 + length])
        del self._buffer[: head + 4 + length]
        if b"connection: close" in headers:
            self.is_open = False
        if not self._answer.done():
            self._answer.set_result((int(headers.split(b" ", 2)[1]), body))

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        self._transport.close()

    def send(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; return a future of its status and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer


@dataclass
class LoadResult:
    """Answers of one load.

    Attributes:
        latencies: of answers with status 200, seconds since each was due.
        statuses: number of answers by status; "error": no answer.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)

    def count(self, status: str) -> None:
        """Count one answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def summary(self, seconds: float) -> dict[str, Any]:
        """Return rates, and latencies in milliseconds."""
        ms = np.array(self.latencies) * 1000
        quantiles = np.quantile(ms, [0.5, 0.9, 0.99, 0.999, 1]) if len(ms) else np.full(5, np.nan)
        names = ("p50", "p90", "p99", "p999", "max")
        return {
            "answered_a_second": round(len(ms) / seconds, 1),
            "failed": sum(n for status, n in self.statuses.items() if status != "200"),
            "statuses": self.statuses,
            "ms": dict(zip(names, quantiles.round(2).tolist(), strict=True)),
        }


async def fire(
    host: str, port: int, requests: Sequence[bytes], rate: float, seconds: float
) -> LoadResult:
    """Send ``rate`` requests per second, evenly spaced, over as many connections as needed."""
    loop, result, free = asyncio.get_running_loop(), LoadResult(), list[Connection]()
    opened: list[Connection] = []
    count, tasks = int(rate * seconds), set[asyncio.Task[None]]()

    async def one(request: bytes, due: float) -> None:
        try:
            while free and not free[-1].is_open:
                free.pop()
            if free:
                connection = free.pop()
            else:
                _, connection = await loop.create_connection(Connection, host, port)
                opened.append(connection)
            async with asyncio.timeout(10):
                status, _ = await connection.send(request)
            if connection.is_open:
                free.append(connection)
        except (OSError, TimeoutError):
            result.count("error")
            return
        result.count(str(status))
        if status == 200:
            result.latencies.append(time.perf_counter() - due)

    start = time.perf_counter() + 0.05
    for number in range(count):
        due = start + number / rate
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        task = loop.create_task(one(requests[number % len(requests)], due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(set(tasks))
    for connection in opened:
        connection.close()
    await asyncio.sleep(0)
    return result


def run_load(
    address: str, requests: Sequence[bytes], rate: float, seconds: float
) -> dict[str, Any]:
    """Send requests to a server and summarise."""
    result = run_client(lambda host, port: fire(host, port, requests, rate, seconds), address)
    return {"rate": rate, "seconds": seconds, **result.summary(seconds)}


def run_loads(
    address: str, requests: Sequence[bytes], rate: float, seconds: float, repeats: int
) -> dict[str, Any]:
    """Send requests several times and summarise: the median of each quantile, and p99 of all."""
    loads = [run_load(address, requests, rate, seconds) for _ in range(repeats)]
    statuses: dict[str, int] = {}
    for load in loads:
        for status, count in load["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    p99 = sorted(load["ms"]["p99"] for load in loads)
    names = loads[0]["ms"]
    return {
        "rate": rate,
        "seconds": seconds,
        "repeats": repeats,
        "failed": sum(load["failed"] for load in loads),
        "statuses": statuses,
        "ms": {
            name: round(float(np.median([load["ms"][name] for load in loads])), 2) for name in names
        },
        "p99_range": [p99[0], p99[-1]],
        "p99_below_goal": sum(value < GOAL_MS for value in p99),
    }


def run_client(client: Callable[[str, int], Coroutine[Any, Any, Result]], address: str) -> Result:
    """Run a client of a server to its end; on uvloop if it is installed.

    Args:
        client: called with the host and the port.
        address: of the server.
    """
    host, port = address.removeprefix("http://").split(":")
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        return runner.run(client(host, int(port)))


def post(path: str, body: Any, key: str | None = None, client: str | None = None) -> bytes:
    """Return the bytes of an HTTP request, with the address of a client if it is given."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(content)}",
    ]
    if key is not None:
        lines.append(f"x-api-key: {key}")
    if client is not None:
        lines.append(f"x-forwarded-for: {client}")
    return "\r\n".join([*lines, "", ""]).encode() + content


def recommend_requests(sampled: Sequence[Sequence[int]]) -> list[bytes]:
    """Return a request for each history, with the read key, of many clients in turn."""
    return [
        post("/v1/recommend", {"history": history, "k": K}, READ, f"10.0.0.{number % CLIENTS}")
        for number, history in enumerate(sampled)
    ]


@contextlib.contextmanager
def start_server(
    *arguments: str, program: str = PROGRAM, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run ``candid serve`` in a process; yield the process and its address once it answers."""
    with start_logged_server(*arguments, program=program, **environment) as (process, lines):
        yield process, lines[-1]["address"]


@contextlib.contextmanager
def start_protected_server(
    *arguments: str, item_updates: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """Run a server with ``PROTECTIONS`` and a read key; yield also the address of its probes."""
    arguments = (*arguments, *PROTECTIONS, "--item-updates", str(item_updates))
    with start_logged_server(*arguments, CANDID_API_KEY=READ) as (process, lines):
        probes = next(line for line in lines if line["event"] == "probes listening")
        yield process, lines[-1]["address"], probes["address"]


@contextlib.contextmanager
def start_logged_server(
    *arguments: str, program: str = PROGRAM, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], list[dict[str, Any]]]]:
    """Run ``candid serve`` in a process; yield it and its log up to the line of its address."""
    command = [sys.executable, "-c", program, "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env=os.environ | {"CANDID_ADMIN_KEY": ADMIN} | environment
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line.decode())
            if b'"event": "listening"' in line:
                break
        else:
            raise RuntimeError("".join(lines))
        # Read the rest of the log, so that the pipe does not fill up.
        with subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL) as drain:
            try:
                yield process, [json.loads(line) for line in lines if line.startswith("{")]
            finally:
                drain.kill()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stderr.close()


def resident_mib(pid: int) -> dict[str, float]:
    """Return the resident memory of a process, in total and by origin, in MiB."""
    memory = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon", "RssFile"):
            memory[name] = round(int(value.split()[0]) / 1024, 1)
    return memory


def histories(data: Path, count: int, seed: int = 1) -> list[list[int]]:
    """Return the first part of the histories of random users, in source ids."""
    from candid.data import open_dataset

    dataset = open_dataset(data)
    rng = np.random.default_rng(seed)
    users = rng.integers(0, dataset.num_users, count)
    lengths = rng.integers(5, 30, count)
    starts = dataset.user_offsets[users]
    sources = dataset.items["source_id"].to_numpy()
    return [
        sources[dataset.item_ids[start : start + n]].tolist()
        for start, n in zip(starts, lengths, strict=True)
    ]


def recall(address: str, run: Path, sampled: Sequence[Sequence[int]]) -> float:
    """Return the share of the exact top K in the answers."""
    import torch

    from candid.batches import pack_histories
    from candid.index import ExactIndex, Exclusions
    from candid.runs import load_run

    trained = load_run(run)
    lengths = np.array([len(history) for history in sampled])
    # The source id of item i is i + 1.
    flat = np.concatenate([np.array(history) for history in sampled]) - 1
    queries = pack_histories(np.full(len(sampled), -1), flat, lengths)
    offsets = torch.from_numpy(np.append(0, lengths.cumsum()))
    with torch.inference_mode():
        vectors = trained.model.encode_catalog()
        query = trained.model.encode_queries(queries).float()
    exact = ExactIndex(vectors).search(query, K, Exclusions(torch.from_numpy(flat), offsets))
    num_relevant = 0
    for history, best in zip(sampled, exact.item_ids.tolist(), strict=True):
        body = json.dumps({"history": history, "k": K, "include_attributes": False}).encode()
        request = urllib.request.Request(
            f"{address}/v1/recommend", body, {"content-type": "application/json", "x-api-key": READ}
        )
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        num_relevant += len({entry["item"] - 1 for entry in answer["items"]} & set(best))
    return num_relevant / (len(sampled) * K)


def run_load_with_reloads(
    address: str, requests: Sequence[bytes], rate: float, seconds: float, every: float
) -> dict[str, Any]:
    """Send requests while another process reloads the model repeatedly."""
    script = (
        "import sys, time, urllib.request\n"
        "address, key, every, seconds = sys.argv[1:]\n"
        "end, done = time.time() + float(seconds) - 1, 0\n"
        "while time.time() + float(every) < end:\n"
        "    time.sleep(float(every))\n"
        "    request = urllib.request.Request(address + '/v1/admin/reload', b'{}',\n"
        "        {'content-type': 'application/json', 'x-api-key': key})\n"
        "    urllib.request.urlopen(request, timeout=60).read()\n"
        "    done += 1\n"
        "print(done)\n"
    )
    command = [sys.executable, "-c", script, address, ADMIN, str(every), str(seconds)]
    reloads = subprocess.Popen(command, stdout=subprocess.PIPE)
    result = run_load(address, requests, rate, seconds)
    output, _ = reloads.communicate(timeout=120)
    return {**result, "reloads": int(output), "reloads_failed": reloads.returncode != 0}


def measure(
    run: Path,
    index: Path | None,
    rates: Sequence[float],
    seconds: float,
    swap_seconds: float,
    repeats: int,
) -> dict[str, Any]:
    """Measure servers with one process, with two, and with all batches in a thread."""
    arguments = [str(run), *(() if index is None else ("--index", str(index)))]
    sampled = histories(run.parent / "data", 2000)
    requests, updates = recommend_requests(sampled), run.parent / "item_updates.jsonl"
    begun = time.perf_counter()
    with start_protected_server(*arguments, item_updates=updates) as (process, address, _):
        result: dict[str, Any] = {"start_seconds": round(time.perf_counter() - begun, 2)}
        result["recall"] = round(recall(address, run, sampled[:300]), 4)
        run_load(address, requests, rates[0], 3)  # The first load reads the vectors from disk.
        before = cpu_seconds(process.pid)
        result["loads"] = []
        for rate in rates:
            load = run_loads(address, requests, rate, seconds, repeats)
            after = cpu_seconds(process.pid)
            load["server_cores"] = round((after - before) / (seconds * repeats), 2)
            before = after
            result["loads"].append(load)
            print(json.dumps(load), flush=True)
        result["memory_mib"] = resident_mib(process.pid)
        result["swap"] = run_load_with_reloads(address, requests, max(rates), swap_seconds, 5.0)
        print(json.dumps(result["swap"]), flush=True)
        result["memory_mib_after_swaps"] = resident_mib(process.pid)
    result["exit_code"] = process.returncode
    others = {"two_processes": ("--workers", "2"), "in_a_thread": ("--set", "quick_ms=0")}
    for name, options in others.items():
        server = start_protected_server(*arguments, *options, item_updates=updates)
        with server as (_, address, _):
            run_load(address, requests, rates[0], 3)
            result[name] = run_loads(address, requests, max(rates), seconds, repeats)
            print(json.dumps(result[name]), flush=True)
    return result


def table(result: dict[str, Any]) -> str:
    """Return the table of the results for docs/benchmarks/serve.md."""
    swap, two, thread = result["swap"], result["two_processes"], result["in_a_thread"]
    cases = [(f"{load['rate']:g}", load) for load in result["loads"]]
    reloads = f"the model reloaded {swap['reloads']} times in {swap['seconds']:g} s"
    cases += [
        (f"{two['rate']:g}, two processes (`--workers 2`)", two),
        (f"{swap['rate']:g}, {reloads}", swap),
        (f"{thread['rate']:g}, all in a thread (`quick_ms` 0)", thread),
    ]
    highest, protections = result["loads"][-1], result.get("protections")
    lines = [
        f"Ready {result['start_seconds']:.1f} s after the start; recall@{result['k']} of the "
        f"answers {result['recall']:.3f}; {result['memory_mib']['RssAnon']:,.0f} MiB of its own "
        f"and {result['memory_mib']['RssFile']:,.0f} MiB mapped from files. One process used "
        f"{highest['server_cores']:.1f} cores at {highest['rate']:g} requests a second. Loads "
        f"without reloads are sent {highest['repeats']} times. "
        + (
            "The servers ran without protections and item updates."
            if protections is None
            else f"The servers ran with a read key and `{' '.join(protections)}`."
        ),
        "",
        "| requests a second | failed | p50, ms | p99, ms | loads with p99 below "
        f"{GOAL_MS:g} ms | p99.9, ms | largest, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, load in cases:
        total = sum(load["statuses"].values())
        ms, p99, below = load["ms"], f"{load['ms']['p99']:.1f}", "not counted"
        if "p99_range" in load:
            p99 += " ({:.1f} to {:.1f})".format(*load["p99_range"])
        if "p99_below_goal" in load:
            below = f"{load['p99_below_goal']} of {load['repeats']}"
        lines.append(
            f"| {name} | {load['failed']} of {total:,} | {ms['p50']:.1f} | {p99} | {below} | "
            f"{ms['p999']:.1f} | {ms['max']:.1f} |"
        )
    return "\n".join([*lines, ""])


def with_table(content: str, result: dict[str, Any]) -> str:
    """Replace the generated block of the docs by the table of the results."""
    return with_block(content, "serve load", table(result))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the run that is served."""
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=1200, help="training steps")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and the index")


def main() -> None:
    """Make the run and the index if they do not exist, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_run_options(parser)
    parser.add_argument("--rates", type=float, nargs="+", default=[100, 250, 500])
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--swap-seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=5, help="of each load without reloads")
    parser.add_argument("--index", type=Path, help="default: OUT/index, built if missing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    from serve_run import make_index, make_run

    run = make_run(given.out, given.items, given.users, steps=given.steps)
    index = given.index or make_index(run, given.out / "index")
    result = {
        "command": " ".join(["python benchmarks/serve_load.py", *sys.argv[1:]]),
        "protections": [*PROTECTIONS, "--item-updates", "FILE"],
        "items": given.items,
        "dim": 64,
        "k": K,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **measure(run, index, given.rates, given.seconds, given.swap_seconds, given.repeats),
        "client_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(result, indent=2) + "\n")
    if given.results == RESULTS:
        DOCS.write_text(with_table(DOCS.read_text(), result))
    print(f"written to {given.results}")


if __name__ == "__main__":
    main()
