"""What other training loops use is loaded when they ask for it."""

import subprocess
import sys

import candid.losses

PROGRAM = """
import sys
import candid.runs, candid.losses
assert "torch._dynamo" not in sys.modules
candid.losses.SampledSoftmaxLoss, candid.losses.InBatchSoftmaxLoss
assert "torch._dynamo" in sys.modules
"""


def test_no_verb_waits_for_the_compiler():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)


def test_every_name_is_there_and_no_other():
    assert all(hasattr(candid.losses, name) for name in candid.losses.__all__)
    assert not hasattr(candid.losses, "Softmax")
