"""The page of an audit: the recommendation, figures, and the table of all estimators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from candid.audit import ALL_ROWS, AuditEntry, AuditReport, Estimator, EstimatorStatistics
from candid.report.figures import Curve, log_log
from candid.report.html import Block, Figure, Heading, Paragraph, Table, write_report


def write_audit_page(path: Path | str, report: AuditReport) -> None:
    """Write the HTML page, atomically.

    Args:
        path: of the HTML file.
        report: the audit.

    Raises:
        ArtifactError: the page cannot be written.
    """
    _, sentence = report.recommendation()
    entries = report.ranked()
    best = entries[0]
    cost = report.full_softmax_cost
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in report.notes)
    blocks: list[Block] = [
        Paragraph(
            "Errors are those of the gradient with respect to the logits, relative to the length "
            "of the exact gradient of the full softmax and pooled over rows: the bias of the mean "
            "gradient (negative: not different from 0), the RMSE of one sample, and the error "
            f"after averaging the gradients of {report.averaged_steps} steps, sqrt(bias² + "
            f"variance / {report.averaged_steps}), which ranks the table. The candidates are "
            "random, given the row; for an in-batch sampler, the other rows of the batch. ± is the "
            f"standard error of a bias.{notes}"
        ),
        *_figures(report),
        Heading("All estimators, best first"),
        Table(
            report.columns,
            report.rows(entries),
            f"{report.ranked_by}; loss bias in nats; cost of a step of {_rows(report)} rows: "
            f"sampling, loss and gradients. The full softmax costs {cost.ms:,.2f} ms and "
            f"{cost.mb:,.1f} MB.",
            emphasis=[index for index, entry in enumerate(entries) if entry.is_recipe],
            text_columns=[1],
        ),
        Heading("Popular and rare positives"),
        Table(
            ["model, positives", "bias", "±", "RMSE", "rows"],
            report.slice_rows(best),
            f"{best.label}, by the popularity of the positive: each third of the items has about "
            "the same share of the training rows.",
        ),
        Heading("Audited models"),
        Table(
            ["model", "rows", "items", "width", "exact NLL, nats"],
            [
                [name, f"{s['rows']:,}", f"{s['items']:,}", f"{s['width']}", f"{s['nll']:.3f}"]
                for name, s in report.inputs.items()
            ],
        ),
    ]
    write_report(path, "candid audit", f"{sentence[0].upper()}{sentence[1:]}.", blocks)


def _rows(report: AuditReport) -> int:
    return int(report.settings["cost_rows"])


def _figures(report: AuditReport) -> list[Block]:
    default = Estimator()
    corrected = [entry for entry in report.entries if entry.estimator == default]
    by_popularity = [entry for entry in report.entries if entry.name == "popularity"]
    best = report.ranked()[0]

    def statistics(entry: AuditEntry) -> EstimatorStatistics:
        return entry.statistics[report.ranked_by][ALL_ROWS]

    return [
        Heading("Corrections"),
        Figure(
            log_log(
                _curves(
                    by_popularity,
                    series=lambda entry: entry.estimator.label,
                    x=lambda entry: entry.num_candidates,
                    y=lambda entry: statistics(entry).bias,
                ),
                x_label="candidates n, sampled by popularity",
                y_label="relative bias of the gradient",
            ),
            "Bias against the number of candidates. A level line is a floor: more candidates do "
            "not reduce the bias.",
            "Lines of bias by number of candidates for each correction.",
        ),
        Heading("Samplers"),
        Figure(
            log_log(
                _curves(
                    corrected,
                    series=lambda entry: entry.name,
                    x=lambda entry: entry.num_candidates,
                    y=lambda entry: statistics(entry).rmse,
                ),
                x_label="candidates n",
                y_label="relative RMSE of one sample",
            ),
            "Variance and bias together against the number of candidates, all with the correction "
            f"{default.label}.",
            f"Lines of RMSE by number of candidates; the best estimator is {best.label}.",
        ),
        Heading("Cost"),
        Figure(
            log_log(
                _curves(
                    report.entries,
                    series=lambda entry: entry.name,
                    x=lambda entry: entry.cost.ms,
                    y=lambda entry: statistics(entry).error_after(report.averaged_steps),
                ),
                x_label="ms per step",
                y_label=f"error after {report.averaged_steps} steps",
                is_scatter=True,
            ),
            "Every estimator: time of a step against the error after averaging. Left and low is "
            "better.",
            "Points of error by milliseconds per step.",
        ),
    ]


def _curves(
    entries: Iterable[AuditEntry],
    *,
    series: Callable[[AuditEntry], str],
    x: Callable[[AuditEntry], float],
    y: Callable[[AuditEntry], float],
) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        points.setdefault(series(entry), []).append((x(entry), y(entry)))
    curves = {name: sorted(of_name) for name, of_name in points.items()}
    return {
        name: Curve([first for first, _ in of_name], [second for _, second in of_name])
        for name, of_name in curves.items()
    }
