"""Queue of measurements, each in a process of its own, and their results in a file.

``quality.py`` and ``default_parts.py`` share it. Several processes may work on one queue: each
takes measurements that no other one is doing.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from candid.atomic import replacing, write_json
from measurement_runs import BUSY, file_name

ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "POLARS_MAX_THREADS",
    )
}


class BenchmarkError(Exception):
    """A message for the user: what is wrong, and what to do."""


class Measurement(Protocol):
    """What a queue needs of a measurement."""

    @property
    def key(self) -> str:
        """Name in the results, with slashes."""


class Child:
    """The process of a measurement; a signal to this process stops it, and the training saves."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.is_stopping = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run a command with one thread and return its exit code."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            # A session of its own: Ctrl-C reaches this process only, which passes it on once.
            self._process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                env=os.environ | ONE_THREAD,
                start_new_session=True,
            )
            if self.is_stopping:  # a signal came while the process started
                self._process.terminate()
            return self._process.wait()

    def _stop(self, *_: Any) -> None:
        self.is_stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    @cached_property
    def _begin(self) -> float:
        return _spent()

    @property
    def minutes(self) -> float:
        """CPU minutes of all processes so far."""
        return (_spent() - self._begin) / 60


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Queue(Protocol):
    """What is special to one benchmark."""

    work: Path

    def is_finished(self, task: Any) -> bool:
        """Whether the results contain the measurement."""

    def command(self, task: Any) -> list[str]:
        """Return the command of the process of a measurement."""

    def record(self, task: Any) -> Any:
        """Move the result of a finished process into the results, and return it."""


def run_all(
    queue: Queue,
    tasks: Iterable[Any],
    child: Child,
    minutes: float,
    on_record: Callable[[Any, Any], None],
) -> list[str]:
    """Do the measurements that are missing; return the keys of those that failed.

    Args:
        queue: of the benchmark.
        tasks: the measurements, read one by one, so that later ones may depend on earlier results.
        child: runs the processes.
        minutes: CPU minutes after which none starts.
        on_record: called with each measurement that was done, and its result.

    Raises:
        BenchmarkError: stopped by a signal or by the budget.
    """
    failed = []
    for task in tasks:
        if child.is_stopping:
            raise BenchmarkError("stopped; the same command continues")
        if queue.is_finished(task):
            continue
        if child.minutes >= minutes:
            raise BenchmarkError(
                f"stopped after {child.minutes:.0f} CPU minutes, before {task.key}; the same "
                "command continues"
            )
        command = queue.command(task)
        log = queue.work / "logs" / f"{file_name(task.key)}.log"
        print(f"{task.key} … ({log})", flush=True)
        code = child.run(command, log)
        if child.is_stopping:
            raise BenchmarkError(f"stopped during {task.key}; the same command continues")
        if code == BUSY:
            print(f"{task.key}: another process is measuring it", flush=True)
            continue
        if code:
            failed.append(task.key)
            print(f"{task.key} failed with exit code {code}: {_last_line(log)}", flush=True)
            continue
        on_record(task, queue.record(task))
    return failed


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


class ResultsFile:
    """The results in a file; several processes may add to it.

    Args:
        path: of the file.
        empty: content of a missing file; all its tables are in every file.

    Raises:
        BenchmarkError: the file is damaged.
    """

    def __init__(self, path: Path, empty: Mapping[str, Any]) -> None:
        self.path = path
        self._empty = json.dumps(empty)
        self.read()

    def read(self) -> dict[str, Any]:
        """Return the content, empty tables for a missing file."""
        empty: dict[str, Any] = json.loads(self._empty)
        if not self.path.exists():
            return empty
        try:
            content: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            for part, value in empty.items():
                if isinstance(value, dict) and not isinstance(content[part], dict):
                    raise TypeError
        except (ValueError, KeyError, TypeError):
            raise BenchmarkError(
                f"{self.path} is damaged; restore it from version control, or move it away to "
                "measure everything again"
            ) from None
        return content

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from changing the file and the page."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """Yield the content, and write it back; no other process changes it meanwhile."""
        with self.lock():
            content = self.read()
            yield content
            write_json(self.path, content)

    def write_page(self, page: Path, with_blocks: Callable[[str, dict[str, Any]], str]) -> None:
        """Write the generated blocks of a page."""
        with self.lock():
            content = with_blocks(page.read_text(encoding="utf-8"), self.read())
            with replacing(page) as temporary:
                temporary.write_text(content, encoding="utf-8")
