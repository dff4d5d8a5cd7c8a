import json
import math

import numpy as np
import pytest
import torch

from candid.audit import (
    ALL_ESTIMATORS,
    AuditCase,
    CostBudget,
    EstimatorStatistics,
    SamplingBudget,
    audit,
    estimators_for,
    sampler_config,
)
from candid.audit.synthetic_inputs import synthetic_inputs
from candid.errors import ConfigError
from candid.synthetic import SyntheticConfig, SyntheticData

from .conftest import tiny_input

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


def audit_twice(**options):
    inputs = [tiny_input(name=name) for name in ("before", "after")]
    settings = {"sampling": SamplingBudget(repeats=16), "cost_rows": 8}
    return audit(inputs, [POPULARITY, EXACT_POPULAR], **(settings | options))


@pytest.fixture(scope="module")
def report():
    return audit_twice()


def test_audit_measures_every_estimator_on_every_input(report):
    assert len(report.entries) == 4 + 3
    for entry in report.entries:
        assert list(entry.statistics) == ["before", "after"]
        # The same model twice, with the same samples.
        assert entry.statistics["before"] == entry.statistics["after"]
        assert list(entry.statistics["after"]) == ["all", "rare", "middle", "popular"]
        assert entry.statistics["after"]["all"].num_rows == 3
        assert entry.cost.ms > 0
    assert [entry.num_scores for entry in report.entries] == [3] * 4 + [2 + 256] * 3
    assert report.ranked_by == "after"


def test_report_json_is_complete_and_ranked(report):
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    errors = [
        EstimatorStatistics(**entry["statistics"]["after"]["all"]).error_after(100)
        for entry in document["entries"]
    ]
    assert errors == sorted(errors)
    assert document["inputs"]["after"]["slices"] == {"rare": 1, "middle": 1, "popular": 1}
    first = document["entries"][0]
    assert first["sampler"]["type"] == "exact_popular"
    assert sampler_config(first["sampler"]) == EXACT_CONFIG
    assert "choose" in document["recommendation"]["sentence"]


def test_report_table_has_a_cell_for_every_column(report):
    table = report.table()
    rows = report.rows(report.entries)
    assert {len(row) for row in rows} == {len(report.columns)} == {len(table.columns)}
    assert "bias before" in report.columns
    assert rows[-1][0] == "exact popular (recipe)"


def test_audit_calls_progress_before_each_measurement():
    calls = []
    audit_twice(progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(done, 5) for done in range(5)]
    assert calls[1][2] == "popularity, n = 3, after"
    assert calls[-1][2] == "full softmax"


def test_audit_with_the_same_seed_gives_the_same_statistics(report):
    again = audit_twice()
    assert [e.statistics for e in again.entries] == [e.statistics for e in report.entries]
    other = audit_twice(seed=1)
    assert [e.statistics for e in other.entries] != [e.statistics for e in report.entries]


def test_recommendation_depends_on_the_budget():
    assert audit_twice(budget=CostBudget(ms=1e-6)).recommendation()[0] is None
    sentence = audit_twice(budget=CostBudget(ms=1e6)).recommendation()[1]
    assert "choose the full softmax" in sentence


@pytest.mark.parametrize("options", [{"averaged_steps": 0}, {"cost_rows": 0}])
def test_audit_with_impossible_settings_is_refused(options):
    with pytest.raises(ConfigError, match="at least 1"):
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
