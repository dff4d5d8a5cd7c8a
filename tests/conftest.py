"""Settings of the whole suite, and what tests of the docs share."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Tests run side by side; tiny products gain nothing from threads that wait for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def benchmark_script():
    """Imports a script of the benchmarks, by its name."""

    def load(name):
        module_name = f"benchmark_{name}"
        spec = importlib.util.spec_from_file_location(module_name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # where dataclasses look for their annotations
        spec.loader.exec_module(module)
        return module

    return load
