"""The coverage of intervals that the guide states, against the results."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_guide_states_the_measured_coverage():
    results = json.loads((ROOT / "benchmarks" / "results" / "interval_coverage.json").read_text())
    assert results["samples"] == 2000

    def ends(prefix, kind):
        found = [
            100 * one["intervals"]["candid"]["coverage"]
            for one in results["results"]
            if one["users"] == 100 and one["kind"] == kind and one["case"].startswith(prefix)
        ]
        return round(min(found)), round(max(found))

    guide = " ".join((ROOT / "docs" / "guides" / "evaluate.md").read_text().split())
    low, high = ends("", "shares")
    assert f"recall@10 and NDCG@10 with 2 to 90 % hits {low} to {high} %" in guide
    assert f"`nll` {ends('nll', 'others')[0]} %" in guide
    assert f"paired differences {ends('', 'pairs')[0]} % and more" in guide
    low, high = ends("popularity", "others")
    assert f"skewed popularity {low} to {high} %" in guide


def test_intervals_cover_more_than_the_bootstrap_with_few_hits():
    results = json.loads((ROOT / "benchmarks" / "results" / "interval_coverage.json").read_text())
    few = [
        one["intervals"]
        for one in results["results"]
        if one["users"] == 100 and "P = 0.02" in one["case"]
    ]
    assert len(few) == 2
    for one in few:
        assert one["percentile bootstrap"]["coverage"] < 0.9 < 0.94 < one["candid"]["coverage"]
