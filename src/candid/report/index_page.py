"""The page of a comparison of indexes: the table, and recall against queries a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from candid.index import Assessment
from candid.report.figures import Curve, log_y
from candid.report.html import Block, Figure, Heading, Paragraph, Table, write_report

COLUMNS = (
    "index",
    "recall",
    "queries/s",
    "ms alone",
    "index MB",
    "build s",
    "settings",
)


def rows_of(found: Sequence[Assessment]) -> list[list[str]]:
    """The table of ``COLUMNS`` as text, fastest first among those that reach their target."""
    return [
        [
            entry.name,
            f"{entry.measured.recall:.4f}{'' if entry.reaches else ' (below)'}",
            f"{entry.measured.queries_per_second:,.0f}",
            "–" if entry.measured.milliseconds is None else f"{entry.measured.milliseconds:.2f}",
            f"{entry.index_bytes / 1e6:,.1f}",
            f"{entry.build_seconds:,.1f}",
            ", ".join(f"{name} {value:g}" for name, value in entry.settings.items()) or "–",
        ]
        for entry in ranked(found)
    ]


def ranked(found: Sequence[Assessment]) -> list[Assessment]:
    """Fastest first among those that reach their target, then the others by recall."""
    return sorted(
        found,
        key=lambda entry: (
            not entry.reaches,
            -entry.measured.queries_per_second if entry.reaches else -entry.measured.recall,
        ),
    )


def summary_of(found: Sequence[Assessment]) -> str:
    """Which index to take, in a sentence."""
    best = ranked(found)[0]
    if not best.reaches:
        return (
            f"No index reaches recall@{best.k} {best.target_recall:g}; {best.name} comes nearest "
            f"with {best.measured.recall:.3f}."
        )
    return (
        f"{best.name} answers {best.measured.queries_per_second:,.0f} queries a second on one core "
        f"at recall@{best.k} {best.measured.recall:.3f}, the most of all that reach "
        f"{best.target_recall:g}."
    )


def write_index_page(path: Path, found: Sequence[Assessment], notes: Sequence[str] = ()) -> None:
    """Write the HTML page, atomically.

    Raises:
        ArtifactError: the page cannot be written.
        ConfigError: matplotlib is not installed.
    """
    first = found[0]
    num_items, dim = first.index.num_items, first.vector_bytes // 4 // first.index.num_items
    curves = {entry.name: curve_of(entry) for entry in ranked(found)}
    blocks: list[Block] = [
        Paragraph(
            f"{num_items:,} items of width {dim}. Recall is against exact search, over "
            f"{first.num_queries:,} users; an item that scores no less than the last of the exact "
            f"top {first.k} counts. Settings were chosen on as many other users for the least work "
            f"that reaches {first.target_recall:g}. Speed is of one core: queries asked 32 at a "
            "time, and one alone; memory is beside the item vectors, which take "
            f"{first.vector_bytes / 1e6:,.1f} MB and are mapped from disk."
            + "".join(f" Left out: {note}." for note in notes)
        ),
        Table(COLUMNS, rows_of(found), "fastest first among those that reach the target"),
        Heading("Recall against speed"),
        Figure(
            log_y(
                curves,
                x_label=f"recall@{first.k}",
                y_label="queries a second, one core",
                reference=("target", first.target_recall),
            ),
            "Each point is one setting of the search; of each index only those that no other of "
            "its settings beats at both. Right and high is good.",
            summary_of(found),
        ),
    ]
    write_report(path, "candid index", summary_of(found), blocks)


def curve_of(entry: Assessment) -> Curve:
    """Recall and speed of the settings that no other setting beats at both, by recall."""
    points = {(m.recall, m.queries_per_second) for _, m in entry.tried}
    points.add((entry.measured.recall, entry.measured.queries_per_second))
    kept: list[tuple[float, float]] = []
    for recall, speed in sorted(points, reverse=True):
        if not kept or speed > kept[-1][1]:
            kept.append((recall, speed))
    kept.reverse()
    return Curve([recall for recall, _ in kept], [speed for _, speed in kept])
