"""The HTML page of an audit: the recommendation, three figures and all measured numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from candid.audit import ALL_ROWS, AuditEntry, AuditReport, Estimator, EstimatorStatistics
from candid.report.figures import Curve, log_log
from candid.report.html import Block, Figure, Heading, Paragraph, Table, write_report


def write_audit_page(path: Path, report: AuditReport) -> None:
    """Write the HTML page, atomically.

    Raises:
        ArtifactError: the page cannot be written.
    """
    _, sentence = report.recommendation()
    ranked = report.ranked()
    best = ranked[0]
    rows = report.settings["cost_rows"]
    full = report.full_softmax_cost
    blocks: list[Block] = [
        Paragraph(
            "Errors are errors of the gradient with respect to the logits, relative to the length "
            "of the exact gradient of the full softmax and pooled over rows: the bias of the mean "
            "gradient (a negative value is not different from 0), the RMSE of the gradient of one "
            f"step, and the error of the gradient averaged over {report.averaged_steps} steps, "
            f"sqrt(bias² + variance / {report.averaged_steps}). The table is ranked by the last "
            "one. The candidates are random, given the row; for an in-batch sampler the other rows "
            "of the batch are random. ± is the standard error of a bias."
            + "".join(f" {note[0].upper()}{note[1:]}." for note in report.notes)
        ),
        *_figures(report),
        Heading("All estimators, best first"),
        Table(
            report.columns,
            report.rows(ranked),
            f"Model: {report.ranked_by}. Loss bias in nats. ESS is the effective sample size of "
            f"the candidates. The cost is that of sampling, loss and gradients in a step of {rows} "
            f"rows; the full softmax costs {full.ms:,.2f} ms and {full.mb:,.1f} MB.",
            emphasis=[index for index, entry in enumerate(ranked) if entry.is_recipe],
        ),
        Heading("Popular and rare positives"),
        Table(
            ["model, positives", "bias", "±", "RMSE", "rows"],
            report.slice_rows(best),
            f"{best.label}, by popularity of the positive: each third of the items has about the "
            "same number of training rows.",
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


def _figures(report: AuditReport) -> list[Block]:
    default = Estimator()
    with_default = [entry for entry in report.entries if entry.estimator == default]
    by_popularity = [entry for entry in report.entries if entry.name == "popularity"]
    best = report.ranked()[0]

    def statistics(entry: AuditEntry) -> EstimatorStatistics:
        return entry.statistics[report.ranked_by][ALL_ROWS]

    def num_candidates(entry: AuditEntry) -> float:
        return entry.num_candidates

    return [
        Heading("Corrections"),
        Figure(
            log_log(
                _curves(
                    by_popularity,
                    lambda entry: entry.estimator.label,
                    num_candidates,
                    lambda entry: statistics(entry).bias,
                ),
                x_label="candidates n, sampled by popularity",
                y_label="relative bias of the gradient",
            ),
            "Bias against the number of candidates. A level line is a lower limit: more candidates "
            "do not reduce the bias.",
            "Lines of bias by number of candidates for each correction.",
        ),
        Heading("Samplers"),
        Figure(
            log_log(
                _curves(
                    with_default,
                    lambda entry: entry.name,
                    num_candidates,
                    lambda entry: statistics(entry).rmse,
                ),
                x_label="candidates n",
                y_label="relative RMSE of one step",
            ),
            "RMSE (bias and variance together) against the number of candidates, with correction "
            f"{default.label}.",
            f"Lines of RMSE by number of candidates; the best estimator is {best.label}.",
        ),
        Heading("Cost"),
        Figure(
            log_log(
                _curves(
                    report.entries,
                    lambda entry: entry.name,
                    lambda entry: entry.cost.ms,
                    lambda entry: statistics(entry).error_after(report.averaged_steps),
                ),
                x_label="ms per step",
                y_label=f"error after {report.averaged_steps} steps",
                is_scatter=True,
            ),
            "Every estimator: error after averaging against the time of a step. The best ones are "
            "at the lower left.",
            "Points of error after averaging by milliseconds per step.",
        ),
    ]


def _curves(
    entries: Iterable[AuditEntry],
    series: Callable[[AuditEntry], str],
    x: Callable[[AuditEntry], float],
    y: Callable[[AuditEntry], float],
) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        points.setdefault(series(entry), []).append((x(entry), y(entry)))
    return {
        name: Curve([x for x, _ in sorted(pairs)], [y for _, y in sorted(pairs)])
        for name, pairs in points.items()
    }
