"""Evaluation settings that cannot work are refused with advice."""

from __future__ import annotations

import pytest

from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig


def test_metric_that_is_not_reported():
    assert EvaluationConfig(ks=(5,), metric="recall@5").metric == "recall@5"
    with pytest.raises(ConfigError, match=r"'ndcg@10' is not reported; known: recall@1, "):
        EvaluationConfig(ks=(1,))


def test_ks_are_sorted_and_distinct():
    assert EvaluationConfig(ks=(10, 1, 10)).ks == (1, 10)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        EvaluationConfig(ks=(0, 10))


@pytest.mark.parametrize(
    ("num_items", "advice"),
    [
        (50, r"set evaluation\.ks = \[1, 5, 10, 20\]$"),
        (7, r'set evaluation\.ks = \[1, 5\] and evaluation\.metric = "ndcg@5"$'),
    ],
)
def test_ks_beyond_the_catalog(num_items, advice):
    with pytest.raises(ConfigError, match=f"100 exceeds the {num_items} items.*{advice}"):
        EvaluationConfig().check_fits(num_items)
    EvaluationConfig().check_fits(100)


def test_during_training_has_no_intervals_and_no_slices():
    config = EvaluationConfig(validation_users=7, max_users=99).during_training()
    assert config.max_users == 7
    assert (config.intervals, config.popularity_slices, config.history_slices) == (False, 0, ())


def test_every_field_has_a_description():
    assert all(field.description for field in EvaluationConfig.model_fields.values())


def test_metrics_are_known_names_without_cut_offs():
    config = EvaluationConfig(metrics=("coverage", "ndcg", "ndcg"))
    assert config.metrics == ("ndcg", "coverage")
    assert "intra_list_diversity" not in EvaluationConfig().metrics
    for names, message in [
        (("ndgc",), "unknown metric 'ndgc': did you mean 'ndcg'"),
        (("ndcg@10",), "write 'ndcg', not 'ndcg@10': evaluation.ks lists the cut-offs"),
        (("ndcg", "nll"), "'nll' has no cut-off and its own key: evaluation.nll"),
        (("coverage",), "metrics must list one of recall, hit_rate, "),
        (("recall",), "metric 'ndcg@10' is not reported; known: recall@1, "),
        ((), "metrics must list one of recall, "),
    ]:
        with pytest.raises(ConfigError, match=message):
            EvaluationConfig(metrics=names)


def test_intra_list_diversity_needs_two_ranks():
    with pytest.raises(ConfigError, match="at least 2 in ks"):
        EvaluationConfig(ks=(1,), metric="ndcg@1", metrics=("ndcg", "intra_list_diversity"))
