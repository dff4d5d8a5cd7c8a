import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from candid.audit import (
    ALL_ESTIMATORS,
    AuditCase,
    CostBudget,
    DriftSampling,
    SamplingBudget,
    audit,
    estimators_for,
    sampler_config,
)
from candid.audit.synthetic_inputs import synthetic_inputs
from candid.errors import ConfigError
from candid.synthetic import SyntheticConfig, SyntheticData

from .conftest import COUNTS, SCORES, tiny_input

POPULARITY = AuditCase(
    "popularity",
    sampler_config({"type": "popularity", "num_candidates": 3}),
    num_candidates=3,
    estimators=ALL_ESTIMATORS,
)
EXACT_CONFIG = sampler_config(
    {"type": "exact_popular", "num_exact": 2, "rest": {"type": "uniform"}}
)
EXACT_POPULAR = AuditCase(
    "exact popular",
    EXACT_CONFIG,
    num_candidates=3,
    estimators=estimators_for(EXACT_CONFIG),
    is_recipe=True,
)


def audit_twice(*, drift_repeats=16, **options):
    inputs = [tiny_input(name=name) for name in ("before", "after")]
    settings = {
        "sampling": SamplingBudget(repeats=16),
        "drift": DriftSampling(repeats=drift_repeats),
        "cost_rows": 8,
    }
    return audit(inputs, [POPULARITY, EXACT_POPULAR], **(settings | options))


@pytest.fixture(scope="module")
def report():
    return audit_twice(drift_repeats=400)


def test_audit_measures_every_estimator_on_every_input(report):
    assert len(report.entries) == 7 + 5
    for entry in report.entries:
        assert list(entry.inputs) == ["before", "after"]
        before, after = entry.inputs.values()
        # The same model twice, with the same samples.
        assert before.to_json() == after.to_json()
        assert list(after.slices) == ["all", "rare", "middle", "popular"]
        assert after.statistics.num_rows == 3
        assert after.drift.by_user.shape == (3,)
        assert entry.cost.ms > 0
    assert [entry.num_scores for entry in report.entries] == [3] * 7 + [2 + 256] * 5
    assert report.ranked_by == "after"


def test_report_json_has_a_row_for_each_estimator_best_first(report):
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    rows = document["estimators"]
    assert document["schema"] == 3
    assert len(rows) == 12
    excess = [max(row["drift"], 0.0) + 0.1 * row["rmse"] ** 2 for row in rows]
    assert [row["expected_excess"] for row in rows] == pytest.approx(excess, rel=1e-4)
    tolerance = 2 * max(row["inputs"]["after"]["drift"]["se_of_samples"] for row in rows)
    assert all(one <= other + tolerance for one, other in itertools.pairwise(excess))
    assert document["inputs"]["after"]["slices"] == {"rare": 1, "middle": 1, "popular": 1}
    assert document["full_softmax"]["drift"] == 0.0
    assert "choose" in document["recommendation"]["sentence"]
    assert document["recommendation"]["estimator"] in rows


def test_report_json_rows_state_settings_drift_and_distances(report):
    rows = report.to_json()["estimators"]
    by_key = {
        (r["sampler"], r["correction"], r["accidental_hits"], r["jackknife"]): r for r in rows
    }
    assert len(by_key) == len(rows)
    kept = by_key["popularity", "logq", "keep", False]
    masked = by_key["popularity", "logq", "mask", False]
    refined = by_key["popularity", "refined", "mask", False]
    assert (kept["n"], kept["distinct"], kept["is_recipe"]) == (3, False, False)
    assert kept["settings"]["num_candidates"] == 3
    assert sampler_config({"type": kept["sampler"], **kept["settings"]}) == POPULARITY.sampler
    # Enumerated in test_drift: 0 for kept hits, and not 0 for the others.
    error = kept["inputs"]["after"]["drift"]["se_of_samples"]
    assert abs(kept["drift"]) < 4 * error
    assert masked["drift"] > kept["drift"] + 2 * error
    assert refined["drift"] > kept["drift"] + 2 * error
    q = np.array(COUNTS) / sum(COUNTS)
    p = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)
    assert kept["chi2"] == pytest.approx(np.median((p**2 / q).sum(axis=1) - 1), rel=1e-4)
    assert kept["kl"] == pytest.approx(np.median((p * np.log(p / q)).sum(axis=1)), rel=1e-4)
    by_user = kept["inputs"]["after"]["chi2"]
    assert by_user["quantile_10"] < by_user["quantile_50"] < by_user["quantile_90"]
    assert by_user["mean"] == pytest.approx(((p**2 / q).sum(axis=1) - 1).mean(), rel=1e-4)
    exact = by_key["exact_popular", "refined", "mask", False]
    assert exact["is_recipe"]
    assert exact["chi2"] is None
    assert exact["kl"] is None
    assert exact["inputs"]["after"]["chi2"] is None


