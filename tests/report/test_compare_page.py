"""The page of a comparison of runs."""

import pytest

from candid.evaluation import (
    Comparison,
    Difference,
    Estimate,
    EvaluationReport,
    ReportComparison,
    SliceDifferences,
)
from candid.report.compare_page import (
    explain,
    slice_columns,
    slice_rows,
    summarize,
    table_rows,
    write_compare_page,
)

SETTINGS = {"role": "test", "confidence": 0.95}


def report(value, nll):
    metrics = {"ndcg@10": Estimate(value, value - 0.01, value + 0.01), "nll": Estimate(nll)}
    return EvaluationReport(metrics, "ndcg@10", {}, {"users": 50}, SETTINGS, per_user=None)


def difference(metric, value, p):
    one = Comparison(metric, value, value - 0.01, value + 0.02, p / 2, 1234)
    return Difference(one, p)


def comparison_of(names, differences):
    values = dict(zip(names, (0.1, 0.15, 0.09), strict=False))
    reports = {name: report(value, 7.5) for name, value in values.items()}
    others = names[1:]
    by_metric = {
        metric: {
            name: difference(metric, *one) for name, one in zip(others, differences, strict=True)
        }
        for metric in ("ndcg@10", "nll")
    }
    groups = (
        SliceDifferences(
            "untrained",
            3,
            {name: reports[name].metrics["ndcg@10"] for name in names},
            {name: by_metric["ndcg@10"][name].comparison for name in others},
        ),
        SliceDifferences("1/2 (count 1 to 5)", 0, dict.fromkeys(names), dict.fromkeys(others)),
    )
    slices = {"target_popularity": groups}
    return ReportComparison(reports, ("ndcg@10", "nll"), by_metric, slices)


THREE = comparison_of(("a", "<b>", "c"), [(0.05, 0.01), (-0.01, 0.2)])


def test_table_rows_hold_values_and_differences_to_the_first_run():
    assert table_rows(THREE) == [
        ["ndcg@10", "a", "0.1000 ±0.0100", "", "", "", ""],
        ["ndcg@10", "<b>", "0.1500 ±0.0100", "+0.0500", "+0.0400 to +0.0700", "0.010", "1,234"],
        ["ndcg@10", "c", "0.0900 ±0.0100", "−0.0100", "−0.0200 to +0.0100", "0.200", "1,234"],
        ["nll", "a", "7.5000", "", "", "", ""],
        ["nll", "<b>", "7.5000", "+0.0500", "+0.0400 to +0.0700", "0.010", "1,234"],
        ["nll", "c", "7.5000", "−0.0100", "−0.0200 to +0.0100", "0.200", "1,234"],
    ]


def test_slice_rows_hold_the_first_run_and_the_differences():
    assert slice_columns(THREE) == ["slice", "users", "a", "<b>: difference", "c: difference"]
    first, second = slice_rows(THREE.slices["target_popularity"])
    assert first == [
        "untrained",
        "3",
        "0.1000 ±0.0100",
        "+0.0500 (+0.0400 to +0.0700)",
        "−0.0100 (−0.0200 to +0.0100)",
    ]
    assert second == ["1/2 (count 1 to 5)", "0", "–", "–", "–"]


def test_summary_states_what_is_clear():
    assert summarize(THREE) == (
        "<b> is above a in ndcg@10: +0.0500 (+0.0400 to +0.0700), p = 0.010. "
        "c is not clearly different from a in ndcg@10: −0.0100 (−0.0200 to +0.0100), p = 0.200."
    )
    worse = comparison_of(("a", "b"), [(-0.05, 0.001)])
    assert summarize(worse).startswith("b is below a in ndcg@10: −0.0500")


def test_explanation_names_the_adjustment_for_several_runs():
    assert "on the test targets" in explain(THREE)
    assert "with the settings of a" in explain(THREE)
    assert "95% intervals" in explain(THREE)
    assert "Holm" in explain(THREE)
    assert "Holm" not in explain(comparison_of(("a", "b"), [(0.0, 1.0)]))


@pytest.mark.parametrize("names", [("a", "b"), ("a", "<b>", "c")])
def test_page_has_tables_figures_settings_and_notes(tmp_path, names):
    comparison = comparison_of(names, [(0.05, 0.01), (-0.01, 0.2)][: len(names) - 1])
    settings = {"loss.type": dict.fromkeys(names, '"bce"')}
    write_compare_page(tmp_path / "page.html", comparison, settings, ["a was <trained> elsewhere"])
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    assert page.count("<tr") == (1 + 2 * len(names)) + (1 + 1) + (1 + 2)
    assert "A was &lt;trained&gt; elsewhere." in page
    assert "<b>" not in page
    assert "Settings that differ" in page
    assert "By target popularity" in page
    write_compare_page(tmp_path / "page.html", comparison, {})
    assert "Settings that differ" not in (tmp_path / "page.html").read_text()
