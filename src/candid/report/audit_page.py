"""The page of an audit: what to choose, the whole table, and three figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from candid.audit import WHOLE, AuditReport, Entry, Variant
from candid.report.figures import Curve, log_log
from candid.report.html import Block, Figure, Heading, Paragraph, Table, write_report


def write_audit_page(path: Path, report: AuditReport) -> None:
    """Write the HTML page, atomically.

    Raises:
        ArtifactError: the page cannot be written.
        ConfigError: matplotlib is not installed.
    """
    _, sentence = report.recommendation()
    ranked = report.ranked()
    best = ranked[0]
    rows = report.settings["cost_rows"]
    blocks: list[Block] = [
        Paragraph(
            "Errors are those of the gradient with respect to the logits, relative to the length "
            "of the exact gradient of the full softmax and pooled over rows: bias of the mean "
            "gradient (negative: not different from 0), RMSE of a single draw, and what is left "
            f"when the gradients of {report.averaged} steps are averaged, sqrt(bias² + variance / "
            f"{report.averaged}), by which the table is ranked. Random are the candidates, given "
            "the row; of an in-batch sampler the other rows of the batch. ± is the standard error "
            "of a bias." + "".join(f" {note[0].upper()}{note[1:]}." for note in report.notes)
        ),
        *_figures(report),
        Heading("All estimators, best first"),
        Table(
            report.columns,
            report.rows(ranked),
            f"{report.judged}; loss bias in nats; cost of a step of {rows} rows: draw, loss and "
            f"gradients. The full softmax costs {report.exact.ms:,.2f} ms and "
            f"{report.exact.mb:,.1f} MB.",
            emphasis=[place for place, entry in enumerate(ranked) if entry.is_yours],
        ),
        Heading("Popular and rare positives"),
        Table(
            ["model, positives", "bias", "±", "RMSE", "rows"],
            report.slice_rows(best),
            f"{best.label}, by the popularity of the positive: each third of the items has about "
            "the same share of the training rows.",
        ),
        Heading("What was audited"),
        Table(
            ["model", "rows", "items", "width", "exact NLL, nats"],
            [
                [name, f"{s['rows']:,}", f"{s['items']:,}", f"{s['width']}", f"{s['nll']:.3f}"]
                for name, s in report.subjects.items()
            ],
        ),
    ]
    write_report(path, "candid audit", f"{sentence[0].upper()}{sentence[1:]}.", blocks)


def _figures(report: AuditReport) -> list[Block]:
    refined = [entry for entry in report.entries if entry.variant == Variant()]
    by_popularity = [entry for entry in report.entries if entry.name == "popularity"]
    best = report.ranked()[0]
    return [
        Heading("Which correction"),
        Figure(
            log_log(
                _curves(by_popularity, lambda e: e.variant.label, lambda e: e.n, _bias(report)),
                x_label="candidates n, drawn by popularity",
                y_label="relative bias of the gradient",
            ),
            "Bias against the number of candidates. A line that stays level is a floor: more "
            "candidates do not cure it.",
            "Lines of bias by number of candidates for each correction.",
        ),
        Heading("Which sampler"),
        Figure(
            log_log(
                _curves(refined, lambda e: e.name, lambda e: e.n, _rmse(report)),
                x_label="candidates n",
                y_label="relative RMSE of one draw",
            ),
            "Spread and bias together against the number of candidates, all corrected by refined.",
            f"Lines of RMSE by number of candidates; the best of all is {best.label}.",
        ),
        Heading("What it costs"),
        Figure(
            log_log(
                _curves(report.entries, lambda e: e.name, lambda e: e.cost.ms, _left(report)),
                x_label="ms a step",
                y_label=f"error after {report.averaged} steps",
                is_scatter=True,
            ),
            "Every estimator: time of a step against the error that is left. Left and low is good.",
            "Points of remaining error by milliseconds a step.",
        ),
    ]


def _curves(
    entries: Iterable[Entry],
    series: Callable[[Entry], str],
    x: Callable[[Entry], float],
    y: Callable[[Entry], float],
) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        points.setdefault(series(entry), []).append((x(entry), y(entry)))
    return {
        name: Curve([place for place, _ in sorted(found)], [value for _, value in sorted(found)])
        for name, found in points.items()
    }


def _bias(report: AuditReport) -> Callable[[Entry], float]:
    return lambda entry: entry.findings[report.judged][WHOLE].bias


def _rmse(report: AuditReport) -> Callable[[Entry], float]:
    return lambda entry: entry.findings[report.judged][WHOLE].rmse


def _left(report: AuditReport) -> Callable[[Entry], float]:
    return lambda entry: entry.findings[report.judged][WHOLE].error_after(report.averaged)
