"""The figures on memory of a preparation, and the line that extrapolates them."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "data_sources.md"


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("prepare_memory")


@pytest.fixture(scope="module")
def runs():
    return json.loads((ROOT / "benchmarks" / "results" / "prepare_memory.json").read_text())["runs"]


def test_figures_of_the_page_match_the_results(script, runs):
    page = PAGE.read_text()
    assert script.with_figures(page, runs) == page
    cpu = {(run["rows"], run["kind"], run["engine"]): run["cpu_s"] for run in runs}
    for kind in ("integer", "text", "sorted"):
        assert 1.7 < cpu[10**7, kind, "duckdb"] / cpu[10**7, kind, "memory"] < 2.8


def test_peaks_are_below_their_limits(runs):
    limits = {"1GiB": 1024, "2GiB": 2048}
    peaks = [(run["peak_mib"], limits[run["memory_limit"]]) for run in runs if run["memory_limit"]]
    assert len(peaks) > 3
    assert all(peak < limit for peak, limit in peaks)


def test_extrapolation_is_by_all_logs_and_by_the_largest_two(script):
    def run(rows, cpu_s, disk_mib, engine="duckdb", kind="integer", limit="2GiB"):
        return {
            "rows": rows * 10**6,
            "cpu_s": cpu_s,
            "disk_mib": disk_mib,
            "engine": engine,
            "kind": kind,
            "memory_limit": limit,
        }

    runs = [run(30, 50, 7), run(10, 1, 1), run(20, 30, 6)]
    others = [
        run(90, 1, 1, engine="memory", limit=None),
        run(90, 1, 1, kind="text"),
        run(90, 1, 1, limit="1GiB"),
        run(1, 90, 90),
    ]
    logs = script.logs_of_extrapolation([*others, *runs])
    assert [log["rows"] for log in logs] == [10**7, 2 * 10**7, 3 * 10**7]
    cpu, disk = script.extrapolated(logs, 100 * 10**6).values()
    # Through (10, 1), (20, 30), (30, 50): slope 2.45, mean (20, 27).
    assert cpu == pytest.approx((27 + 80 * 2.45, 190))
    assert disk == pytest.approx((14 / 3 + 80 * 0.3, 14))


def test_least_limit_is_that_of_the_engine(script):
    memory = script.least_memory(11_000_000)
    assert memory["ids"] == pytest.approx(11_000_000 * 56 / 2**20)
    assert memory["limit"] == pytest.approx(768 + memory["ids"] + 128)
