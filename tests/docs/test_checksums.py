"""The table of the page about verification is that of its results."""

import json

import pytest

pytestmark = pytest.mark.docs


def test_cost_of_checksums_matches_results(benchmark_script):
    script = benchmark_script("checksums")
    docs = script.DOCS.read_text()
    document = json.loads(script.RESULTS.read_text())
    found = document["results"]
    assert script.with_table(docs, found) == docs
    assert document["command"] in docs
    assert 1 <= found["gigabytes_per_second"]["best"] <= 2
