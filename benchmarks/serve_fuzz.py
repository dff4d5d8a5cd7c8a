"""Malformed requests against a server process: neither server errors nor growth of memory.

    python benchmarks/serve_fuzz.py --out build/serve_fuzz      # writes results/serve_fuzz.json

Three sources. schemathesis makes valid and invalid requests from the OpenAPI document of the server
and checks every answer against it. The fuzzer here mutates valid requests: JSON values, bytes,
content types, paths and parameters. Then it sends bytes that are not valid HTTP: heads that are
cut, endless or garbled, several lengths, broken chunks, pipelined requests, other versions. A
request without an answer, an answer of 5xx (except 503, for lack of time, and 507, for lack of
space), or an error without the form {"error": {code, message, field}} is a finding; so is a
connection that stays open, and memory that keeps growing between the second and the last part of
the requests. The resident memory contains what malloc keeps of freed memory, so the memory in use
is measured as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import server_memory
from candid.serve.config import ServeConfig
from serve_load import ADMIN, Connection, resident_mib, start_server

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serve_fuzz.json"
CONNECTIONS = 8
RAW_CONNECTIONS = 64
MAX_BODY = ServeConfig().max_body
"""Largest body that the server reads; the connection of a larger one is closed with the answer."""
ALLOWED_5XX = (b"503", b"507")
RAW_LIMITS = ("head_timeout_ms=500", "body_timeout_ms=500", "keep_alive_ms=1000")
"""Settings of the server, so that connections with cut requests end soon."""

GOOD: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/recommend", {"user": 3, "k": 5}),
    (
        "POST",
        "/v1/recommend",
        {"user": "u3", "k": 5, "filter_seen": False, "include_attributes": False},
    ),
    ("POST", "/v1/recommend", {"history": [1, 2, 101, "104"], "k": 3, "ignore_unknown": True}),
    (
        "POST",
        "/v1/recommend",
        {
            "history": [{"item": 101, "time": "2026-01-31T18:30:00Z", "event_type": "buy"}, 102],
            "attributes": {"age": 31},
            "filters": {"year": {"min": 1990, "max": 2010}, "genres": ["Drama"]},
            "allow": [101, 102, 103],
            "deny": [104],
            "time": "2026-02-01",
            "probability": True,
        },
    ),
    ("POST", "/v1/recommend/batch", {"queries": [{"user": 3}, {"user": "u4", "k": 2}]}),
    ("POST", "/v1/similar", {"item": 101, "k": 4, "filters": {"tags": ["new"]}}),
    ("POST", "/v1/similar", {"item": 101, "k": 4, "filters": {"kind": ["new"]}}),
    (
        "POST",
        "/v1/recommend",
        {"history": [1, 2], "k": 250, "filters": {"price": {"min": 1.5}, "kind": ["used", "rare"]}},
    ),
    ("GET", "/v1/items?query=film&limit=5", None),
    ("GET", "/v1/users?query=1&limit=5", None),
    ("GET", "/v1/items/101", None),
    ("GET", "/v1/map?limit=20", None),
    ("GET", "/v1/model", None),
)
CHANGES: tuple[tuple[str, str, Any], ...] = (
    ("PUT", "/v1/items/900", {"title": "A", "attributes": {"genres": ["Drama"], "year": 2001}}),
    ("PUT", "/v1/items/901", {"title": "B", "attributes": {"kind": "rare", "price": 3.25}}),
    ("DELETE", "/v1/items/900", None),
    ("DELETE", "/v1/items/901", None),
)
NASTY_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    1.5,
    -0.0,
    10**9,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    1e308,
    -1e-308,
    "",
    " ",
    "a",
    "0",
    "-",
    "١",
    "\u0000",
    "\U0010ffff",
    "e\u0301" * 40,
    "x" * 3000,
    "%s%n",
    "{}",
    "../x",
    "2026-02-30",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59+14:00",
    "1e400",
    "NaN",
    [],
    {},
    [[]],
    [None],
    [1, "a", None],
    [[[[[]]]]],
    {"a": 1},
    {"item": None},
    {"min": None},
    {"min": "a", "max": 1},
)
NASTY_BYTES = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"9" * 400,
    b"9" * 5000,
    b"[" * 300,
    b'{"a":' * 300,
    b"\xff",
    b"\xc0\x80",
    b"\xed\xa0\x80",
    b"\x00",
    b'"\\ud800"',
    b'"\\u0000"',
    b"//",
    b"'",
    b",",
    b"]",
    b"}",
    b"null",
    b"\xef\xbb\xbf",
    b"1.",
    b"01",
    b"+1",
    b"\r\n\r\n",
)
MEDIA = (
    "application/json", "", "text/plain", "application/xml", "application/json; charset=utf-16",
    "multipart/form-data", "APPLICATION/JSON", "application/x-www-form-urlencoded", ";", "x" * 500,
)  # fmt: skip


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Replace, remove or repeat one part of a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed, key = dict(value), rng.choice(list(value))
        choice = rng.random()
        if choice < 0.1:
            del changed[key]
        elif choice < 0.2:
            changed[str(rng.choice(NASTY_VALUES))[:2000]] = changed[key]
        else:
            changed[key] = mutate_json(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        position = rng.randrange(len(value))
        choice = rng.random()
        if choice < 0.1:
            return value * rng.choice((0, 2, 50, 1000))
        return [*value[:position], mutate_json(value[position], rng), *value[position + 1 :]]
    return rng.choice(NASTY_VALUES)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Remove, repeat, change or insert a few bytes."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        position = rng.randrange(len(content) + 1)
        choice = rng.randrange(5)
        if choice == 0:
            content = content[:position]
        elif choice == 1:
            content = content[:position] + content[position + 1 :]
        elif choice == 2:
            content = content[:position] + rng.choice(NASTY_BYTES) + content[position:]
        elif choice == 3:
            content = content[:position] + bytes([rng.randrange(256)]) + content[position + 1 :]
        else:
            content = content[:position] + content[position // 2 :]
    return content


def _mutate_path(path: str, rng: random.Random) -> str:
    """Replace a part or a parameter of a path."""
    value = quote(str(rng.choice(NASTY_VALUES))[:300], safe="")
    if "?" in path and rng.random() < 0.7:
        base, _, query = path.partition("?")
        pairs = query.split("&")
        position = rng.randrange(len(pairs))
        pairs[position] = pairs[position].split("=")[0] + "=" + value
        return base + "?" + "&".join(pairs)
    if rng.random() < 0.5:
        return path + rng.choice(("?model=", "?limit=", "?query=", "?model=films&x=")) + value
    parts = path.split("/")
    parts[rng.randrange(1, len(parts))] = rng.choice((value, "%ff", "%00", "..", "%2e%2e", "."))
    return "/".join(parts)


def request(rng: random.Random, key: str, changes: bool) -> bytes:
    """Return one request: valid HTTP with mutated content."""
    method, path, body = rng.choice(GOOD + CHANGES * 2 if changes else GOOD)
    media, content = "application/json", b""
    choice = rng.random()
    if body is not None:
        if choice < 0.5:
            for _ in range(rng.choice((1, 1, 2, 4))):
                body = mutate_json(body, rng)
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        if 0.5 <= choice < 0.8:
            content = mutate_bytes(content, rng)
        elif 0.8 <= choice < 0.85:
            media = rng.choice(MEDIA)
    if choice >= 0.85 or (body is None and choice >= 0.2):
        path = _mutate_path(path, rng)
        if rng.random() < 0.2:
            method = rng.choice(("GET", "POST", "PATCH", "HEAD", "OPTIONS", "TRACE"))
    method = "GET" if method == "HEAD" else method  # an answer without a body has no form to check
    lines = [
        f"{method} {path} HTTP/1.1", "host: localhost", f"x-api-key: {key}",
        f"content-length: {len(content)}",
    ]  # fmt: skip
    if media:
        lines.append(f"content-type: {media}")
    return "\r\n".join([*lines, "", ""]).encode() + content


async def _connect(host: str, port: int) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, host, port)
    return connection


async def _answer(connection: Connection, content: bytes) -> tuple[int, bytes]:
    async with asyncio.timeout(30):
        return await connection.send(content)


async def _send_all(
    host: str, port: int, count: int, make: Callable[[], bytes], on_progress: Callable[[int], None]
) -> tuple[Counter[str], list[dict[str, Any]], int]:
    statuses, findings, other = Counter[str](), list[dict[str, Any]](), 0
    left = count

    async def work() -> None:
        nonlocal left, other
        connection: Connection | None = None
        while left > 0:
            left -= 1
            on_progress(count - left)
            content = make()
            is_reused = connection is not None and connection.is_open
            try:
                if connection is None or not is_reused:
                    connection = await _connect(host, port)
                try:
                    status, body = await _answer(connection, content)
                except ConnectionError:
                    # As every client does: a kept connection may end while a request is sent.
                    if not is_reused:
                        raise
                    connection = await _connect(host, port)
                    status, body = await _answer(connection, content)
            except (OSError, TimeoutError) as error:
                connection = None
                if len(content) > MAX_BODY and isinstance(error, ConnectionError):
                    statuses["closed"] += 1  # before the client had sent a body that is too large
                    continue
                statuses["error"] += 1
                findings.append({"error": repr(error), "request": repr(content[:2000])})
                continue
            statuses[str(status)] += 1
            if status >= 500 and status not in (503, 507):
                findings.append({"status": status, "request": repr(content[:2000])})
            if status >= 400 and not _is_failure(body):
                other += 1
                findings.append({"body": repr(body[:500]), "request": repr(content[:2000])})
        if connection is not None:
            connection.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return statuses, findings, other


def _is_failure(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return list(error) == ["code", "message", "field"]


def send_mutated(
    address: str,
    pid: int,
    count: int,
    seed: int,
    key: str = ADMIN,
    changes: bool = False,
    measure: Callable[[], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Send ``count`` mutated requests; return the answers, and memory after each tenth of them.

    ``measure`` returns the memory in use, which is recorded as well.
    """
    host, port = address.removeprefix("http://").split(":")
    rng, memory, in_use = random.Random(seed), list[float](), list[dict[str, float]]()

    def on_progress(done: int) -> None:
        if done % max(1, count // 10) == 0:
            memory.append(resident_mib(pid)["RssAnon"])
            if measure is not None:
                in_use.append(measure())

    on_progress(0)

    began = time.perf_counter()
    make = lambda: request(rng, key, changes)  # noqa: E731
    statuses, findings, other = asyncio.run(_send_all(host, int(port), count, make, on_progress))
    for finding in findings[:5]:
        print(json.dumps(finding), file=sys.stderr)
    return {
        "requests": count,
        "seconds": round(time.perf_counter() - began, 1),
        "statuses": dict(sorted(statuses.items())),
        "server_errors": sum(
            n
            for status, n in statuses.items()
            if status[0] in "5e" and status not in ("503", "507")
        ),
        "refused_for_want_of_time": statuses["503"],
        "other_forms": other,
        "findings": findings[:20],
        "anonymous_mib": memory,
        "in_use": in_use,
    }


HEADER_LINES: tuple[bytes, ...] = (
    b"content-length: 5", b"content-length: -1", b"content-length: " + b"9" * 30,
    b"content-length: 0x10", b"content-length: 5, 5", b"transfer-encoding: chunked",
    b"transfer-encoding: gzip, chunked", b"transfer-encoding: xchunked", b"host: a\r\nhost: b",
    b"host:", b"expect: 100-continue", b"expect: 200-maybe", b"connection: upgrade\r\nupgrade: h2c",
    b"connection: upgrade\r\nupgrade: websocket", b"connection: close, keep-alive", b": no name",
    b"no colon", b"space : x", b" folded", b"x: \x00", b"x: \xff\xfe", b"x: a\rb", b"\x00: x",
    b"x: " + b"a" * 70_000, b"\r\n".join([b"a: b"] * 300), b"content-type: application/json\x0b",
    b"x-forwarded-for: 1.1.1.1, , x", b"authorization: Bearer \xff", b"trailer: x",
)  # fmt: skip
CHUNKS: tuple[bytes, ...] = (
    b"5\r\nhello\r\n", b"0\r\n\r\n", b"ZZ\r\n", b"-1\r\n", b"f" * 17 + b"\r\n", b"5\r\nhelloXX",
    b"5;" + b"e" * 500 + b"\r\nhello\r\n", b"0\r\nx: y\r\n\r\n", b"\r\n", b"1\r\n{\r\n",
    b"5\nhello\n",
)  # fmt: skip
START_LINES: tuple[bytes, ...] = (
    b"GET / HTTP/0.9", b"GET / HTTP/2.0", b"GET / HTTP/9.9", b"GET /", b"GET  /  HTTP/1.1",
    b"GET http://a.test/v1/model HTTP/1.1", b"GET http:// HTTP/1.1", b"GET * HTTP/1.1",
    b"OPTIONS * HTTP/1.1", b"CONNECT a.test:443 HTTP/1.1", b"PRI * HTTP/2.0", b"get / http/1.1",
    b"GET /\x00 HTTP/1.1", b"GET /\xff HTTP/1.1", b"GET /%zz HTTP/1.1", b"GET ?a HTTP/1.1",
    b"\x16\x03\x01\x02\x00", b"GET /" + b"a" * 70_000 + b" HTTP/1.1", b"",
)  # fmt: skip


def raw_request(rng: random.Random, key: str) -> bytes:
    """Return bytes of one or several requests whose HTTP is broken in some way."""
    content = request(rng, key, changes=True)
    start, _, rest = content.partition(b"\r\n")
    head, _, body = rest.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    if rng.random() < 0.7:
        lines.append(b"connection: close")
    for _ in range(rng.choice((0, 1, 1, 2))):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(HEADER_LINES))
    choice = rng.randrange(7)
    if choice == 0:
        start = rng.choice(START_LINES)
    elif choice == 1:
        lines = [line for line in lines if not line.startswith(b"content-length")]
        lines.append(b"transfer-encoding: chunked")
        body = b"".join(rng.choice(CHUNKS) for _ in range(rng.randrange(6)))
    elif choice == 2:
        del lines[rng.randrange(len(lines))]
    content = b"\r\n".join([start, *lines, b"", body])
    if choice == 3:
        content = content[: rng.randrange(len(content) + 1)]
    elif choice == 4:
        content = mutate_bytes(content, rng)
    elif choice == 5:
        # Many item updates in turn would take longer than a finding allows.
        content = content * rng.choice((2, 5, 100 if start.startswith(b"GET") else 10))
    elif choice == 6:
        content = rng.choice((b"\r\n", b"\r\n" * 40_000, b"\x00", b"\n")) + content
    return content


