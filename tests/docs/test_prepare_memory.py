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


def test_extrapolation_is_the_line_through_the_largest_two_logs_of_duckdb(script):
    def run(rows, cpu_s, disk_mib, engine="duckdb", kind="integer"):
        return {
            "rows": rows,
            "cpu_s": cpu_s,
            "disk_mib": disk_mib,
            "engine": engine,
            "kind": kind,
        }

    runs = [run(30, 50, 7), run(10, 1, 1), run(20, 30, 6)]
    others = [run(90, 1, 1, engine="memory"), run(90, 1, 1, kind="text")]
    assert script.extrapolated([*runs, *others], 100) == {"cpu_s": 190, "disk_mib": 14}
