"""The page of a comparison of indexes."""

import pytest
import torch

from candid.index import ExactIndex, FaissIndex, IndexBenchmark, Measurement
from candid.report.index_page import (
    rank_benchmarks,
    speed_curve,
    summarize,
    table_rows,
    write_index_page,
)


def entry(name, recall, speed, trials=(), target=0.9):
    config = FaissIndex.Config(num_probes=7)
    return IndexBenchmark(
        name=name,
        config=config,
        index=ExactIndex(torch.ones(10, 4)),
        measurement=Measurement(recall, 0.01, speed, 1.25),
        trials=[({"num_probes": n}, Measurement(r, 0.0, s)) for n, (r, s) in enumerate(trials, 1)],
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


def test_fastest_index_that_reaches_the_target_comes_first():
    assert [e.name for e in rank_benchmarks([POOR, SLOW, FAST])] == ["fast", "slow", "<poor>"]
    assert summarize([POOR, SLOW, FAST]).startswith(
        "fast is the fastest index that reaches recall@5 0.9: 5,000 queries"
    )
    assert "No index reaches recall@5 0.9; the nearest is <poor>" in summarize([POOR])


def test_table_rows_hold_the_measurements():
    assert table_rows([FAST, POOR]) == [
        ["fast", "0.9200", "5,000", "1.25", "3.0", "2.0", "num_probes 7"],
        ["<poor>", "0.4000 (below)", "90,000", "1.25", "3.0", "2.0", "–"],
    ]


def test_speed_curve_holds_the_pareto_front():
    beaten = entry("", 0.9, 50.0, [(0.5, 80.0), (0.8, 100.0), (0.95, 20.0), (0.7, 100.0)])
    curve = speed_curve(beaten)
    assert (list(curve.x), list(curve.y)) == ([0.8, 0.9, 0.95], [100.0, 50.0, 20.0])


@pytest.mark.parametrize("benchmarks", [[SLOW], [POOR, SLOW, FAST]])
def test_page_has_table_figure_and_notes(tmp_path, benchmarks):
    write_index_page(tmp_path / "page.html", benchmarks, ["this one: not installed"])
    page = (tmp_path / "page.html").read_text()
    assert "10 items of width 4" in page
    assert "Left out: this one: not installed." in page
    assert page.count("<svg") == 1
    assert page.count("<tr") == 1 + len(benchmarks)
    assert "<poor>" not in page
