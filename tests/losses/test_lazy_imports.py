"""The losses package imports its modules on first use."""

import subprocess
import sys

import pytest

import candid.losses

PROGRAM = """
import sys
import candid.runs, candid.losses
assert "torch._dynamo" not in sys.modules
candid.losses.SampledSoftmaxLoss, candid.losses.InBatchSoftmaxLoss
assert "torch._dynamo" in sys.modules
"""


@pytest.mark.slow
def test_torch_compiler_is_loaded_on_first_use():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)


def test_correction_loads_few_modules():
    program = (
        "import candid.losses.correction, sys\n"
        "assert sum(name.startswith('candid') for name in sys.modules) < 10"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_exported_names_exist():
    assert all(hasattr(candid.losses, name) for name in candid.losses.__all__)
    assert not hasattr(candid.losses, "Softmax")
