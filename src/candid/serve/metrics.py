"""Counters of the server in the Prometheus format."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from candid.errors import ArtifactError, ConfigError

SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128)


KINDS: Final = ("counter", "histogram", "gauge_livesum", "gauge_livemax")
FILE_BYTES: Final = 1 << 20
"""Size of each file of a process, several times what all labels need."""
USED: Final = struct.Struct("i")
"""Head of a file of prometheus_client."""


class Metrics:
    """Counters of one server, in their own registry.

    Args:
        folder: of the files in which several processes share their counters; the environment of
            each process must name it before prometheus_client is imported. None: this process is
            alone.

    Raises:
        ArtifactError: the folder has no space.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        registry = self.registry = CollectorRegistry()
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            _reserve_files(self._folder)
        self.requests = Counter(
            "candid_requests",
            "Requests answered",
            ["route", "method", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "candid_request_seconds",
            "Time to answer a request",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.workers = Gauge(
            "candid_workers",
            "Processes that answer requests",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.in_flight = Gauge(
            "candid_requests_in_flight",
            "Requests in flight",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.connections = Gauge(
            "candid_connections",
            "Open connections",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.connections_closed = Counter(
            "candid_connections_closed",
            "Connections closed by the server before or without an answer",
            ["reason"],
            registry=registry,
        )
        self.refused = Counter(
            "candid_refused",
            "Requests refused for lack of capacity or time",
            ["reason"],
            registry=registry,
        )
        self.batch_size = Histogram(
            "candid_batch_size", "Queries of a batch", ["queue"], buckets=SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "candid_batch_seconds",
            "Time to encode and search a batch",
            ["queue"],
            buckets=SECONDS,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "candid_wait_seconds",
            "Time a query waits in its queue",
            ["queue"],
            buckets=SECONDS,
            registry=registry,
        )
        self.reloads = Counter(
            "candid_reloads", "Reloads of a model", ["model", "result"], registry=registry
        )
        self.model_version = Gauge(
            "candid_model_version",
            "Version of a model in use",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.items = Gauge(
            "candid_items",
            "Items that can be recommended",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )

    def to_text(self) -> bytes:
        """Return all counters as ``/metrics`` serves them: those of all processes, added up."""
        return generate_latest(self.registry) if self._folder is None else read_all(self._folder)


def restore_folder(folder: Path) -> None:
    """Make the folder of several processes again, private to this user, if it is gone.

    Without it, or without permission to write into it, a process that starts could not count. Such
    folders are removed by cleaners of temporary files.

    Raises:
        ConfigError: the system refuses, or another user has made the folder.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if is_ours and stat.S_IMODE(status.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} of the metrics of the workers cannot be used ({error.strerror}): "
            "create it again with mode 700, or restart the server"
        ) from None
    if not is_ours:
        raise ConfigError(
            f"the folder {folder} of the metrics of the workers belongs to another user: remove it"
        )


def read_all(folder: Path) -> bytes:
    """Return the counters of all processes that share a folder, added up.

    A folder that was removed meanwhile has none.
    """
    while folder.is_dir():
        # The files of a worker that ends may be removed between their listing and their reading.
        with contextlib.suppress(FileNotFoundError):
            registry = CollectorRegistry()
            MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
            return generate_latest(registry)
    return b""


def free_files(folder: Path, pid: int, *, keeps_counters: bool) -> None:
    """Free the space of the files of a process that has ended.

    Args:
        folder: of the files of all processes.
        pid: of the process.
        keeps_counters: whether what it counted stays a part of the sum.
    """
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
    for kind in ("counter", "histogram"):
        path = folder / f"{kind}_{pid}.db"
        with contextlib.suppress(OSError), path.open("r+b") as stream:
            # The file begins with the number of its bytes in use.
            head = stream.read(USED.size)
            used = USED.unpack(head)[0] if len(head) == USED.size else 0
            if keeps_counters and used > 0:
                stream.truncate(used)
            else:
                path.unlink()


def _reserve_files(folder: Path) -> None:
    """Create the files of this process with all their space.

    They are mapped into memory, and a write to a mapped file on a full disk ends the process.
    """
    for kind in KINDS:
        path = folder / f"{kind}_{os.getpid()}.db"
        try:
            with path.open("ab") as stream:
                os.posix_fallocate(stream.fileno(), 0, FILE_BYTES)
        except OSError as error:
            raise ArtifactError(
                f"no space for the metrics of a worker in {folder} ({error.strerror}): free some "
                "space, or set TMPDIR to another folder"
            ) from None
