"""The page on cold start against its results."""

import json


def test_tables_match_results(benchmark_script):
    script = benchmark_script("cold_start")
    results = json.loads(script.RESULT.read_text())["results"]
    page = script.PAGE.read_text()
    assert script.with_tables(page, results) == page
    for models in results.values():
        assert all(len(runs) == 3 for runs in models["runs"].values())
