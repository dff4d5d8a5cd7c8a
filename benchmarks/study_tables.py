"""Tables of the grid points of studies for docs/study.md: differences, drifts and learning rates.

A table of more than ``MAX_ROWS`` rows is shortened by a rule that is stated below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from candid.study import ARMS, ArmRow, GridPoint, StudySummary
from candid.study.claim_tests import KEPT, MASKED, REFINED
from candid.study.drift_cells import FULL, DriftCell, users_text
from candid.study.tables import AT_EDGE, DIGITS, EDGE, REFERENCE, difference_text

NOT_MEASURED = "Not measured yet."
METRICS = {"ndcg": "NDCG@10", "nll": "NLL"}
MAX_ROWS = 40
"""A longer table is shortened."""
DRIFT_ARMS = (MASKED, KEPT, REFINED)
"""Arms that a long table of drifts keeps: those of C2."""
MOST_SEEDS = "the grid points with the most seeds"
Study = dict[str, Any]
Row = TypeVar("Row")
Points = dict[GridPoint, dict[str, ArmRow]]


def differences(studies: Mapping[str, Study]) -> str:
    """Return a table for each study and metric: the reference, and the others' differences."""
    parts = []
    for name, study in studies.items():
        points = _points(study)
        arms = [arm for arm in _arms(points) if arm != REFERENCE]
        shown, note = _shown_points(name, points)
        for metric, label in METRICS.items():
            lines = [
                f"**{name}: {label}**",
                "",
                row(["grid point", "n / chi2", f"`{REFERENCE}`", *(f"`{arm}`" for arm in arms)]),
                "|---|---:|---:|" + "---|" * len(arms),
                *(_difference_row(point, points[point], arms, metric) for point in shown),
                *note,
            ]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) or NOT_MEASURED


