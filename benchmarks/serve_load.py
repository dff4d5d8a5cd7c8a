"""What a server answers under load: latency, recall, start-up, and swaps of the model meanwhile.

    python benchmarks/serve_load.py --out build/serve_load   # results/serve_load.json, the docs

The server is ``candid serve`` in a process of its own; this process sends requests at fixed times,
whether or not earlier ones are answered (an open loop), and counts latency from the moment that a
request was due, so that a server that stalls cannot hide it. Both share the machine's cores.
Recall is that of the served answers against every inner product, seen items left out of both. At
last a second server answers all questions in a thread (``quick_ms = 0``), at the highest rate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serve_load.json"
DOCS = ROOT / "docs" / "benchmarks" / "serve.md"
ADMIN = "benchmark"
K = 100


class Connection(asyncio.Protocol):
    """One kept-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport
        self.is_open = True

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what waits."""
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed"))

    def data_received(self, data: bytes) -> None:
        """Gather an answer of known length."""
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
        """End."""
        self.is_open = False
        self._transport.close()

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; its status and body."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer


@dataclass
class MetricSums:
    """What came of one load.

    Attributes:
        latencies: of answers with status 200, seconds from when each was due.
        statuses: how often each status came; "error" where no answer did.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)

    def count(self, status: str) -> None:
        """Add one."""
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def summary(self, seconds: float) -> dict[str, Any]:
        """Rates and latencies in milliseconds."""
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
) -> MetricSums:
    """Send requests at ``rate`` a second, spaced evenly, over as many connections as it takes."""
    loop, tally, free = asyncio.get_running_loop(), MetricSums(), list[Connection]()
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
                status, _ = await connection.ask(request)
            if connection.is_open:
                free.append(connection)
        except (OSError, TimeoutError):
            tally.count("error")
            return
        tally.count(str(status))
        if status == 200:
            tally.latencies.append(time.perf_counter() - due)

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
    return tally


