"""The comparison of corrections against its results."""

import json

import pytest


@pytest.fixture
def script(benchmark_script):
    return benchmark_script("demo")


def test_table_matches_results(script):
    runs = json.loads(script.RESULT.read_text())["runs"]
    page = script.PAGE.read_text()
    assert script.with_table(page, runs) == page


def test_text_matches_results(script):
    runs = json.loads(script.RESULT.read_text())["runs"]
    assert len(runs) >= 2
    for run in runs:
        over = {
            (row["regime"], row["n"], row["correction"], row["accidental_hits"]): row
            for row in run["rows"]
            if row["n"] is not None
        }

        def measured(*key, over=over):
            return over[key]["nll_over_full"]

        assert all(
            measured(regime, n, "none", "mask") > 0.6
            for regime in ("unsure", "confident")
            for n in (16, 256)
        )
        others = [("logq", "keep"), ("logq", "mask"), ("refined", "mask")]
        for n in (16, 256):
            values = [measured("unsure", n, *one) for one in others]
            assert max(values) - min(values) < 0.1
        few = measured("confident", 16, "refined", "mask")
        assert few > measured("confident", 16, "logq", "keep") + 0.1
        assert abs(measured("confident", 256, "refined", "mask")) < 0.05
        assert abs(measured("confident", 256, "logq", "keep")) < 0.05
        masked = [measured("confident", n, "logq", "mask") for n in (16, 256)]
        assert masked[1] > masked[0]
        assert 17 < run["regimes"]["confident"]["chi2"]["median"] < 20
