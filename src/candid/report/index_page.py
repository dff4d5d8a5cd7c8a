"""The page of a comparison of indexes: the table, and recall against queries per second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from candid.index import IndexBenchmark
from candid.report.figures import Curve, log_y
from candid.report.html import Block, Figure, Heading, Paragraph, Table, write_report

COLUMNS = (
    "index",
    "recall",
    "queries/s",
    "ms, single query",
    "index MB",
    "build s",
    "settings",
)


def table_rows(benchmarks: Sequence[IndexBenchmark]) -> list[list[str]]:
    """Return the cells of ``COLUMNS``, in the order of ``rank_benchmarks``."""
    return [
        [
            entry.name,
            f"{entry.measurement.recall:.4f}{'' if entry.reaches_target else ' (below)'}",
            f"{entry.measurement.queries_per_second:,.0f}",
            _milliseconds(entry.measurement.milliseconds),
            f"{entry.index_bytes / 1e6:,.1f}",
            f"{entry.build_seconds:,.1f}",
            ", ".join(f"{name} {value:g}" for name, value in entry.settings.items()) or "–",
        ]
        for entry in rank_benchmarks(benchmarks)
    ]


def rank_benchmarks(benchmarks: Sequence[IndexBenchmark]) -> list[IndexBenchmark]:
    """Return the indexes that reach their target, fastest first, then the others by recall."""
    return sorted(
        benchmarks,
        key=lambda entry: (
            not entry.reaches_target,
            -entry.measurement.queries_per_second
            if entry.reaches_target
            else -entry.measurement.recall,
        ),
    )


def summarize(benchmarks: Sequence[IndexBenchmark]) -> str:
    """Return a sentence with the fastest index that reaches its target."""
    best = rank_benchmarks(benchmarks)[0]
    recall = f"recall@{best.k} {best.measurement.recall:.3f}"
    if not best.reaches_target:
        return (
            f"No index reaches recall@{best.k} {best.target_recall:g}; the nearest is {best.name} "
            f"with {best.measurement.recall:.3f}."
        )
    return (
        f"{best.name} is the fastest index that reaches recall@{best.k} {best.target_recall:g}: "
        f"{best.measurement.queries_per_second:,.0f} queries per second on one core at {recall}."
    )


def write_index_page(
    path: Path | str, benchmarks: Sequence[IndexBenchmark], notes: Sequence[str] = ()
) -> None:
    """Write the HTML page, atomically.

    Args:
        path: of the HTML file.
        benchmarks: at least one, all over the same items and queries.
        notes: a sentence for each index that could not be built.

    Raises:
        ArtifactError: the page cannot be written.
    """
    first = benchmarks[0]
    num_items, dim = first.index.num_items, first.vector_bytes // 4 // first.index.num_items
    curves = {entry.name: speed_curve(entry) for entry in rank_benchmarks(benchmarks)}
    blocks: list[Block] = [
        Paragraph(
            f"{num_items:,} items of width {dim}. Recall is relative to exact search, over "
            f"{first.num_queries:,} users; an item that scores no less than the last of the exact "
            f"top {first.k} counts as found. Settings were tuned on as many other users to the "
            f"fastest that reach {first.target_recall:g}. Speed is that of one core, with 32 "
            "queries per search, and with a single one; memory is in addition to the item "
            f"vectors, which take {first.vector_bytes / 1e6:,.1f} MB and are mapped from disk."
            + "".join(f" Left out: {note}." for note in notes)
        ),
        Table(
            COLUMNS,
            table_rows(benchmarks),
            "Fastest first among those that reach the target.",
            text_columns=[len(COLUMNS) - 1],
        ),
        Heading("Recall and speed"),
        Figure(
            log_y(
                curves,
                x_label=f"recall@{first.k}",
                y_label="queries per second, one core",
                reference=("target", first.target_recall),
            ),
            "Each point is one setting of the search; only settings that no other one of the same "
            "index beats in both recall and speed are shown. Right and high is better.",
            summarize(benchmarks),
        ),
    ]
    write_report(path, "candid index", summarize(benchmarks), blocks)


def speed_curve(entry: IndexBenchmark) -> Curve:
    """Return recall and speed of the settings that no other one beats in both, by recall."""
    points = {(m.recall, m.queries_per_second) for _, m in entry.trials}
    points.add((entry.measurement.recall, entry.measurement.queries_per_second))
    best: list[tuple[float, float]] = []
    for recall, speed in sorted(points, reverse=True):
        if not best or speed > best[-1][1]:
            best.append((recall, speed))
    best.reverse()
    return Curve([recall for recall, _ in best], [speed for _, speed in best])


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
