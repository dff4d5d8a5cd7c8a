"""The pages on indexes against the results and the registry."""

import json
import re
from pathlib import Path

import pytest

from candid.index import BENCHMARKED_INDEXES, INDEXES

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "index_compare.json"


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("index_compare")


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())["results"]


def test_tables_match_results(script, results):
    docs = (ROOT / "docs" / "benchmarks" / "index_search.md").read_text()
    assert script.with_tables(docs, results) == docs


def test_comparison_with_scann_matches_results(benchmark_script):
    script = benchmark_script("index_scann")
    results = json.loads(script.RESULTS.read_text())["results"]
    page = script.DOCS.read_text()
    assert script.with_table(page, results) == page
    assert [one["kind"] for one in results] == list(script.KINDS)
    ratios = {one["kind"]: one["ratio"] for one in results}
    assert 1.25 < ratios["clustered"] < 1.4 < 4 < ratios["trained"] < ratios["hard"] < 4.3
    for one in results:
        ours, scann = one["ours"], one["scann"]
        assert ours["name"] == "int8"
        assert one["ratio_range"][0] > 1
        assert one["recall"][0] > one["recall"][1] > script.TARGET
        assert 0.05 < ours["build_cpu_seconds"] / scann["build_cpu_seconds"] < 0.27
        assert 1.04 < ours["index_bytes"] / scann["index_bytes"] < 1.065


def test_results_contain_both_kinds_of_vectors(script, results):
    measured = {(line["items"], line["kind"], line["name"]) for line in results}
    smallest = min(items for items, _, _ in measured)
    for size in {items for items, _, _ in measured}:
        by_kind = [{n for s, k, n in measured if (s, k) == (size, kind)} for kind in script.KINDS]
        assert by_kind[0] == by_kind[1], "a size is half measured"
        assert size > smallest or by_kind[0] == set(BENCHMARKED_INDEXES)


def test_table_of_kernelized_hashing_matches_results(benchmark_script):
    pytest.importorskip("sklearn")
    script = benchmark_script("kernel_lsh")
    docs = (ROOT / "docs" / "benchmarks" / "index_search.md").read_text()
    results = json.loads((ROOT / "benchmarks" / "results" / "kernel_lsh.json").read_text())
    assert script.with_table(docs, results["results"]) == docs


def test_guide_describes_only_existing_indexes():
    docs = (ROOT / "docs" / "guides" / "index_search.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)`", docs, re.MULTILINE))
    assert {"exact", "faiss"} < rows <= set(INDEXES)


def test_script_resumes_and_writes_its_tables(script, tmp_path, capsys):
    results = tmp_path / "results.json"
    script.run(500, ["hard"], ["exact"], results)
    script.run(500, ["hard", "clustered"], ["exact", "faiss flat"], results)
    found = json.loads(results.read_text())["results"]
    assert [(r["kind"], r["name"]) for r in found] == [
        ("hard", "exact"),
        ("hard", "faiss flat"),
        ("clustered", "exact"),
        ("clustered", "faiss flat"),
    ]
    assert all(line["recall"] == 1 for line in found)
    page = script.with_tables("a\n<!-- index_compare -->\nold\n<!-- /index_compare -->\nb", found)
    assert "old" not in page
    assert page.count("| exact | 1.000 |") == 2
    assert script.with_tables(page, found) == page
