"""The script that tests and measures on a CUDA device, without one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cuda_device.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_exit_status_without_a_device():
    done = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr == "there is no CUDA device: run this script on a machine with one\n"


def test_all_contenders_run_and_fill_the_tables(benchmark_script, monkeypatch):
    script = benchmark_script("cuda_device")
    monkeypatch.setattr(script, "LOSSES", [("in-batch", 40, 40), ("full", 20, 30)])
    monkeypatch.setattr(script, "TABLES", [(2000, 40)])
    optimizers = [(rule, "bfloat16", (2000, 40)) for rule in script.ROW_RULES]
    monkeypatch.setattr(script, "ROW_OPTIMIZERS", optimizers)
    monkeypatch.setattr(script, "STEPS", 1)
    cpu = torch.device("cpu")
    results = [
        line
        for table, case, make in script.cases(cpu)
        for line in script.measure(table, case, make(), cpu, turns=1)
    ]
    assert {line["contender"] for line in results if line["table"] == "losses"} == set(
        script.CONTENDERS
    )
    tests = {"cuda": {"status": 0, "summary": "3 passed", "failed": []}}
    page = script.page({"device": "X", "torch": "2", "tests": tests, "results": results})
    assert "| in-batch, 40 × 40 | " in page
    assert "| 2,000 items, B = 40 | " in page
    assert "| row_adam, bfloat16, 2,000 items, 40 look-ups | " in page
    assert page.count("\n| ") == 4 + 2 + 1 + 2 + 1
    assert all((SCRIPT.parents[1] / path).exists() for path in script.KERNEL_TESTS)


def test_page_without_results(benchmark_script):
    script = benchmark_script("cuda_device")
    if not script.RESULTS.exists():
        assert script.page(None) in script.DOCS.read_text()
