"""Preparations of the tests by both engines: the same files byte by byte, or the same message."""

import importlib
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from candid.atomic import atomic_folder
from candid.data import engine, parts
from candid.errors import CandidError

preparation = importlib.import_module("candid.data.prepare")
Build = preparation._Build


class BothEngines:
    """Repeats preparations in memory with DuckDB; a test during which they differ fails.

    What is refused before an engine is chosen is not repeated: no engine takes part in it.

    Args:
        limit: preparations of each test function that are repeated; None: all.

    Attributes:
        compared: number of outcomes that were compared, by kind: "dataset" or "message".
    """

    def __init__(self, limit):
        self.limit = limit
        self.compared = Counter()
        self._function = ""
        self._counts = Counter()
        self._differences = []

    def pytest_sessionstart(self):
        both = self

        class Compared(Build):
            def __init__(self, inputs, earlier_ids, report):
                super().__init__(inputs, earlier_ids, report)
                self._arguments = inputs, earlier_ids, lambda line: None

            def in_memory(self):
                is_repeated = both._is_repeated()
                try:
                    dataset = super().in_memory()
                except CandidError as error:
                    if is_repeated:
                        both._compare(_text(error), self._arguments)
                    raise
                if is_repeated:
                    both._compare(_saved(dataset), self._arguments)
                return dataset

        preparation._Build = Compared

    def pytest_sessionfinish(self):
        preparation._Build = Build

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self._function = item.nodeid.partition("[")[0]
        self.take_differences()  # of a test that failed for another reason
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        result = yield
        differences = self.take_differences()
        assert not differences, "\n".join(differences)
        return result

    def take_differences(self):
        """Return the differences since the last call."""
        differences, self._differences = self._differences, []
        return differences

    def _is_repeated(self):
        if not engine._has_duckdb():  # Some tests hide it.
            return False
        self._counts[self._function] += 1
        return self.limit is None or self._counts[self._function] <= self.limit

    def _compare(self, memory, arguments):
        duckdb = _on_disk(arguments)
        self.compared["message" if isinstance(memory, str) else "dataset"] += 1
        if memory == duckdb:
            return
        if isinstance(memory, dict) and isinstance(duckdb, dict):
            names = sorted(memory.keys() | duckdb.keys())
            wrong = [name for name in names if memory.get(name) != duckdb.get(name)]
            self._differences.append(f"the engines write other bytes into {', '.join(wrong)}")
        else:
            results = [r if isinstance(r, str) else "a dataset" for r in (memory, duckdb)]
            self._differences.append("memory gives {}, and duckdb {}".format(*results))


def _text(error):
    return f"{type(error).__name__}: {error}"


@contextmanager
def _folder():
    """Yield a folder to write, without waiting for the disk."""
    with tempfile.TemporaryDirectory() as parent, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield Path(parent) / "out"


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _saved(dataset):
    with _folder() as out:
        dataset.save(out)
        return _files(out)


def _on_disk(arguments):
    """Return the files of a dataset that DuckDB prepares in about eight parts, or the message."""
    limit = engine.MemoryLimit(engine.MIN_LIMIT, True)
    with _folder() as out, pytest.MonkeyPatch.context() as patch:
        try:
            build = Build(*arguments)
            patch.setattr(parts, "PART_ROWS", max(1, build.num_rows // 8))
            with atomic_folder(out) as folder:
                build.on_disk(folder, limit, "writing")
        except Exception as error:  # Any but a refusal differs from that of the other engine.
            return _text(error)
        return _files(out)
