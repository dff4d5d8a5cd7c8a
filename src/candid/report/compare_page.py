"""The page of a comparison of runs: differences to the first run, in total and by slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from candid.evaluation import Comparison, Estimate, ReportComparison, SliceDifferences
from candid.report.figures import interval_bars
from candid.report.html import Block, Figure, Heading, Paragraph, Table, write_report

COLUMNS = ("metric", "run", "value", "difference", "interval", "p", "users")
SIGNIFICANT = 0.05


def table_rows(comparison: ReportComparison) -> list[list[str]]:
    """Return the cells of ``COLUMNS``: for each metric the first run, then the others."""
    reference, rows = comparison.names[0], []
    for metric, differences in comparison.differences.items():
        for name in comparison.names:
            value = _with_half_width(comparison.reports[name].metrics[metric])
            if name == reference:
                rows.append([metric, name, value, "", "", "", ""])
                continue
            one = differences[name]
            rows.append(
                [
                    metric,
                    name,
                    value,
                    _signed(one.comparison.difference),
                    _interval(one.comparison),
                    f"{one.adjusted_p_value:.3f}",
                    f"{one.comparison.users:,}",
                ]
            )
    return rows


def slice_columns(comparison: ReportComparison) -> list[str]:
    """Return the columns of ``slice_rows``."""
    reference, *others = comparison.names
    return ["slice", "users", reference, *(f"{name}: difference" for name in others)]


def slice_rows(groups: Sequence[SliceDifferences]) -> list[list[str]]:
    """Return the value of the first run in each slice, and the differences of the others."""
    rows = []
    for group in groups:
        reference = next(iter(group.values.values()))
        row = [group.label, f"{group.users:,}", _with_half_width(reference)]
        for one in group.differences.values():
            row.append("–" if one is None else f"{_signed(one.difference)} ({_interval(one)})")
        rows.append(row)
    return rows


def summarize(comparison: ReportComparison) -> str:
    """Return the result in the main metric, a sentence for each run beside the first."""
    metric, reference = comparison.metrics[0], comparison.names[0]
    sentences = []
    for name, one in comparison.differences[metric].items():
        difference, p = one.comparison.difference, one.adjusted_p_value
        is_clear = p < SIGNIFICANT and difference != 0
        relation = ("above" if difference > 0 else "below") if is_clear else "not clearly different"
        preposition = "" if is_clear else " from"
        sentences.append(
            f"{name} is {relation}{preposition} {reference} in {metric}: {_signed(difference)} "
            f"({_interval(one.comparison)}), p = {p:.3f}."
        )
    return " ".join(sentences)


def explain(comparison: ReportComparison) -> str:
    """Return how the numbers were computed."""
    settings = next(iter(comparison.reports.values())).settings
    adjusted = ""
    if len(comparison.names) > 2:
        adjusted = (
            " p-values are adjusted after Holm over the runs, for each metric on its own; "
            "intervals are those of single comparisons."
        )
    return (
        f"All runs are measured on the {settings['role']} targets of one dataset with the settings "
        f"of {comparison.names[0]}. Differences are to this run, over the users of both, with "
        f"{settings['confidence']:.0%} intervals and the p-value of a two-sided sign-flip "
        f"test.{adjusted} Slices have no p-values. Lower is better for nll."
    )


def write_compare_page(
    path: Path | str,
    comparison: ReportComparison,
    settings: Mapping[str, Mapping[str, str]],
    notes: Sequence[str] = (),
) -> None:
    """Write the HTML page, atomically.

    Args:
        path: of the HTML file.
        comparison: of at least two runs.
        settings: recipe keys that differ: key -> name of the run -> value.
        notes: sentences about the runs.

    Raises:
        ArtifactError: the page cannot be written.
    """
    metric = comparison.metrics[0]
    shares = {
        one: {name: report.metrics[one] for name, report in comparison.reports.items()}
        for one in comparison.metrics
        if "@" in one
    }
    blocks: list[Block] = [
        Paragraph(" ".join([explain(comparison), *(f"{_sentence(note)}." for note in notes)])),
        Table(
            COLUMNS,
            table_rows(comparison),
            "Value ± half of its interval, and the difference to the first run.",
            text_columns=[1],
        ),
        Figure(
            interval_bars(shares, y_label="value"),
            "Each run with its interval. Overlapping intervals do not show that two runs are "
            "equal: the table compares them user by user.",
            summarize(comparison),
        ),
    ]
    if settings:
        blocks += [
            Heading("Settings that differ"),
            Table(
                ["key", *comparison.names],
                [[key, *values.values()] for key, values in settings.items()],
                text_columns=range(1, len(comparison.names) + 1),
            ),
        ]
    for slicing, groups in comparison.slices.items():
        title = slicing.replace("_", " ")
        undefined = Estimate(None)
        by_slice = {
            group.label.split(" (")[0]: {
                name: value or undefined for name, value in group.values.items()
            }
            for group in groups
        }
        blocks += [
            Heading(f"By {title}"),
            Table(
                slice_columns(comparison),
                slice_rows(groups),
                f"{metric} of the first run, and differences to it.",
            ),
            Figure(
                interval_bars(by_slice, x_label=title, y_label=metric),
                f"{metric} of each run by {title}.",
                f"Bars of {metric} by {title}, one for each run.",
            ),
        ]
    write_report(path, "candid compare", summarize(comparison), blocks)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _with_half_width(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return _number(estimate.value)
    return f"{_number(estimate.value)} ±{_number((estimate.high - estimate.low) / 2)}"


def _interval(comparison: Comparison) -> str:
    if comparison.low is None or comparison.high is None:
        return "–"
    return f"{_signed(comparison.low)} to {_signed(comparison.high)}"


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else '−'}{_number(abs(value))}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
