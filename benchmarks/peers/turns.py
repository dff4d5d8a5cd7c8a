"""Data and turns of a benchmark, shared by all libraries.

A library trains in turns of about an epoch. It waits for its turn, trains with its clock running,
stops the clock, writes the ten best items of every evaluated user, and reports. This module does
not import candid, because the peers run in environments without it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
K = 10


class Data:
    """Interactions as dense ids, each user's in order, without what is held out.

    Args:
        folder: written by ``run.py``.

    Attributes:
        users: [E], ascending.
        items: [E].
        offsets: [U + 1], where each user's interactions begin.
        asked: [A], the users who are asked for.
        validation: [U], the item after a user's last interaction, which RecBole cuts off itself.
        test: [U], the item after that one, likewise.
    """

    def __init__(self, folder: Path) -> None:
        stored = np.load(folder / "data.npz")
        self.users: Ints = stored["users"]
        self.items: Ints = stored["items"]
        self.asked: Ints = stored["asked"]
        self.validation: Ints = stored["validation"]
        self.test: Ints = stored["test"]
        self.num_users = len(self.validation)
        self.num_items = int(stored["num_items"])
        counts = np.bincount(self.users, minlength=self.num_users)
        self.offsets: Ints = np.concatenate([[0], np.cumsum(counts)])

    def history(self, user: int, most: int | None = None) -> Ints:
        """The last ``most`` items of a user."""
        items = self.items[self.offsets[user] : self.offsets[user + 1]]
        return items if most is None else items[-most:]

    def best(self, scores: npt.NDArray[np.float32], users: Ints) -> Ints:
        """The K best items of each row that its user has not seen; [n, K]."""
        for row, user in enumerate(users):
            scores[row, self.history(user)] = -np.inf
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)


class Turns:
    """The contender's side of the conversation with ``run.py``.

    Args:
        recommend: the K best unseen items of every user asked for, [A, K].
        lists: file for them.
    """

    def __init__(self, recommend: Callable[[], Ints], lists: Path) -> None:
        self._recommend = recommend
        self._lists = lists
        self._answers = os.fdopen(os.dup(1), "w")
        # Output of a library must not mix with the answers on stdout.
        os.dup2(2, 1)

    def begin(self, **facts: Any) -> None:
        """Say that all is ready and wait for the first turn."""
        self._say(facts)
        self._wait()

    def end(self, epochs: float = 1.0) -> None:
        """End a turn and wait for the next one; exit after the last one.

        Args:
            epochs: how much of a pass over the data the turn was.
        """
        wall = time.perf_counter() - self._wall
        cpu = time.process_time() - self._cpu
        peak, resident = memory_mib("VmHWM"), memory_mib("VmRSS")
        np.save(self._lists, np.asarray(self._recommend(), dtype=np.int64))
        self._say({"epochs": epochs, "wall": wall, "cpu": cpu, "peak": peak, "rss": resident})
        self._wait()

    def _say(self, message: dict[str, Any]) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)  # some trainers would write a last checkpoint
        # The peak is that of training: what recommending took is given back, and forgotten.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._wall, self._cpu = time.perf_counter(), time.process_time()


def memory_mib(key: str) -> float:
    """A line of the kernel's account of this process, in MiB (Linux)."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return round(int(found[1]) / 1024, 1)


def arguments() -> tuple[Data, Path, dict[str, Any]]:
    """Data, the folder they lie in, and settings, from the command line."""
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    return Data(folder), folder, settings


def lists_of(name: str, folder: Path) -> Path:
    """Where a contender leaves its lists."""
    return folder / "lists" / f"{name}.npy"
