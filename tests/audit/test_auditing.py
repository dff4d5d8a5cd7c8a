import json
import math

import numpy as np
import pytest
import torch

from candid.audit import (
    REFINED,
    Budget,
    Effort,
    Finding,
    Plan,
    audit,
    sampler_config,
)
from candid.audit.world_subjects import world_subjects
from candid.errors import ConfigError
from candid.synthetic import SyntheticConfig, SyntheticData

from .conftest import tiny_subject

POPULARITY = Plan("popularity", sampler_config({"type": "popularity", "num_candidates": 3}), 3)
HEAD = Plan(
    "head",
    sampler_config({"type": "exact_popular", "num_exact": 2, "rest": {"type": "uniform"}}),
    3,
    REFINED,
    is_yours=True,
)


def two_audited(**options):
    subjects = [tiny_subject(name=name) for name in ("before", "after")]
    settings = {"effort": Effort(draws=16), "cost_rows": 8}
    return audit(subjects, [POPULARITY, HEAD], **(settings | options))


@pytest.fixture(scope="module")
def report():
    return two_audited()


def test_every_variant_of_every_plan_is_measured_on_every_subject(report):
    assert len(report.entries) == 4 + 2
    for entry in report.entries:
        assert list(entry.findings) == ["before", "after"]
        # The same model twice, the same draws: the same findings.
        assert entry.findings["before"] == entry.findings["after"]
        assert list(entry.findings["after"]) == ["all", "tail", "middle", "head"]
        assert entry.findings["after"]["all"].rows == 3
        assert entry.cost.ms > 0
    assert [entry.scores for entry in report.entries] == [3] * 4 + [2 + 256] * 2
    assert report.judged == "after"


def test_the_json_is_whole_and_ranked(report):
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    errors = [
        Finding(**entry["findings"]["after"]["all"]).error_after(100)
        for entry in document["entries"]
    ]
    assert errors == sorted(errors)
    assert document["subjects"]["after"]["slices"] == {"tail": 1, "middle": 1, "head": 1}
    first = document["entries"][0]
    assert first["sampler"]["type"] == "exact_popular"
    assert sampler_config(first["sampler"]) == HEAD.config
    assert "choose" in document["recommendation"]["sentence"]


def test_the_table_has_a_cell_for_every_column(report):
    table = report.table()
    rows = report.rows(report.entries)
    assert {len(row) for row in rows} == {len(report.columns)} == {len(table.columns)}
    assert "bias before" in report.columns
    assert rows[-1][0] == "head (yours)"


def test_progress_is_told_before_each_measurement():
    told = []
    two_audited(progress=lambda *said: told.append(said))
    assert [said[:2] for said in told] == [(done, 5) for done in range(5)]
    assert told[1][2] == "popularity, n = 3, after"
    assert told[-1][2] == "full softmax"


def test_the_same_seed_gives_the_same_findings(report):
    again = two_audited()
    assert [e.findings for e in again.entries] == [e.findings for e in report.entries]
    other = two_audited(seed=1)
    assert [e.findings for e in other.entries] != [e.findings for e in report.entries]


def test_the_budget_decides_the_recommendation():
    assert two_audited(budget=Budget(ms=1e-6)).recommendation()[0] is None
    assert "full softmax: exact" in two_audited(budget=Budget(ms=1e6)).recommendation()[1]


@pytest.mark.parametrize("options", [{"averaged": 0}, {"cost_rows": 0}])
def test_settings_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError, match="at least 1"):
        two_audited(**options)
    with pytest.raises(ConfigError, match="at least one subject and one plan"):
        audit([], [POPULARITY])


def test_the_world_is_a_subject_whose_softmax_is_the_truth():
    config = SyntheticConfig(num_items=50, num_users=30, interactions_mean=8.0)
    untrained, true = world_subjects(20, config)
    assert len(true.query) == 20
    log = SyntheticData(config).interactions(0, 30)
    assert true.counts.tolist() == np.bincount(log["item_id"], minlength=50).tolist()
    probabilities = torch.softmax(true.query @ true.item_vectors.T, dim=1)
    # One user's row, found again by hand: some prefix of the history has this very softmax.
    user, positive = int(true.user_ids[4]), int(true.positive_ids[4])
    items = log.filter(log["user_id"] == user)["item_id"].to_numpy()
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
