"""Memory of a process that multiplies matrices of many shapes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from candid.training.kernel_cache import KERNELS, VARIABLE, bound_kernel_cache

GROWTH = """
import re
from pathlib import Path
{first}
import torch

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

torch.set_num_threads(1)
tokens = torch.randn(1000, 64)
torch.nn.functional.gelu(tokens)
before = resident()
for length in range(1, 500):
    torch.nn.functional.gelu(tokens[:length])
print(resident() - before)
"""
BOUND = "from candid.training.kernel_cache import bound_kernel_cache; bound_kernel_cache()"


def growth_mib(first):
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", GROWTH.format(first=first)]
    return float(subprocess.check_output(command, env=environment))


@pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and Path("/proc/self/status").exists()),
    reason="needs oneDNN and the memory account of Linux",
)
@pytest.mark.slow
def test_new_shapes_do_not_accumulate_kernels():
    # The cache holds 64 of 499 kernels; the remaining growth is common to both processes.
    assert growth_mib(BOUND) < 0.5 * growth_mib("")


def test_value_of_the_user_is_kept(monkeypatch):
    monkeypatch.setenv(VARIABLE, "7")
    bound_kernel_cache()
    assert os.environ[VARIABLE] == "7"
    monkeypatch.delenv(VARIABLE)
    bound_kernel_cache()
    assert os.environ[VARIABLE] == str(KERNELS)
