"""Each example runs as a script, its loss falls, and its recall rises."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
# Script, packages beside candid, the highest accepted last loss and the lowest accepted recall.
# Measured: 3.7 and .37, 5.8 (of the full softmax) and .37, 4.0 and .59, 0.03 and .98.
SCRIPTS = [
    ("plain_pytorch.py", (), 5.0, 0.3),
    ("lightning_module.py", ("pytorch_lightning",), 6.3, 0.3),
    ("huggingface_trainer.py", ("transformers", "accelerate"), 5.0, 0.4),
    ("sentence_transformers_loss.py", ("sentence_transformers", "datasets"), 0.2, 0.9),
]
# No downloads.
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def test_every_example_is_run():
    assert {script for script, *_ in SCRIPTS} == {
        path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "packages", "highest_loss", "lowest_recall"), SCRIPTS, ids=[s[0] for s in SCRIPTS]
)
def test_example_learns(script, packages, highest_loss, lowest_recall, tmp_path):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{script} needs {package}: pip install 'candid-retrieval[examples]'")
    run = subprocess.run(
        [sys.executable, EXAMPLES / script],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    first, last = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", run.stdout).groups())
    recall, chance = map(
        float, re.search(r"recall@\d+ ([\d.]+), by chance ([\d.]+)", run.stdout).groups()
    )
    assert last < highest_loss < first
    assert recall > lowest_recall > 10 * chance
    assert not list(tmp_path.iterdir()), "an example must leave no files"