async def _send_raw(
    host: str, port: int, count: int, make: Callable[[], bytes], seconds: float
) -> tuple[Counter[str], list[dict[str, Any]]]:
    statuses, findings = Counter[str](), list[dict[str, Any]]()
    left = count

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            content, answer = make(), b""
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError as error:
                findings.append({"error": repr(error)})
                continue
            try:
                async with asyncio.timeout(seconds):
                    writer.write(content)
                    while part := await reader.read(65536):
                        answer += part
            except TimeoutError:
                findings.append({"error": "open", "request": repr(content[:2000])})
            except OSError:
                pass  # The server closed while the rest was being sent.
            finally:
                writer.close()
            found = re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)
            statuses.update([status.decode() for status in found] or ["closed"])
            bad = [status for status in found if status[:1] == b"5" and status not in ALLOWED_5XX]
            if bad:
                findings.append({"status": repr(bad), "request": repr(content[:2000])})
            is_error = found and found[-1] >= b"400" and b"HEAD" not in content
            if is_error and not _is_failure(answer.rpartition(b"\r\n\r\n")[2]):
                findings.append({"body": repr(answer[-500:]), "request": repr(content[:2000])})

    await asyncio.gather(*(work() for _ in range(RAW_CONNECTIONS)))
    return statuses, findings