def loaded(address: str, requests: Sequence[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Load a server and sum up; uvloop where it is there, so that this side costs little."""
    host, port = address.removeprefix("http://").split(":")
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        tally = runner.run(fire(host, int(port), requests, rate, seconds))
    return {"rate": rate, "seconds": seconds, **tally.summary(seconds)}


def post(path: str, body: Any, key: str | None = None) -> bytes:
    """An HTTP request as it goes over the wire."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(content)}",
    ]
    if key is not None:
        lines.append(f"x-api-key: {key}")
    return "\r\n".join([*lines, "", ""]).encode() + content


@contextlib.contextmanager
def served(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """``candid serve`` in a process of its own: the process and its address, once it answers."""
    program = "from candid.cli import main; main()"
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
        # Nobody reads further: the pipe must not fill up.
        with subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL) as drain:
            try:
                yield process, json.loads(lines[-1])["address"]
            finally:
                drain.kill()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stderr.close()


def resident_mib(pid: int) -> dict[str, float]:
    """Memory of a process: all that is resident, and what is not mapped from files."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon", "RssFile"):
            found[name] = round(int(value.split()[0]) / 1024, 1)
    return found


def histories(data: Path, count: int, seed: int = 1) -> list[list[int]]:
    """Beginnings of the histories of random users: source ids."""
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


def recall(address: str, run: Path, asked: Sequence[Sequence[int]]) -> float:
    """Share of the exact top K that is among the served."""
    import torch

    from candid.batches import pack_histories
    from candid.index import ExactIndex, Exclusions
    from candid.runs import load_run

    loaded_run = load_run(run)
    lengths = np.array([len(history) for history in asked])
    # The source id of item i is i + 1.
    flat = np.concatenate([np.array(history) for history in asked]) - 1
    queries = pack_histories(np.full(len(asked), -1), flat, lengths)
    offsets = torch.from_numpy(np.append(0, lengths.cumsum()))
    with torch.inference_mode():
        vectors = loaded_run.model.encode_catalog()
        query = loaded_run.model.encode_queries(queries).float()
    exact = ExactIndex(vectors).search(query, K, Exclusions(torch.from_numpy(flat), offsets))
    hits = 0
    for history, best in zip(asked, exact.item_ids.tolist(), strict=True):
        body = json.dumps({"history": history, "k": K, "attributes": False}).encode()
        request = urllib.request.Request(
            f"{address}/v1/recommend", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        hits += len({entry["item"] - 1 for entry in answer["items"]} & set(best))
    return hits / (len(asked) * K)


def swapped(
    address: str, requests: Sequence[bytes], rate: float, seconds: float, every: float
) -> dict[str, Any]:
    """Load while another process has the model loaded again, time after time."""
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
    found = loaded(address, requests, rate, seconds)
    output, _ = reloads.communicate(timeout=120)
    return {**found, "reloads": int(output), "reloads_failed": reloads.returncode != 0}


def measured(
    run: Path, index: Path | None, rates: Sequence[float], seconds: float, swap_seconds: float
) -> dict[str, Any]:
    """Everything about one server."""
    arguments = [str(run), *(() if index is None else ("--index", str(index)))]
    asked = histories(run.parent / "data", 2000)
    bodies = [{"history": history, "k": K} for history in asked]
    requests = [post("/v1/recommend", body) for body in bodies]
    begun = time.perf_counter()
    with served(*arguments) as (process, address):
        result: dict[str, Any] = {"start_seconds": round(time.perf_counter() - begun, 2)}
        result["recall"] = round(recall(address, run, asked[:300]), 4)
        loaded(address, requests, rates[0], 3)  # Pages of the vectors come from the disk once.
        before = _cpu_seconds(process.pid)
        result["loads"] = []
        for rate in rates:
            found = loaded(address, requests, rate, seconds)
            after = _cpu_seconds(process.pid)
            found["server_cores"] = round((after - before) / seconds, 2)
            before = after
            result["loads"].append(found)
            print(json.dumps(found), flush=True)
        result["memory_mib"] = resident_mib(process.pid)
        result["swap"] = swapped(address, requests, max(rates), swap_seconds, 5.0)
        print(json.dumps(result["swap"]), flush=True)
        result["memory_mib_after_swaps"] = resident_mib(process.pid)
    result["exit_code"] = process.returncode
    with served(*arguments, "--set", "quick_ms=0") as (_, address):
        loaded(address, requests, rates[0], 3)
        result["in_a_thread"] = loaded(address, requests, max(rates), seconds)
        print(json.dumps(result["in_a_thread"]), flush=True)
    return result


def table(result: dict[str, Any]) -> str:
    """What docs/benchmarks/serve.md says of the results."""
    swap, thread = result["swap"], result["in_a_thread"]
    cases = [(f"{load['rate']:g}", load) for load in result["loads"]]
    reloads = f"the model reloaded {swap['reloads']} times in {swap['seconds']:g} s"
    cases += [
        (f"{swap['rate']:g}, {reloads}", swap),
        (f"{thread['rate']:g}, all in a thread (`quick_ms` 0)", thread),
    ]
    lines = [
        f"Ready {result['start_seconds']:.1f} s after the start; recall@{result['k']} of the "
        f"answers {result['recall']:.3f}; {result['memory_mib']['RssAnon']:,.0f} MiB of its own "
        f"and {result['memory_mib']['RssFile']:,.0f} MiB mapped from files.",
        "",
        "| requests a second | failed | p50, ms | p99, ms | p99.9, ms | largest, ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, load in cases:
        asked = sum(load["statuses"].values())
        ms = load["ms"]
        lines.append(
            f"| {name} | {load['failed']} of {asked:,} | {ms['p50']:.1f} | {ms['p99']:.1f} | "
            f"{ms['p999']:.1f} | {ms['max']:.1f} |"
        )
    return "\n".join([*lines, ""])


def with_table(content: str, result: dict[str, Any]) -> str:
    """The docs with their generated block as the results have it."""
    place = re.compile(r"(?<=<!-- serve load -->\n).*?(?=<!-- /serve load -->)", re.DOTALL)
    assert place.search(content), f"{DOCS} has no <!-- serve load --> block"
    return place.sub(lambda _: table(result), content)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Make the run and the index if they are not there, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=1200, help="of training")
    parser.add_argument("--rates", type=float, nargs="+", default=[100, 250, 500])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--swap-seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, required=True, help="where run and index are kept")
    parser.add_argument("--index", type=Path, help="none: OUT/index, built here if missing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from serve_run import make_index, make_run

    run = make_run(given.out, given.items, given.users, steps=given.steps)
    index = given.index or make_index(run, given.out / "index")
    result = {
        "items": given.items,
        "dim": 64,
        "k": K,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **measured(run, index, given.rates, given.seconds, given.swap_seconds),
        "client_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(result, indent=2) + "\n")
    if given.results == RESULTS:
        DOCS.write_text(with_table(DOCS.read_text(), result))
    print(f"written to {given.results}")


if __name__ == "__main__":
    main()
