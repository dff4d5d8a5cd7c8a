"""The page of a comparison of indexes."""

import pytest
import torch

from candid.index import Assessment, ExactIndex, FaissIndex, Measured
from candid.report.index_page import curve_of, ranked, rows_of, summary_of, write_index_page


def entry(name, recall, speed, tried=(), target=0.9):
    config = FaissIndex.Config(num_probes=7)
    return Assessment(
        name=name,
        config=config,
        index=ExactIndex(torch.ones(10, 4)),
        measured=Measured(recall, 0.01, speed, 1.25),
        tried=[({"num_probes": n}, Measured(r, 0.0, s)) for n, (r, s) in enumerate(tried, 1)],
        k=5,
        target_recall=target,
        num_queries=30,
        build_seconds=2.0,
        index_bytes=3_000_000,
        vector_bytes=160,
    )


SLOW, FAST, POOR = (
    entry("slow", 1.0, 100.0),
    entry("fast", 0.92, 5000.0, [(0.5, 9000.0), (0.93, 4800.0)]),
    entry("<poor>", 0.4, 90000.0),
)


def test_the_fastest_that_reaches_comes_first_and_what_does_not_last():
    assert [e.name for e in ranked([POOR, SLOW, FAST])] == ["fast", "slow", "<poor>"]
    assert summary_of([POOR, SLOW, FAST]).startswith("fast answers 5,000 queries a second")
    assert "No index reaches recall@5 0.9; <poor> comes nearest" in summary_of([POOR])


def test_the_table_says_what_was_measured():
    assert rows_of([FAST, POOR]) == [
        ["fast", "0.9200", "5,000", "1.25", "3.0", "2.0", "num_probes 7"],
        ["<poor>", "0.4000 (below)", "90,000", "1.25", "3.0", "2.0", "–"],
    ]


def test_a_curve_holds_what_nothing_beats_at_both():
    beaten = entry("", 0.9, 50.0, [(0.5, 80.0), (0.8, 100.0), (0.95, 20.0), (0.7, 100.0)])
    curve = curve_of(beaten)
    assert (list(curve.x), list(curve.y)) == ([0.8, 0.9, 0.95], [100.0, 50.0, 20.0])


@pytest.mark.parametrize("found", [[SLOW], [POOR, SLOW, FAST]])
def test_the_page_has_table_figure_and_notes(tmp_path, found):
    write_index_page(tmp_path / "page.html", found, ["this one: not installed"])
    page = (tmp_path / "page.html").read_text()
    assert "10 items of width 4" in page
    assert "Left out: this one: not installed." in page
    assert page.count("<svg") == 1
    assert page.count("<tr") == 1 + len(found)
    assert "<poor>" not in page