def send_raw(
    address: str, count: int, seed: int, key: str = ADMIN, seconds: float = 60
) -> dict[str, Any]:
    """Send ``count`` times bytes that break the rules of HTTP; return the answers.

    Args:
        address: of the server.
        count: number of connections; each sends one mutated request or several.
        seed: of the mutations.
        key: admin key of the server.
        seconds: after which an open connection is a finding.
    """
    host, port = address.removeprefix("http://").split(":")
    rng, began = random.Random(seed), time.perf_counter()
    make = lambda: raw_request(rng, key)  # noqa: E731
    statuses, findings = asyncio.run(_send_raw(host, int(port), count, make, seconds))
    for finding in findings[:5]:
        print(json.dumps(finding), file=sys.stderr)
    return {
        "connections": count,
        "seconds": round(time.perf_counter() - began, 1),
        "statuses": dict(sorted(statuses.items())),
        "findings": len(findings),
    }


def run_schemathesis(address: str, examples: int) -> dict[str, Any]:
    """Run schemathesis on the OpenAPI document."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{address}/openapi.json",
        "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing", "--mode", "all",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance",
        "--exclude-path", "/v1/admin/reload",
        "--header", f"X-API-Key: {ADMIN}", "--generation-deterministic", "--no-color",
    ]  # fmt: skip
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:  # it writes files where it runs
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    lines = done.stdout.splitlines()
    summary = next((n for n, line in enumerate(lines) if "SUMMARY" in line), 0)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr)
    return {
        "exit_code": done.returncode,
        "seconds": round(time.perf_counter() - began, 1),
        "summary": [line for line in lines[summary:] if line.strip()],
    }


def main() -> None:
    """Fuzz a server of a small run, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="run to serve; default: one made under OUT")
    parser.add_argument("--out", type=Path, default=Path("build/serve_fuzz"))
    parser.add_argument("--requests", type=int, default=80_000)
    parser.add_argument("--raw", type=int, default=20_000, help="connections with broken HTTP")
    parser.add_argument("--examples", type=int, default=100, help="of schemathesis, per route")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    run = given.run
    if run is None:
        from serve_run import make_run

        run = make_run(given.out, num_items=5000, num_users=2000, steps=30, features=True)
    settings = [part for limit in RAW_LIMITS for part in ("--set", limit)]
    with (
        tempfile.TemporaryDirectory() as folder,
        start_server(
            str(run),
            "--quiet",
            *settings,
            program=server_memory.PROGRAM,
            **server_memory.environment(file := Path(folder) / "memory.jsonl"),
        ) as (process, address),
    ):
        result: dict[str, Any] = {
            "command": f"python benchmarks/serve_fuzz.py --requests {given.requests}",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("uvicorn", "httptools", "fastapi")},
            "seed": given.seed,
            "limits": list(RAW_LIMITS),
        }
        result["schemathesis"] = run_schemathesis(address, given.examples)
        result["memory_mib_between"] = resident_mib(process.pid)
        result["fuzzer"] = send_mutated(
            address,
            process.pid,
            given.requests,
            given.seed,
            changes=True,
            measure=partial(server_memory.in_use, process.pid, file),
        )
        result["broken_http"] = send_raw(address, given.raw, given.seed)
        result["memory_mib_after"] = resident_mib(process.pid)
    result["exit_code"] = process.returncode
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
