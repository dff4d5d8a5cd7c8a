"""The HTML page of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from candid.demo.report import COLUMNS, ORACLE, DemoReport, ModelResult, RegimeReport, number
from candid.report import (
    Curve,
    Figure,
    Heading,
    Paragraph,
    Table,
    calibration,
    interval_bars,
    log_log,
    rank_frequency,
    write_report,
)
from candid.report.html import Block

_WHAT_IT_SHOWS = (
    "Each model is trained with the same towers, batches, optimizer and number of epochs. They "
    "differ in the loss: the full softmax over the catalog, or a sampled softmax with n candidates "
    "by popularity and one correction. The data comes from known probabilities, so two numbers "
    "are known that no real data set gives: how far a model is from the best possible one (excess "
    "NLL), and how far a correction moves a model that is already right (predicted drift)."
)
_CORRECTIONS = (
    "'none' compares raw scores. 'logq' shifts candidates and positive by the log of their "
    "expected counts and keeps samples that equal the positive; its drift is 0 at every n. "
    "'logq, hits masked' leaves these samples out; its drift grows with n where probabilities are "
    "large. 'refined' shifts the candidates only; its drift falls like (chi2 / n)² where "
    "n is above chi2 = Σ P²/Q - 1, so it needs n well above chi2. The drift is a second-order "
    "prediction for a model that can represent anything: where n is small the measured distance "
    "is larger. Sampled losses are also noisy, and a short training does not average all of the "
    "noise out; this costs something at small n even where the drift is 0."
)
WHAT_FOLLOWS = (
    "Begin with 'logq' and kept hits. Do not train on sampled candidates without a correction "
    "before you have compared the two on your data: in the study of the documentation, with six "
    "catalogs, 'none' had the worst lists on five of them, and a lower negative log-likelihood "
    "than 'logq' on the sixth, sessions with many repeats. 'refined' needs many candidates. In "
    "the study it was behind 'logq' at six of seven grid points with n below 8 chi2, also where "
    "models are unsure: by .42 nats on Amazon Beauty, with n = 16 and chi2 of about 3. From 21 "
    "chi2 on it was within .04 nats; nothing was measured between. 'candid audit' measures chi2 "
    "on your model. Only the value of the 'refined' loss estimates the negative log-likelihood. "
    "In the study, where each correction was measured at its own trained model, the drift did not "
    "predict the distance from the full softmax closely."
)


def write_page(path: Path, report: DemoReport, interactions: Path) -> None:
    """Write the HTML page, atomically.

    Args:
        path: of the page.
        report: the results.
        interactions: file of the synthetic interactions, named in the commands on the page.

    Raises:
        ArtifactError: the page cannot be written.
    """
    blocks: list[Block] = [
        Paragraph(_WHAT_IT_SHOWS),
        Heading("Predicted and measured"),
        *_predicted_and_measured(report.regimes),
        Paragraph(_CORRECTIONS),
        Paragraph("What follows: " + WHAT_FOLLOWS),
    ]
    for regime in report.regimes:
        blocks += _regime_blocks(report, regime)
    blocks += [
        Heading("Run the same steps on your own data"),
        Paragraph(
            f"candid prepare --interactions {interactions} --user user_id --item item_id "
            "--time timestamp --out prepared\ncandid train --data prepared --out run\n"
            "candid evaluate run\ncandid audit run",
            code=True,
        ),
    ]
    write_report(path, "candid demo", _summary(report), blocks)


def _summary(report: DemoReport) -> str:
    parts = []
    for regime in report.regimes:
        for n in report.num_candidates:
            values = ", ".join(
                f"{model.name} {number(model.over_full.value)}"
                for model in regime.sampled
                if model.num_candidates == n and model.over_full is not None
            )
            parts.append(f"{regime.regime.name} users, n = {n}: {values}")
    return (
        "Negative log-likelihood above that of a model trained with the full softmax, in nats. "
        + "; ".join(parts)
        + "."
    )


def _regime_blocks(report: DemoReport, regime: RegimeReport) -> list[Block]:
    synthetic, prediction, name = regime.regime.synthetic, regime.prediction, regime.regime.name
    low, median, high = prediction.chi2
    smallest = min(report.num_candidates)
    few = [one for one in regime.models if one.num_candidates in (None, smallest)]
    return [
        Heading(f"Regime: {name}"),
        Paragraph(
            f"{synthetic.num_users:,} users and {synthetic.num_items:,} items with Zipf popularity "
            f"(exponent {synthetic.zipf_exponent:g}); the next choice follows a softmax of a dot "
            f"product plus a popularity bias, at temperature {synthetic.temperature:g}. A choice "
            f"has a true probability of {prediction.mean_p:.2f} on average. chi2 of the users: "
            f"{median:.1f} (10 to 90 %: {low:.1f} to {high:.1f}); KL(P‖Q): "
            f"{prediction.kl[1]:.2f} nats. {report.epochs} epochs."
        ),
        Table(
            COLUMNS[1:],
            [row[1:] for row in report.rows(regime)],
            "Test split, full catalog, seen items not filtered. Predicted drift ± standard error; "
            "all others ± half of the 95 % interval over users. NLL in nats; NLL over full softmax "
            "compares the same users; excess NLL is the NLL minus that of the true distribution "
            "(the oracle); popularity@10 is the mean training count of the recommended items.",
        ),
        Figure(
            interval_bars(
                {
                    f"n = {n}": {
                        one.name: one.over_full
                        for one in regime.models
                        if one.num_candidates in (None, n) and one.over_full is not None
                    }
                    for n in report.num_candidates
                },
                y_label="NLL over full softmax, nats",
            ),
            f"{name}: negative log-likelihood above that of the full softmax, same users, with "
            "95 % intervals.",
            "Bars: " + _as_text(regime),
        ),
        Figure(
            interval_bars(
                {
                    f"n = {n}": {
                        one.name: one.report.metrics["ndcg@10"]
                        for one in regime.models
                        if one.num_candidates in (None, n)
                    }
                    for n in report.num_candidates
                },
                y_label="ndcg@10",
            ),
            f"{name}: ranking quality on the test split with 95 % intervals over users.",
            "Bars of ndcg@10: "
            + ", ".join(f"{_label(one)} {number(one.value('ndcg@10'))}" for one in regime.models),
        ),
        Figure(
            calibration(
                {one.name: one.calibration for one in few if one.calibration},
                y_label="mean true probability",
            ),
            f"{name}, n = {smallest}: pairs of 1,000 test users and the catalog, grouped by "
            "predicted probability. On the diagonal the predictions are right; above it they are "
            "too low.",
            "Lines of true against predicted probability; excess NLL: "
            + ", ".join(f"{_label(one)} {number(one.value('excess_nll'))}" for one in few),
        ),
        Figure(
            rank_frequency(
                {one.name: one.recommended_counts for one in few},
                y_label="share of the top-10 places",
            ),
            f"{name}, n = {smallest}: share of the r-th most recommended item. On the left, a "
            "line above that of the oracle means that popular items are recommended too often, a "
            "line below it too rarely.",
            "Lines of share by rank; mean popularity of the recommended items: "
            + ", ".join(f"{_label(one)} {number(one.value('popularity@10'))}" for one in few),
        ),
    ]


def _predicted_and_measured(regimes: Sequence[RegimeReport]) -> list[Block]:
    """Return the figure; none where no prediction is different from 0."""
    points: dict[str, tuple[list[float], list[float]]] = {}
    for regime in regimes:
        for model in regime.sampled:
            drift = regime.drift(model)
            measured = None if model.over_full is None else model.over_full.value
            if drift is None or measured is None or measured <= 0 or drift[0] < 2 * drift[1]:
                continue
            x, y = points.setdefault(f"{regime.regime.name}: {model.name}", ([], []))
            x.append(drift[0])
            y.append(measured)
    if not points:
        return []
    figure = log_log(
        {name: Curve(x, y) for name, (x, y) in points.items()},
        x_label="predicted drift, nats",
        y_label="NLL over full softmax, nats",
        is_scatter=True,
    )
    return [
        Figure(
            figure,
            "One point for each regime, correction and n, on logarithmic axes. Predictions within "
            "two standard errors of 0 are left out: there the loss converges to the full softmax. "
            "A prediction is exact where both axes have the same value.",
            "Points of measured NLL over the full softmax against predicted drift: "
            + "; ".join(_as_text(one) for one in regimes),
        )
    ]


def _as_text(regime: RegimeReport) -> str:
    parts = []
    for model in regime.sampled:
        drift = regime.drift(model)
        if drift is not None and model.over_full is not None:
            measured = number(model.over_full.value)
            parts.append(f"{_label(model)} predicted {number(drift[0])}, measured {measured}")
    return f"{regime.regime.name}: " + "; ".join(parts)


def _label(model: ModelResult) -> str:
    if model.name == ORACLE or model.num_candidates is None:
        return model.name
    return f"{model.name} (n = {model.num_candidates})"
