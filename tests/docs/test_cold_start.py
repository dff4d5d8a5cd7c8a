"""The page on cold start against its results."""

import importlib
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tables_match_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = importlib.import_module("cold_start")
    results = json.loads(script.RESULT.read_text())["results"]
    page = script.PAGE.read_text()
    begin, end = (page.index(mark) for mark in script.MARKS)
    assert page[begin + len(script.MARKS[0]) : end] == f"\n{script.table(results)}"
    for models in results.values():
        assert all(len(runs) == 2 for runs in models["runs"].values())
