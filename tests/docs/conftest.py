"""Fixtures of the tests of docs, and the marker ``docs`` on each of these tests."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
STUDY = FOLDER.parents[1] / "benchmarks" / "results" / "study" / "corrections.json"
BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^\n]+ -->\n)?^```(?P<language>python|sh)\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


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


@pytest.fixture(scope="session")
def code_blocks():
    """Returns the blocks of a page that can run, as matches with ``language`` and ``code``."""
    return lambda page: list(BLOCK.finditer(page.read_text()))


@pytest.fixture(scope="session")
def run_shell():
    """Runs a shell block, with more variables; returns its stdout.

    Its ``candid`` is a fork of one process, see ``forked_candid.py``.
    """
    program = FOLDER / "forked_candid.py"
    with tempfile.TemporaryDirectory(prefix="candid-") as folder:
        server = subprocess.Popen(
            [sys.executable, program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert server.stdout.readline() == b"\n"
        search = os.pathsep.join([folder, str(Path(sys.executable).parent), os.environ["PATH"]])

        def run(code, **variables):
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code],
                env={**os.environ, "PATH": search, **variables},
                capture_output=True,
                text=True,
            )
            assert result.returncode == 0, f"{code}\n{result.stdout}\n{result.stderr}"
            return result.stdout

        yield run
        server.communicate()


@pytest.fixture(scope="session")
def published_study():
    """The results of the study on docs/study.md."""
    return json.loads(STUDY.read_text())


@pytest.fixture(scope="session")
def short():
    """Writes a number with so many digits as the pages of the study do: .07 instead of 0.07."""

    def write(value, digits):
        text = f"{value:.{digits}f}"
        return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text

    return write
