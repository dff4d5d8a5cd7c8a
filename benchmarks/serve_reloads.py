"""A storm of reloads under load: how many requests fail, and what the reloads get.

    python benchmarks/serve_reloads.py --out build/serve_reloads   # results/serve_reloads.json

Several clients send reloads without a pause while requests arrive at a fixed rate. One reload runs
and one waits; the clients share the waiting one. Before each second reload the run is replaced by a
copy whose weights are not finite or by the sound one, so that half of the reloads must fail.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import os
import platform
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serve_load import ADMIN, histories, post, run_load, start_server

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "serve_reloads.json"
RELOAD_SECONDS = 600
"""Longest time that a client waits for a reload."""


class ReloadStorm:
    """Clients that reload without a pause.

    Args:
        address: of the server.
        clients: number of threads.
        model: name of the model; None: all.

    Attributes:
        answers: number of reloads by status and error code, such as "200" or "409 reload_failed".
        versions: of the model after each reload that succeeded, by any client.
    """

    def __init__(self, address: str, clients: int, model: str | None = None) -> None:
        self.answers: collections.Counter[str] = collections.Counter()
        self.versions: set[int] = set()
        self._address = address
        self._body = json.dumps({"model": model}).encode()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._reload) for _ in range(clients)]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let the clients run inside the block; their last reloads end before it is left."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def _reload(self) -> None:
        while not self._stop.is_set():
            request = urllib.request.Request(
                f"{self._address}/v1/admin/reload",
                self._body,
                {"content-type": "application/json", "x-api-key": ADMIN},
            )
            versions: dict[str, int] = {}
            try:
                with urllib.request.urlopen(request, timeout=RELOAD_SECONDS) as response:
                    answer, versions = "200", json.load(response)["models"]
            except urllib.error.HTTPError as error:
                answer = f"{error.code} {json.load(error)['error']['code']}"
            except (OSError, http.client.HTTPException) as error:
                answer = type(error).__name__
                time.sleep(0.1)
            with self._lock:
                self.answers[answer] += 1
                self.versions |= set(versions.values())


def measure(run: Path, rate: float, seconds: float, clients: int) -> dict[str, Any]:
    """Measure one server: without reloads, under sound ones, and under sound and bad ones."""
    link, bad = run.parent / "served", run.parent / "bad"
    _point(link, run)
    _make_bad(run, bad)
    sampled = histories(run.parent / "data", 500)
    requests = [post("/v1/recommend", {"history": history, "k": 20}) for history in sampled]
    with start_server(str(link), "--data", str(run.parent / "data")) as (process, address):
        run_load(address, requests, rate, 3)
        result = {"without": run_load(address, requests, rate, min(seconds, 15))}
        storm = ReloadStorm(address, clients)
        with storm.running():
            load = run_load(address, requests, rate, seconds)
        result["sound"] = {**load, "reloads": dict(storm.answers), "versions": len(storm.versions)}
        storm, stop = ReloadStorm(address, clients), threading.Event()

        def alternate() -> None:
            for number in range(10**6):
                _point(link, bad if number % 2 else run)
                if stop.wait(seconds / 8):
                    return

        changer = threading.Thread(target=alternate)
        with storm.running():
            changer.start()
            load = run_load(address, requests, rate, seconds)
            stop.set()
            changer.join()
        result["mixed"] = {**load, "reloads": dict(storm.answers), "versions": len(storm.versions)}
    result["exit_code"] = process.returncode
    return result


def _point(link: Path, run: Path) -> None:
    temporary = link.with_name("served.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run.resolve())
    temporary.replace(link)


def _make_bad(run: Path, folder: Path) -> None:
    """Copy a run, with one weight that is not finite."""
    from candid.runs.folder import read_manifest, served_checkpoint
    from candid.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(run, folder)
    path = served_checkpoint(folder, read_manifest(folder))
    checkpoint = read_checkpoint(path)
    tensors = dict(checkpoint.tensors)
    name = next(name for name in sorted(tensors) if name.startswith("model/") and "norm" in name)
    tensors[name] = tensors[name] * float("nan")
    write_checkpoint(path, Checkpoint(tensors, checkpoint.meta))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the run if it does not exist, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=50, help="training steps")
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    from serve_run import make_run

    run = make_run(given.out, given.items, given.users, steps=given.steps)
    started = time.strftime("%Y-%m-%d")
    result = {
        "command": " ".join(["python benchmarks/serve_reloads.py", *sys.argv[1:]]),
        "date": started,
        "items": given.items,
        "dim": 64,
        "clients": given.clients,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **measure(run, given.rate, given.seconds, given.clients),
    }
    given.results.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
