"""Settings that cannot work are refused with the names that would."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig


def test_the_early_stopping_metric_is_one_that_is_reported():
    assert EvaluationConfig(ks=(5,), metric="recall@5").metric == "recall@5"
    with pytest.raises(ValidationError, match=r"'ndcg@10' is not reported; known: recall@1, "):
        EvaluationConfig(ks=(1,))


def test_cut_offs_are_sorted_and_distinct():
    assert EvaluationConfig(ks=(10, 1, 10)).ks == (1, 10)
    with pytest.raises(ValidationError, match="at least 1, got 0"):
        EvaluationConfig(ks=(0, 10))


@pytest.mark.parametrize(
    ("num_items", "cure"),
    [
        (50, r"set evaluation\.ks = \[1, 5, 10, 20\]$"),
        (7, r'set evaluation\.ks = \[1, 5\] and evaluation\.metric = "ndcg@5"$'),
    ],
)
def test_cut_offs_beyond_the_catalog_are_refused_with_some_that_do(num_items, cure):
    with pytest.raises(ConfigError, match=f"100 exceeds the {num_items} items.*{cure}"):
        EvaluationConfig().check_fits(num_items)
    EvaluationConfig().check_fits(100)


def test_during_training_only_the_numbers():
    config = EvaluationConfig(validation_users=7, max_users=99).during_training()
    assert config.max_users == 7
    assert (config.bootstrap, config.popularity_slices, config.history_slices) == (0, 0, ())


def test_every_field_is_described():
    assert all(field.description for field in EvaluationConfig.model_fields.values())
