"""Settings of the whole suite, and what tests of the docs share."""

import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from candid.distributed import open_group

TESTS = Path(__file__).parent
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def pytest_addoption(parser):
    parser.addoption(
        "--both-engines",
        choices=["one", "all"],
        default="one",
        help="repeat one preparation in memory of each test function with DuckDB, or all of them",
    )


def pytest_configure(config):
    limit = None if config.getoption("--both-engines") == "all" else 1
    plugin = _import_file("both_engines", TESTS / "both_engines.py").BothEngines(limit)
    config.pluginmanager.register(plugin, "both_engines")


# Tests run side by side; tiny products gain nothing from threads that wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def benchmark_script():
    """Imports a script of the benchmarks, by its name; it can import others of its folder."""

    def load(name):
        return _import_file(f"benchmark_{name}", BENCHMARKS / f"{name}.py")

    return load


@pytest.fixture(scope="session")
def planted_studies():
    """The module that writes studies with planted differences."""
    return _import_file("planted_studies", TESTS / "study" / "planted_studies.py")


def _import_file(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their annotations
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mapped_kib():
    """Returns the KiB of each mapped file by kind, such as Rss, from the text of an smaps.

    Files have their names without folder. Mappings of one file are added.
    """

    def read(smaps):
        kib = {}
        for line in smaps.splitlines():
            if match := re.match(r"[0-9a-f]+-[0-9a-f]+ .{4} .*?(/([^/]*))?$", line):
                sizes = kib.setdefault(match[2], {})
            elif match := re.match(r"(\w+):\s+(\d+) kB", line):
                sizes[match[1]] = sizes.get(match[1], 0) + int(match[2])
        return kib

    return read


@pytest.fixture
def compiled_kernels(tmp_path):
    """Runs a script that compiles Triton kernels, and returns the numbers that it prints.

    The script runs in a process of its own: the tests may run in Triton's interpreter, which is
    chosen when triton is imported.
    """

    def run(script):
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(tmp_path)}
        result = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return [int(number) for number in result.stdout.split()]

    return run


@pytest.fixture(scope="session")
def run_cases():
    """Runs a program of test cases, with a folder as its argument; returns its stderr."""

    def run(program, folder):
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, program, folder],
            env=os.environ | environment | {"TORCH_CPP_LOG_LEVEL": "ERROR"},
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-4000:]
        return result.stderr

    return run


def _run(function, rank, num_ranks, store, connection):
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks
        )
        with open_group(60) as group:
            result = function(rank, num_ranks)
            group.barrier()
        connection.send((True, result))
    except BaseException:
        connection.send((False, traceback.format_exc()))
    finally:
        # Without the exit handlers of the parent, which are not those of this process.
        connection.close()
        os._exit(0)


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory):
    """Runs function(rank, num_ranks) on gloo ranks; returns the results in their order.

    Forked, not spawned: the ranks need not import torch again. Results are small Python objects.
    """

    def start(function, num_ranks, timeout=100):
        context = multiprocessing.get_context("fork")
        store = tmp_path_factory.mktemp("store") / "store"
        ranks = []
        for rank in range(num_ranks):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_run, args=(function, rank, num_ranks, store, theirs), daemon=True
            )
            with warnings.catch_warnings():
                # The ranks use no thread and no lock of this process.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            ranks.append((process, ours))
        try:
            answers = [
                connection.recv() if connection.poll(timeout) else (False, "no answer")
                for _, connection in ranks
            ]
            faults = [f"rank {r}:\n{result}" for r, (ok, result) in enumerate(answers) if not ok]
            assert not faults, "\n".join(faults)
            return [result for _, result in answers]
        finally:
            for process, connection in ranks:
                connection.close()
                process.kill()
                process.join()

    return start