def test_report_json_of_a_set_is_distinct_and_of_unsampled_items_has_no_distance():
    data = tiny_input(counts=torch.tensor([3, 2, 1, 0]))
    config = sampler_config({"type": "popularity", "num_candidates": 3, "distinct": True})
    case = AuditCase("set", config, num_candidates=3, estimators=estimators_for(config))
    report = audit(
        [data],
        [case],
        sampling=SamplingBudget(repeats=16),
        drift=DriftSampling(repeats=16),
        cost_rows=8,
    )
    rows = json.loads(json.dumps(report.to_json(), allow_nan=False))["estimators"]
    assert {row["distinct"] for row in rows} == {True}
    assert {row["chi2"] for row in rows} == {None}
    assert rows[0]["inputs"]["tiny"]["chi2"]["quantile_50"] is None


def test_report_table_fits_a_hundred_columns(report):
    rows = report.rows(report.entries)
    assert {len(row) for row in rows} == {len(report.columns)}
    assert {len(row) for row in report.detail_rows(report.entries)} == {len(report.detail_columns)}
    assert "drift before" in report.detail_columns
    assert rows[-1][0] == "exact popular (recipe)"
    stream = io.StringIO()
    Console(file=stream, width=100).print(report.table())
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in stream.getvalue()
    assert sum("±" in line for line in lines) == len(report.entries)


def test_audit_calls_progress_before_each_measurement():
    calls = []
    audit_twice(progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(done, 5) for done in range(5)]
    assert calls[1][2] == "popularity, n = 3, after"
    assert calls[-1][2] == "full softmax"


def measurements(report):
    return [entry.inputs["after"].to_json() for entry in report.entries]


def test_audit_with_the_same_seed_gives_the_same_measurements():
    once = measurements(audit_twice())
    assert measurements(audit_twice()) == once
    assert measurements(audit_twice(seed=1)) != once


def test_recommendation_depends_on_the_budget():
    assert audit_twice(budget=CostBudget(ms=1e-6)).recommendation()[0] is None
    sentence = audit_twice(budget=CostBudget(ms=1e6)).recommendation()[1]
    assert "choose the full softmax" in sentence


@pytest.mark.parametrize("options", [{"noise": -0.1}, {"noise": math.inf}, {"cost_rows": 0}])
def test_audit_with_impossible_settings_is_refused(options):
    with pytest.raises(ConfigError, match="cost_rows must be at least 1 and noise"):
        audit_twice(**options)
    with pytest.raises(ConfigError, match="at least one input and one case"):
        audit([], [POPULARITY])


def test_synthetic_inputs_have_the_true_softmax():
    config = SyntheticConfig(num_items=50, num_users=30, interactions_mean=8.0)
    untrained, true = synthetic_inputs(20, config)
    assert len(true.query) == 20
    interactions = SyntheticData(config).interactions(0, 30)
    assert true.counts.tolist() == np.bincount(interactions["item_id"], minlength=50).tolist()
    probabilities = torch.softmax(true.query @ true.item_vectors.T, dim=1)
    # Some prefix of the user's history has exactly this softmax and this next item.
    user, positive = int(true.user_ids[4]), int(true.positive_ids[4])
    items = interactions.filter(interactions["user_id"] == user)["item_id"].to_numpy()
    matches = [
        np.allclose(
            SyntheticData(config).log_probs(
                np.array([user]), items[:stop], np.array([0, stop], dtype=np.int64)
            ),
            probabilities[4].log().numpy(),
            atol=1e-4,
        )
        and items[stop] == positive
        for stop in range(1, len(items))
    ]
    assert any(matches)
    logits = untrained.query @ untrained.item_vectors.T
    assert abs(float(logits.mean())) < 0.2
    assert math.isclose(float(logits.std()), 1.0, abs_tol=0.25)
