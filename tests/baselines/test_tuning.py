"""The coordinate search over a grid."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from candid.baselines.baseline import Baseline
from candid.baselines.registry import BASELINES
from candid.baselines.training_rows import training_rows
from candid.baselines.tuning import tune
from candid.component import ComponentConfig

FITS: list[Any] = []


class Line(Baseline):
    """A baseline whose settings alone decide its metric."""

    class Config(ComponentConfig):
        first: int = 1
        second: int = 1

    grid: ClassVar[Any] = {"first": (0, 1, 2, 3), "second": (1, 5, 9)}
    query_settings = frozenset({"first"})

    @classmethod
    def fit(cls, rows, config):
        FITS.append(config)
        return cls(config, rows.target_counts)

    def score_catalog(self, queries):
        return torch.zeros(len(queries), len(self._fallback))


def test_search_finds_the_best_value_of_each_setting_in_turn(shop):
    FITS.clear()
    tried = []

    def measure(model):
        tried.append((model.config.first, model.config.second))
        return -abs(model.config.first - 2) - abs(model.config.second - 6) / 10

    tuned = tune(Line, training_rows(shop), measure)
    assert tried == [(1, 1), (0, 1), (2, 1), (3, 1), (2, 5), (2, 9)]
    assert (tuned.model.config.first, tuned.model.config.second) == (2, 5)
    assert (tuned.trials, tuned.is_complete) == (6, True)
    assert tuned.validation == -0.1
    # A setting that only queries read needs no new fit.
    assert [(config.first, config.second) for config in FITS] == [(1, 1), (2, 5), (2, 9)]


def test_search_stops_when_the_time_is_over(shop):
    rounds = iter([False, True])
    tuned = tune(Line, training_rows(shop), lambda model: 1.0, is_over=lambda: next(rounds))
    assert (tuned.trials, tuned.is_complete) == (2, False)
    assert tuned.model.config == Line.Config()


def test_defaults_are_fitted_without_a_metric(shop):
    tuned = tune(Line, training_rows(shop), None)
    assert (tuned.validation, tuned.trials) == (None, 0)
    assert tuned.model.config == Line.Config()


def test_grids_hold_valid_settings():
    for name in BASELINES:
        baseline = BASELINES[name]
        for setting, values in baseline.grid.items():
            assert getattr(baseline.Config(), setting) in values
            for value in values:
                assert getattr(baseline.Config(**{setting: value}), setting) == value
        assert baseline.query_settings <= set(baseline.Config.model_fields)
