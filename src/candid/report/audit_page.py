"""The page of an audit: the recommendation, figures, and the table of all estimators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from candid.audit import AuditEntry, AuditReport, Estimator, InputMeasurement, expected_excess
from candid.audit.recommendation import NEGLIGIBLE
from candid.losses.correction import ESTIMATES_NLL
from candid.report.figures import Curve, log_log, with_errors
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
            "Drift is the excess negative log-likelihood, in nats, to which training with an "
            "estimator converges, predicted at the audited model: 0 for the full softmax. ± is its "
            "standard error. chi2 and KL are the distances of the sampler from the model, medians "
            "over users: refined needs n well above chi2. RMSE is the error of the gradient of one "
            "step, relative to the gradient of the full softmax. The table is sorted by the "
            f"expected excess, drift + {report.noise:g} · RMSE² nats: where training converges, "
            "plus the price of the random candidates. Differences within the standard errors are "
            "ties: there the smaller price of the variance comes first, then the cheaper "
            f"step.{notes}"
        ),
        Paragraph(
            "The bias given the positive is the distance of the mean gradient of a row from that "
            "of the full softmax, relative to its length. Training averages over positives, and "
            "biases of opposite sign cancel: this bias does not predict the trained model. It "
            "shows how well the gradient of a single row is estimated."
        ),
        *_figures(report),
        Heading("All estimators, best first"),
        Table(
            report.columns,
            report.rows(entries),
            f"{report.ranked_by}; excess in nats; cost of a step of {_rows(report)} rows: "
            f"sampling, loss and gradients. The full softmax costs {cost.ms:,.2f} ms and "
            f"{cost.mb:,.1f} MB.",
            emphasis=[index for index, entry in enumerate(entries) if entry.is_recipe],
            text_columns=[1],
        ),
        Heading("Given the positive"),
        Table(
            report.detail_columns,
            report.detail_rows(entries),
            f"{report.ranked_by}: bias of the gradient relative to its length, bias of the loss in "
            "nats, effective number of candidates, all for the given positive of each row. "
            "Scores: those of a row in a step.",
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
        Heading("Drift by user"),
        Table(
            ["estimator", "10 %", "median", "90 %", "chi2 10 %", "median", "90 %"],
            [_user_row(entry, report.ranked_by) for entry in entries[:10]],
            "Quantiles over the users of the ten best estimators: drift in nats, and chi2.",
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


def _user_row(entry: AuditEntry, ranked_by: str) -> list[str]:
    document = entry.inputs[ranked_by].to_json()
    names = ("quantile_10", "quantile_50", "quantile_90")
    chi2 = document["chi2"] or {}
    return [
        entry.label,
        *(f"{document['drift'][name]:.3f}" for name in names),
        *("–" if chi2.get(name) is None else f"{chi2[name]:,.3g}" for name in names),
    ]


def _figures(report: AuditReport) -> list[Block]:
    default, likelihood = Estimator(), Estimator(ESTIMATES_NLL)
    corrected = [entry for entry in report.entries if entry.estimator == default]
    of_likelihood = [entry for entry in report.entries if entry.estimator == likelihood]
    by_popularity = [entry for entry in report.entries if entry.name == "popularity"]
    best = report.ranked()[0]

    def measured(entry: AuditEntry) -> InputMeasurement:
        return entry.inputs[report.ranked_by]

    def excess(entry: AuditEntry) -> float:
        return expected_excess(measured(entry), report.noise)

    def drift_figure(entries: list[AuditEntry], by: Callable[[AuditEntry], str], what: str) -> str:
        return with_errors(
            _curves(
                entries,
                series=by,
                x=lambda entry: entry.num_candidates,
                y=lambda entry: measured(entry).drift.mean,
                error=lambda entry: measured(entry).drift.error,
            ),
            x_label=f"candidates n{what}",
            y_label="drift, nats",
            linear_below=NEGLIGIBLE,
        )

    return [
        Heading("Corrections"),
        Figure(
            drift_figure(
                by_popularity, lambda entry: entry.estimator.label, ", sampled by popularity"
            ),
            "Drift against the number of candidates, with standard errors. A line at 0 is right "
            "for every n, a falling line needs many candidates, and a level line is a floor: more "
            f"candidates do not help. The axis is linear below {NEGLIGIBLE} nats, where a drift is "
            "negligible.",
            "Lines of drift by number of candidates for each correction.",
        ),
        Heading("Samplers"),
        Figure(
            drift_figure(of_likelihood, lambda entry: entry.name, ""),
            f"Drift against the number of candidates, all with the correction {likelihood.label}, "
            "whose drift depends on the sampler most: it needs n well above chi2.",
            "Lines of drift by number of candidates for each sampler.",
        ),
        Heading("Variance"),
        Figure(
            log_log(
                _curves(
                    corrected,
                    series=lambda entry: entry.name,
                    x=lambda entry: entry.num_candidates,
                    y=lambda entry: measured(entry).statistics.rmse,
                ),
                x_label="candidates n",
                y_label="relative RMSE of one step",
            ),
            "Error of the gradient of one step, all with the correction "
            f"{default.label}: more candidates reduce it for every sampler.",
            f"Lines of RMSE by number of candidates; the best estimator is {best.label}.",
        ),
        Heading("Cost"),
        Figure(
            log_log(
                _curves(
                    report.entries,
                    series=lambda entry: entry.name,
                    x=lambda entry: entry.cost.ms,
                    y=excess,
                ),
                x_label="ms per step",
                y_label="expected excess, nats",
                is_scatter=True,
            ),
            "Every estimator: time of a step against the expected excess. Left and low is better.",
            "Points of expected excess by milliseconds per step.",
        ),
    ]


def _curves(
    entries: Iterable[AuditEntry],
    *,
    series: Callable[[AuditEntry], str],
    x: Callable[[AuditEntry], float],
    y: Callable[[AuditEntry], float],
    error: Callable[[AuditEntry], float] = lambda entry: 0.0,
) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float, float]]] = {}
    for entry in entries:
        points.setdefault(series(entry), []).append((x(entry), y(entry), error(entry)))
    return {
        name: Curve(*(list(values) for values in zip(*sorted(of_name), strict=True)))
        for name, of_name in points.items()
    }
