"""Fixtures of the tests of docs, and the marker ``docs`` on each of these tests."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_configure(config):
    config.addinivalue_line("markers", "docs: compares docs with results, or runs their code")


def pytest_collection_modifyitems(items):
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.docs)


class InProcess:
    """Does the work of a child process of a benchmark in this one, and counts.

    Args:
        script: module of the child process.
        monkeypatch: changes the arguments of this process.
    """

    is_stopping = False
    minutes = 0.0

    def __init__(self, script, monkeypatch):
        self.script, self.patch, self.runs = script, monkeypatch, []

    def run(self, command, log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self.runs.append(command)
        self.patch.setattr(sys, "argv", command[1:])
        self.script.main()
        return 0


@pytest.fixture(scope="session")
def in_process():
    return InProcess
