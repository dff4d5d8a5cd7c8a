"""A model beside the baselines: comparisons, and the sentence with the likely reason."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from rich.console import Console

from candid.baselines import ModelBesideBaselines, ModelFacts, measure_baselines
from candid.evaluation import EvaluationConfig, compare, evaluate

CONFIG = EvaluationConfig(ks=(5,), metric="ndcg@5", filter_seen=False, nll=False)
FACTS = ModelFacts(
    reads_history=True,
    reads_item_features=False,
    is_improving=False,
    num_users=5000,
    num_steps=9000,
)


class Fixed:
    """The same scores for every query."""

    reads_history = needs_history = needs_user = estimates_probability = False

    def __init__(self, scores):
        self.scores = scores

    def score_catalog(self, queries):
        return self.scores.repeat(len(queries), 1)


@pytest.fixture(name="results", scope="module")
def _results(shop):
    return measure_baselines(shop, CONFIG, names=["popularity", "markov"], tuning=False)


@pytest.fixture(name="poor", scope="module")
def _poor(shop):
    return evaluate(Fixed(torch.arange(28.0)), shop, CONFIG, max_length=9)


def test_model_is_compared_with_each_baseline(results, poor):
    beside = ModelBesideBaselines.of(poor, FACTS, results)
    for one, pair in zip(results.results, beside.comparisons, strict=True):
        assert pair == compare(poor, one.report, "ndcg@5")
    assert not beside.beats_best
    best = results.best
    value = poor.metrics["ndcg@5"].value
    assert beside.sentence.startswith(
        f"the model does not beat the best of the 2 baselines measured here, {best.name} (ndcg@5 "
        f"{value:.4f} against {best.value:.4f}, p "
    )
    document = json.loads(json.dumps(beside.to_json()))
    assert document["beats_best"] is False
    assert [one["baseline"] for one in document["comparisons"]] == [
        one["name"] for one in document["results"]["baselines"]
    ]
    screen = Console(width=120)
    with screen.capture() as capture:
        screen.print(beside.table())
    assert f"{beside.comparisons[0].difference:+.4f} [" in capture.get()


def test_better_model_beats_the_best_baseline(results):
    best = results.best
    numerators = best.report.per_user.numerators.copy()
    numerators[:, best.report.per_user.names.index("ndcg@5")] = 1.0
    perfect = dataclasses.replace(
        best.report, per_user=dataclasses.replace(best.report.per_user, numerators=numerators)
    )
    beside = ModelBesideBaselines.of(perfect, FACTS, results)
    assert beside.beats_best
    assert beside.sentence.startswith(
        f"the model beats the best of the 2 baselines measured here, {best.name} (ndcg@5 1.0"
    )
    one = dataclasses.replace(results, results=results.results[:1])
    assert ModelBesideBaselines.of(perfect, FACTS, one).sentence.startswith(
        f"the model beats the only baseline measured here, {best.name} (ndcg@5 1.0"
    )


def test_lead_of_one_user_is_within_chance(results):
    best = results.best
    column = best.report.per_user.names.index("ndcg@5")
    numerators = best.report.per_user.numerators.copy()
    missed = int((numerators[:, column] == 0).argmax())
    numerators[missed, column] = 0.5
    report = dataclasses.replace(
        best.report, per_user=dataclasses.replace(best.report.per_user, numerators=numerators)
    )
    beside = ModelBesideBaselines.of(report, FACTS, results)
    assert not beside.beats_best
    assert beside.sentence.startswith(
        f"the model does not beat the best of the 2 baselines measured here, {best.name}, by more "
        "than chance ("
    )


def test_equal_model_does_not_beat_the_best_baseline(results):
    beside = ModelBesideBaselines.of(results.best.report, FACTS, results)
    assert beside.comparisons[0].difference == 0
    assert not beside.beats_best


@pytest.mark.parametrize(
    ("changes", "counts", "reason"),
    [
        ({}, {}, "tune training.lr"),
        ({"num_users": 40}, {}, "only 40 users to learn from"),
        ({"num_users": 40, "num_steps": 70}, {}, "only 70 steps of training"),
        ({"is_improving": True, "num_steps": 70}, {}, "raise training.epochs"),
        ({"is_improving": True}, {"targets_seen_before": 30}, "filter_seen hides"),
        ({}, {"targets_seen_before": 30, "cold_targets": 30}, "items without a training target"),
        ({"reads_item_features": True}, {"cold_targets": 30}, "tune training.lr"),
        ({}, {"cold_targets": 20}, "tune training.lr"),
        ({"reads_history": False}, {"cold_targets": 30}, "does not read the history"),
        ({"reads_history": False}, {"targets_seen_before": 30}, "does not read the history"),
        ({"reads_history": False}, {"cold_users": 35}, "most users are new and the model"),
    ],
)
def test_likely_reason(results, poor, changes, counts, reason):
    markov = tuple(one for one in results.results if one.name == "markov")
    results = dataclasses.replace(results, results=markov)
    report = dataclasses.replace(poor, counts=dict(poor.counts) | counts)
    beside = ModelBesideBaselines.of(report, dataclasses.replace(FACTS, **changes), results)
    assert reason in beside.sentence.split("likely reason: ")[1]


def test_few_measured_users_are_the_reason_only_of_a_difference_within_chance(results, poor):
    markov = tuple(one for one in results.results if one.name == "markov")
    beside = ModelBesideBaselines.of(poor, FACTS, dataclasses.replace(results, results=markov))
    few, clear = (
        dataclasses.replace(
            beside, comparisons=(dataclasses.replace(beside.comparisons[0], users=7, p_value=p),)
        )
        for p in (0.06, 0.04)
    )
    assert few.sentence.endswith(
        "likely reason: 7 users are too few to measure a difference; hold out more users"
    )
    assert "too few" not in clear.sentence


def test_sentence_where_both_are_perfect(results):
    """A reason for a poor result would be wrong: there is no better one."""
    best = results.best
    perfect = _with_value(best.report, 1.0)
    both = dataclasses.replace(
        results, results=(dataclasses.replace(best, report=perfect), *results.results[1:])
    )
    few_steps = dataclasses.replace(FACTS, num_steps=32)
    beside = ModelBesideBaselines.of(perfect, few_steps, both)
    assert beside.sentence == (
        f"the model and the best of the 2 baselines measured here, {best.name}, are both perfect "
        f"(ndcg@5 1.0000, {beside.comparisons[0].users} users), so that nothing can be gained"
    )
    equal = _with_value(best.report, 0.5)
    both = dataclasses.replace(results, results=(dataclasses.replace(best, report=equal),))
    beside = ModelBesideBaselines.of(equal, few_steps, both)
    assert beside.sentence.endswith(
        "; likely reason: only 32 steps of training; raise "
        "training.epochs or lower batches.batch_size"
    )


def _with_value(report, value):
    """Return a report with the same value of ndcg@5 for each user."""
    numerators = report.per_user.numerators.copy()
    numerators[:, report.per_user.names.index("ndcg@5")] = value
    metric = dataclasses.replace(report.metrics["ndcg@5"], value=value)
    return dataclasses.replace(
        report,
        per_user=dataclasses.replace(report.per_user, numerators=numerators),
        metrics=dict(report.metrics) | {"ndcg@5": metric},
    )
