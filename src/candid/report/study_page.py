"""The page of a study: verdicts on the claims, figures, and every arm at every grid point."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from candid.report.figures import Curve, Panel, calibration, line_panels, log_log
from candid.report.html import Block, Figure, Heading, Paragraph, Table, write_report
from candid.study import ARMS, ArmRow, GridPoint, StudyCells, StudySummary
from candid.study.arm_curves import ArmCurves
from candid.study.drift_cells import FULL, DriftCell, users_text
from candid.study.study_cells import Metric
from candid.study.tables import AT_EDGE, COLUMNS, EDGE, REFERENCE

Curves = dict[str, Curve]
ORDER = tuple(ARMS)
"""An arm has the same style in all figures."""
LINEAR_BELOW = {"ndcg": 0.005, "nll": 0.02}
"""Ends of the linear part of the axes of differences."""


def write_study_page(path: Path | str, name: str, study: StudyCells, summary: StudySummary) -> None:
    """Write the HTML page, atomically.

    Args:
        path: of the HTML file.
        name: of the study.
        study: its main cells.
        summary: its tables and claims.

    Raises:
        ArtifactError: the page cannot be written.
    """
    blocks: list[Block] = [
        Paragraph(
            "Differences are paired over the same users and seeds: both vary at random, and the "
            "95 % intervals are those of Student's t over both. p-values are two-sided and "
            "adjusted after Holm over all differences of a metric with the same dataset, split "
            f"and tower. The reference is {REFERENCE}. Each arm has the learning rate that the "
            "pilot chose on validation. A lower NLL is better."
        ),
        Heading("Claims"),
        Table(
            ("claim", "prediction", "verdict", "reason"),
            [
                [one["name"], one["prediction"], one["verdict"], one["reason"]]
                for one in summary.claims
            ],
            "Predictions and tests were fixed before the first study was run. What changed in a "
            "test since then is stated below.",
            text_columns=(1, 2, 3),
        ),
        *_drift_figures(summary),
    ]
    for block in study.blocks:
        blocks += _block_of_data(study, summary, block)
    for claim in summary.claims:
        rows = [[one["label"], one["verdict"], one["detail"]] for one in claim["findings"]]
        if rows or claim["change"]:
            title = f"{claim['name']} by grid point" if rows else claim["name"]
            blocks += [Heading(title), Paragraph(_claim_text(claim))]
        if rows:
            blocks.append(Table(("grid point", "verdict", "values"), rows, text_columns=(1, 2)))
    write_report(path, f"candid study: {name}", _summary(summary), blocks)


def _claim_text(claim: Mapping[str, Any]) -> str:
    change = f" Changed after the first run: {claim['change']}" if claim["change"] else ""
    return f"{claim['prediction']} Needs: {claim['needs']} Test: {claim['test']}{change}"


def _summary(summary: StudySummary) -> str:
    by_verdict: dict[str, list[str]] = {}
    for one in summary.claims:
        by_verdict.setdefault(one["verdict"], []).append(one["name"])
    parts = [
        f"{verdict}: {', '.join(by_verdict[verdict])}"
        for verdict in ("supported", "against", "not decided")
        if verdict in by_verdict
    ]
    cells = sum(row.seeds for row in summary.rows)
    return f"Claims {'; '.join(parts)}." if cells else "No main cell has finished yet."


def _drift_figures(summary: StudySummary) -> list[Block]:
    cells = summary.drifts
    if not cells:
        return []
    n = _sizes(summary.rows)

    def curves(of: Callable[[int], tuple[float, float] | None]) -> dict[str, Curve]:
        points: dict[str, list[tuple[float, float]]] = {}
        for index, cell in enumerate(cells):
            if (point := of(index)) is not None and min(point) > 0:
                points.setdefault(cell.arm, []).append(point)
        return {arm: Curve(*zip(*sorted(found), strict=True)) for arm, found in points.items()}

    def against_chi2(index: int) -> tuple[float, float] | None:
        cell = cells[index]
        if not cell.chi2 or cell.point not in n:
            return None
        return n[cell.point] / cell.chi2, cell.excess

    blocks: list[Block] = [Heading("Drift")]
    hidden = sum(one.drift <= 0 or one.excess <= 0 for one in cells)
    imprecise = sum(not one.drift_is_above_its_error for one in cells)
    reason = "their drift or their excess is not above 0"
    sizes = users_text(cells)
    if by_drift := curves(lambda index: (cells[index].drift, cells[index].excess)):
        figure = log_log(
            by_drift,
            x_label="predicted drift, nats",
            y_label="NLL over full softmax, nats",
            is_scatter=True,
            diagonal="measured as predicted",
            order=ORDER,
        )
        caption = (
            "Excess NLL of the trained models against the drift predicted at them, a point for "
            f"each arm and grid point. {hidden} of {len(cells)} points are not shown: {reason}. "
            f"{imprecise} drifts are below twice their error. {sizes}"
        )
        blocks.append(Figure(figure, caption, "Points of measured excess NLL by predicted drift."))
    else:
        blocks.append(Paragraph(f"None of {len(cells)} points can be shown: {reason}."))
    if by_ratio := curves(against_chi2):
        figure = log_log(
            by_ratio,
            x_label="n / chi2",
            y_label="NLL over full softmax, nats",
            is_scatter=True,
            order=ORDER,
        )
        caption = (
            "Excess NLL against n / chi2 for all datasets, with the median chi2 of the users. "
            "Points of an arm that lie on one curve depend on n and chi2 by their ratio alone. "
            f"{_without_point(cells, against_chi2)} {sizes}"
        )
        blocks.append(Figure(figure, caption, "Points of measured excess NLL by n over chi2."))
    return blocks


def _without_point(
    cells: Sequence[DriftCell], of: Callable[[int], tuple[float, float] | None]
) -> str:
    """Return how many cells have no point on the logarithmic axes, and why."""
    points = [of(index) for index in range(len(cells))]
    hidden = sum(point is None or min(point) <= 0 for point in points)
    return (
        f"{hidden} of {len(cells)} points are not shown: their excess is not above 0, or their "
        "chi2 is not known."
    )


def _block_of_data(study: StudyCells, summary: StudySummary, block: GridPoint) -> list[Block]:
    """Return the figures and tables of one dataset, split and tower."""
    points = {
        point: rows
        for point, rows in summary.rows_by_point().items()
        if point.whole_catalog == block
    }
    blocks: list[Block] = [Heading(block.data)]
    for sampler in dict.fromkeys(point.sampler for point in points):
        of_sampler = [
            row for point, rows in points.items() if point.sampler == sampler for row in rows
        ]
        blocks += _difference_figure(sampler, of_sampler)
    for shown in _shown_points(points):
        blocks += _point_figures(summary, shown)
    for point, rows in points.items():
        errors = [f"{row.arm}: {error}" for row in rows for error in dict.fromkeys(row.errors)]
        failed = f" Failed: {'; '.join(errors)}." if errors else ""
        blocks.append(
            Table(
                COLUMNS,
                [[_unbroken(cell) for cell in row.cells] for row in rows],
                f"{point.label}. Learning rate ({AT_EDGE}: {EDGE}); mean ± standard deviation "
                f"over the seeds; difference to {REFERENCE} with p after Holm and 95 % "
                f"interval.{failed}",
                emphasis=[index for index, row in enumerate(rows) if row.arm == REFERENCE],
                text_columns=[index for index, name in enumerate(COLUMNS) if "difference" in name],
            )
        )
    return blocks


def _unbroken(cell: str) -> str:
    """Keep a difference and its p-value on one line, and the ends of its interval."""
    space = "\N{NO-BREAK SPACE}"
    begin, bracket, end = cell.partition(" (")
    return begin.replace(" ", space) + bracket + end.replace(" ", space) if end else cell


def _difference_figure(sampler: str, rows: Sequence[ArmRow]) -> list[Block]:
    """Return the differences to the reference against n, for one sampler."""
    panels = []
    labels: dict[Metric, str] = {"ndcg": "NDCG@10: difference", "nll": "NLL: difference, nats"}
    for metric, label in labels.items():
        lines: dict[str, list[tuple[float, float, float]]] = {}
        sizes = _sizes(rows)
        for row in rows:
            one = row.metrics.get(metric)
            gap = None if one is None else one.difference
            if gap is not None and gap.low is not None and row.point in sizes:
                half = gap.value - gap.low
                lines.setdefault(row.arm, []).append((sizes[row.point], gap.value, half))
        curves = {arm: _with_error(found) for arm, found in lines.items()}
        panels.append(Panel(curves, "candidates n", label, True, LINEAR_BELOW[metric]))
    if not any(panel.curves for panel in panels):
        return []
    return [
        Figure(
            line_panels(panels, order=ORDER),
            f"{sampler}: difference to {REFERENCE} against the number of candidates, with 95 % "
            "intervals. The axes of the differences are linear around 0 and logarithmic beyond.",
            f"Lines of the differences in NDCG and NLL by n, one for each arm, sampler {sampler}.",
        )
    ]


def _sizes(rows: Iterable[ArmRow]) -> dict[GridPoint, int]:
    """Return n of each grid point with a finished arm; that of a batch is measured."""
    sizes: dict[GridPoint, int] = {}
    for row in rows:
        if row.candidates_per_row and row.arm != FULL:
            sizes.setdefault(row.point, row.point.num_candidates or row.candidates_per_row)
    return sizes


def _shown_points(points: Mapping[GridPoint, Sequence[ArmRow]]) -> list[GridPoint]:
    """Return those with the smallest and the largest n of the grid points with the most arms.

    Arms without a finished seed do not count; a grid point without any is not shown.
    """
    finished = {point: sum(row.seeds > 0 for row in rows) for point, rows in points.items()}
    most = max(finished.values(), default=0)
    widest = [point for point, arms in finished.items() if arms == most > 0]
    sizes = _sizes(row for point in widest for row in points[point])

    def n(point: GridPoint) -> int:
        return sizes.get(point, point.num_candidates)

    return list(dict.fromkeys([min(widest, key=n), max(widest, key=n)])) if widest else []


def _point_figures(summary: StudySummary, point: GridPoint) -> list[Block]:
    """Return curves, popularity and calibration of all arms at one grid point."""
    curves = [one for one in summary.curves if one.point in (point, point.whole_catalog)]

    def lines(of: Callable[[ArmCurves], Iterable[tuple[float | None, float | None]]]) -> Curves:
        return {one.arm: line for one in curves if (line := _line(of(one))) is not None}

    weights = lines(lambda arm: ((one.step, one.sample_weight) for one in arm.training))
    blocks: list[Block] = [
        Paragraph(
            f"The next figures show the arms at {point.candidates}, each the mean of its seeds."
        ),
        Figure(
            line_panels(
                [
                    Panel(
                        lines(lambda arm: ((one.step, one.ndcg) for one in arm.training)),
                        "steps",
                        "validation NDCG@10",
                    ),
                    Panel(
                        lines(lambda arm: ((one.cpu_seconds, one.ndcg) for one in arm.training)),
                        "CPU seconds",
                        "validation NDCG@10",
                    ),
                ],
                order=ORDER,
            ),
            "Quality during training, against steps and against the CPU seconds of the training.",
            "Lines of validation NDCG by steps and by CPU seconds, one for each arm.",
        ),
        Figure(
            line_panels(
                [
                    Panel(_by_popularity(curves, "ndcg"), "popularity of the target", "NDCG@10"),
                    Panel(_by_popularity(curves, "nll"), "popularity of the target", "NLL, nats"),
                ],
                order=ORDER,
            ),
            "Test metrics by the popularity of the target: groups of about the same number of "
            "training targets, the least popular first.",
            "Lines of NDCG and NLL by group of popularity, one for each arm.",
        ),
        Figure(
            calibration(
                lines(lambda arm: ((one.stated, one.observed) for one in arm.calibration)),
                y_label="share that is the target",
                order=ORDER,
            ),
            "Calibration: of all pairs of a user and an item with about the same stated "
            "probability P(item | user), the share whose item is the target.",
            "Lines of the observed share by stated probability, one for each arm.",
        ),
    ]
    if weights:
        blocks.append(
            Figure(
                line_panels([Panel(weights, "steps", "mean sample weight")], order=ORDER),
                "The sample weight 1 - P of the training rows. It falls as the model becomes "
                "confident; for logq and none it is not an estimate of 1 - P.",
                "Lines of the mean sample weight by steps, one for each arm.",
            )
        )
    return blocks


def _line(points: Iterable[tuple[float | None, float | None]]) -> Curve | None:
    """Return a curve of the points whose values are known; None without one."""
    known = [(x, y) for x, y in points if x is not None and y is not None]
    return Curve(*zip(*known, strict=True)) if known else None


def _by_popularity(curves: Iterable[ArmCurves], metric: Metric) -> dict[str, Curve]:
    """Return a metric by group of popularity; groups that some seed lacks are left out."""
    found = {}
    for one in curves:
        values = [getattr(group, metric) for group in one.popularity]
        line = _line((n, None if v is None else v.value) for n, v in enumerate(values, start=1))
        if line is not None:
            found[one.arm] = line
    return found


def _with_error(points: Sequence[tuple[float, float, float]]) -> Curve:
    x, y, error = zip(*sorted(points), strict=True)
    return Curve(x, y, error)
