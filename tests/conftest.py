"""Settings of the whole suite, and what tests of the docs share."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Tests run side by side; tiny products gain nothing from threads that wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def benchmark_script():
    """Imports a script of the benchmarks, by its name; it can import others of its folder."""

    def load(name):
        module_name, path = f"benchmark_{name}", BENCHMARKS / f"{name}.py"
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # where dataclasses look for their annotations
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(path.parent)
            spec.loader.exec_module(module)
        return module

    return load


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
