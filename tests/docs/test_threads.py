"""The table of hot paths on one and two threads against its results, and its script."""

import json
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks" / "speed.md"
RESULTS = ROOT / "benchmarks" / "results" / "threads.json"


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("threads")


@pytest.fixture
def two_threads():
    """Restores the number of threads of torch."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield torch
    torch.set_num_threads(before)


def test_table_matches_results(script):
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else None
    content = PAGE.read_text()
    assert script.with_table(content, report) == content


def test_results_are_of_a_quiet_machine_and_name_the_reason_of_each_path_below_the_goal(script):
    if not RESULTS.exists():
        pytest.skip("not measured yet")
    report = json.loads(RESULTS.read_text())
    assert report["others"] <= script.QUIET
    assert [row["path"] for row in report["results"]] == list(script.PATHS)
    for row in report["results"]:
        assert row["speedup"] >= script.GOAL or script.PATHS[row["path"]].reason, row["path"]


def test_work_with_times_of_its_own_has_the_ratio_of_these_times(script, monkeypatch, two_threads):
    def work(threads):
        return script.paths.Seconds(0.3 / threads, 0.1 * threads, 0.05)

    path = script.HotPath(lambda: work, "work", share=None)
    monkeypatch.setitem(script.PATHS, "work", path)
    row = script.measure("work", path, turns=3)
    assert row["ms"] == row["best_ms"] == {"1": 300.0, "2": 150.0}
    assert row["cpu_ms"] == {"1": 100.0, "2": 200.0}
    assert row["main_ms"] == {"1": 50.0, "2": 50.0}
    assert row["speedup"] == row["speedup_best"] == 2.0
    assert "| work | work | 300.0 | 150.0 | 2.00 | 2.00 |  |" in script.table({"results": [row]})


def test_times_of_a_turn_are_means_of_passes_after_a_warm_up(script, two_threads):
    calls = []

    def work(threads):
        calls.append((threads, two_threads.get_num_threads()))
        time.sleep(0.2 if len(calls) == 1 else 0.02)

    wall, cpu, main = script.run_turn(work, 2, passes=4)
    assert calls == [(2, 2)] * 5
    assert wall >= 20
    assert main <= cpu + 0.1  # milliseconds between the readings of the two clocks
    assert cpu < wall


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ("flat", "why; 41% of the time in operations that gain less than 1.2"),
        ("main", "why; 60% of the CPU time in the main thread"),
        (None, "why"),
    ],
)
def test_reason_has_the_measured_share_below_the_goal_only(script, monkeypatch, share, expected):
    path = script.HotPath(lambda: None, "work", "why", share)
    monkeypatch.setitem(script.PATHS, "work", path)
    row = {"path": "work", "speedup": 1.69, "flat": 0.412}
    row |= {"cpu_ms": {"1": 100.0}, "main_ms": {"1": 60.0}}
    assert script.reason(row) == expected
    assert script.reason(row | {"speedup": 1.7}) == ""


def test_profile_separates_operations_of_torch_from_the_rest(script, two_threads):
    ones = two_threads.ones(4)

    def work(threads):
        ones.add(ones)
        time.sleep(0.1 * threads)

    found = script.operations(work, passes=2)
    assert found["operations"].keys() >= {script.OUTSIDE, "aten::add"}
    assert found["operations"][script.OUTSIDE]["1"] >= 100
    assert found["operations"][script.OUTSIDE]["2"] >= 200
    assert 0.5 < found["flat"] <= 1


def test_load_counts_work_of_this_process_as_its_own(script):
    load = script.Load()
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert load._own() - load.own >= 0.09
    assert 0 <= load.others() <= 1.1
