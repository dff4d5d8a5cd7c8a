"""The standard error of a metric due to a sample of users, against repeated samples."""

from __future__ import annotations

import numpy as np
import pytest

from candid.evaluation.intervals import Estimate
from candid.evaluation.report import EvaluationReport, PerUser

NUM_USERS = 400


def report_of(numerators, denominators, population):
    names = ("recall@1", "ndcg@10")
    both = [np.stack([np.ones_like(part), part], axis=1) for part in (numerators, denominators)]
    value = float(numerators.sum() / denominators.sum())
    counts = {
        "users": len(numerators),
        "users_with_targets": population + 5,
        "users_without_history": 5,
    }
    return EvaluationReport(
        metrics={"ndcg@10": Estimate(value)},
        metric="ndcg@10",
        slices={},
        counts=counts,
        settings={},
        per_user=PerUser(np.arange(len(numerators)), names, *both),
    )


@pytest.mark.parametrize("size", [100, 300])
def test_sampling_error_is_the_spread_of_repeated_samples(size):
    rng = np.random.default_rng(0)
    has_relevant = (rng.random(NUM_USERS) < 0.5).astype(float)
    values = (0.6 + 0.4 * rng.random(NUM_USERS)) * has_relevant
    samples = [rng.choice(NUM_USERS, size, replace=False) for _ in range(3000)]
    reports = [report_of(values[rows], has_relevant[rows], NUM_USERS) for rows in samples]
    spread = np.std([report.metrics["ndcg@10"].value for report in reports])
    errors = [report.sampling_error() for report in reports]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.05)


def test_summary_has_the_standard_error_of_a_sample_only():
    values, ones = np.linspace(0, 1, 20), np.ones(20)
    assert report_of(values, ones, 20).summary() == {"ndcg@10": 0.5}
    sampled = report_of(values, ones, 21)
    assert sampled.summary() == {"ndcg@10": 0.5, "standard_error": sampled.sampling_error()}
    assert sampled.sampling_error() > 0


def test_sampling_error_of_one_user_is_unknown():
    assert report_of(np.ones(1), np.ones(1), 9).sampling_error() is None