def drifts(studies: Mapping[str, Study]) -> str:
    """Return a table for each study: predicted drift and measured excess of each arm."""
    columns = ("arm", "seeds", "chi2", "n / chi2", "predicted drift", "excess NLL", "gradient bias")
    parts = []
    for name, study in studies.items():
        points = _points(study)
        cells = StudySummary.from_json(study["summary"]).drifts
        most = max((cell.seeds for cell in cells), default=0)
        rules = [
            (f"the arms {', '.join(DRIFT_ARMS)}", lambda cell: cell.arm in DRIFT_ARMS),
            (MOST_SEEDS, lambda cell, most=most: cell.seeds == most),
        ]
        shown, note = _shortened(name, cells, rules)
        imprecise = sum(not one.drift_is_above_its_error for one in cells)
        is_known = all(one.drift_error is not None for one in cells)
        words = "are below twice their error" if is_known else "were below twice their error"
        more = "" if is_known else ", and are written as 0, without their error"
        note = [
            *note,
            "",
            f"{imprecise} of {len(cells)} drifts {words}{more}. {users_text(cells)}",
        ]
        lines = [
            row([f"{name}: grid point", *columns]),
            "|---|---|" + "---:|" * (len(columns) - 1),
            *(_drift_row(cell, points) for cell in shown),
            *note,
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or NOT_MEASURED


def rates(studies: Mapping[str, Study]) -> str:
    """Return the learning rate that the pilot of each study chose for each arm."""
    parts = []
    for name, study in studies.items():
        points = _points(study)
        arms = _arms(points)
        shown, note = _shown_points(name, points)
        lines = [
            row([f"{name}: grid point", *(f"`{arm}`" for arm in arms)]),
            "|---|" + "---:|" * len(arms),
        ]
        for point in shown:
            rows = points[point]
            chosen = [rows[arm].rate if arm in rows else "–" for arm in arms]
            lines.append(row([point.label, *chosen]))
        parts.append("\n".join([*lines, *note, "", _edges(points)]))
    return "\n\n".join(parts) or NOT_MEASURED


def _edges(points: Points) -> str:
    """Return how many learning rates are at an edge of the rates that their pilot tried."""
    settings = {
        (point.whole_catalog if arm == FULL else point, arm): one.rate_is_at_edge
        for point, rows in points.items()
        for arm, one in rows.items()
    }
    if None in settings.values():
        return "Which of them are the smallest or the largest one of their pilot was not recorded."
    at_edge = sum(map(bool, settings.values()))
    return f"{at_edge} of {len(settings)} rates are at an edge. {AT_EDGE} {EDGE}."


def _shortened(
    study: str, rows: Sequence[Row], rules: Sequence[tuple[str, Callable[[Row], bool]]]
) -> tuple[Sequence[Row], list[str]]:
    """Leave out rows of a long table by one rule after the other; return the lines below it.

    Args:
        study: name of the study.
        rows: of the table.
        rules: which rows stay, in words and as a function.
    """
    shown, applied = rows, []
    for words, keeps in rules:
        fewer = [one for one in shown if keeps(one)]
        if len(shown) > MAX_ROWS and len(fewer) < len(shown):
            shown = fewer
            applied.append(words)
    if len(shown) > MAX_ROWS:
        shown = shown[:MAX_ROWS]
        applied.append("of these the first")
    if not applied:
        return rows, []
    return shown, [
        "",
        f"{len(shown)} of {len(rows)} rows: {', '.join(applied)}. "
        f"`benchmarks/results/study/{study}.json` has all.",
    ]


def _shown_points(name: str, points: Points) -> tuple[Sequence[GridPoint], list[str]]:
    seeds = {
        point: max((one.seeds for one in rows.values() if one.arm != FULL), default=0)
        for point, rows in points.items()
    }
    most = max(seeds.values(), default=0)
    return _shortened(name, list(points), [(MOST_SEEDS, lambda point: seeds[point] == most)])


def _drift_row(cell: DriftCell, points: Points) -> str:
    ratio = "–"
    if cell.chi2:
        n = points[cell.point][cell.arm].candidates_per_row
        ratio = ratio_text(n / cell.chi2)
    error = "" if cell.excess_error is None else f" ± {cell.excess_error:.3f}"
    return row(
        [
            cell.point.label,
            f"`{cell.arm}`",
            str(cell.seeds),
            "–" if cell.chi2 is None else f"{cell.chi2:.3g}",
            ratio,
            _with_error(cell.drift, cell.drift_error),
            f"{cell.excess:+.3f}{error}",
            _with_error(cell.gradient_bias, cell.gradient_bias_error),
        ]
    )


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _difference_row(
    point: GridPoint, rows: Mapping[str, ArmRow], arms: Sequence[str], metric: str
) -> str:
    reference = rows.get(REFERENCE)
    ratio = "–"
    if reference is not None and reference.chi2:
        ratio = ratio_text(reference.candidates_per_row / reference.chi2)
    cells = [point.label, ratio, _mean(reference, metric)]
    for arm in arms:
        found = rows.get(arm)
        one = None if found is None else found.metrics.get(metric)
        gap = None if one is None else one.difference
        if gap is not None:
            cells.append(difference_text(gap, DIGITS[metric]))
        else:
            cells.append("–" if found is None else f"{found.seeds} of {found.planned} seeds")
    return row(cells)


def _points(study: Study) -> Points:
    """Return the rows of a study by grid point and arm."""
    by_point = StudySummary.from_json(study["summary"]).rows_by_point()
    return {point: {one.arm: one for one in rows} for point, rows in by_point.items()}


def _arms(points: Points) -> list[str]:
    """Return the arms that some grid point has, in the usual order."""
    found = {arm for rows in points.values() for arm in rows}
    return [arm for arm in ARMS if arm in found]


def _mean(found: ArmRow | None, metric: str) -> str:
    one = None if found is None else found.metrics.get(metric)
    if one is None:
        return "–"
    digits = DIGITS[metric]
    spread = "" if one.sd is None else f" ± {one.sd:.{digits}f}"
    return f"{one.mean:.{digits}f}{spread}"


def ratio_text(value: float) -> str:
    """Return n / chi2 with two digits, from 10 on as a whole number."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def row(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cells) + " |"
