"""Several baselines, fitted, tuned and measured."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
from rich.console import Console

from candid.baselines import BASELINES, measure_baselines, training_rows
from candid.baselines.popularity import Popularity
from candid.baselines.report import table, to_json
from candid.data import Role
from candid.errors import ConfigError, DataError, UnknownNameError
from candid.evaluation import EvaluationConfig, compare, evaluate

# ALS needs an extra.
NAMES = sorted(name for name in BASELINES if name != "als" or find_spec("implicit"))
CONFIG = EvaluationConfig(ks=(1, 5), metric="ndcg@5", filter_seen=False, popularity_slices=2)


@pytest.fixture(name="results", scope="module")
def _results(shop):
    return measure_baselines(shop, CONFIG)


def test_every_baseline_is_tuned_and_ranked(results):
    assert sorted(one.name for one in results.results) == NAMES
    values = [one.report.metrics["ndcg@5"].value for one in results.results]
    assert values == sorted(values, reverse=True)
    assert results.best is results.results[0]
    assert results.tuned_on == 30  # every fourth user has no validation target
    for one in results.results:
        grid = BASELINES[one.name].grid
        assert one.trials == 1 + sum(len(values) - 1 for values in grid.values())
        assert one.is_complete
        assert one.seconds > 0
        assert set(one.settings) == set(BASELINES[one.name].Config.model_fields)
    with pytest.raises(KeyError):
        results.results[0].report.metrics["nll"]


def test_measurement_is_that_of_evaluate(shop, results):
    one = next(one for one in results.results if one.name == "popularity")
    model = Popularity.fit(training_rows(shop), Popularity.Config())
    report = evaluate(model, shop, CONFIG, max_length=1)
    assert one.report.metrics == report.metrics
    assert one.report.slices.keys() == report.slices.keys()


def test_settings_have_the_best_validation_metric(shop, results):
    one = next(one for one in results.results if one.name == "markov")
    baseline = BASELINES["markov"]
    for settings in ({}, one.settings):
        model = baseline.fit(training_rows(shop), baseline.Config(**settings))
        report = evaluate(model, shop, CONFIG, role=Role.VALIDATION, max_length=99)
        value = report.metrics["ndcg@5"].value
        if settings:
            assert value == pytest.approx(one.validation, abs=1e-12)
        else:
            assert value <= one.validation


def test_results_as_table_and_json(results):
    document = json.loads(json.dumps(to_json(results)))
    assert document["metric"] == "ndcg@5"
    assert document["split"] == "test"
    first, second = document["baselines"][:2]
    assert first["compared_to_best"] is None
    expected = compare(results.results[1].report, results.results[0].report, "ndcg@5")
    assert second["compared_to_best"]["difference"] == expected.difference <= 0
    assert second["compared_to_best"]["p_value"] == expected.p_value
    screen = Console(width=160)
    with screen.capture() as capture:
        screen.print(table(results))
    text = capture.get()
    for one in results.results:
        assert one.name in text
    assert "settings tuned on 30 validation users" in text


def test_settings_stay_at_their_defaults_without_validation(make_dataset):
    rng = np.random.default_rng(0)
    histories = [
        [*((int(i), Role.TRAIN) for i in rng.choice(9, 4)), (int(rng.integers(9)), Role.TEST)]
        for _ in range(20)
    ]
    results = measure_baselines(make_dataset(histories, 9), CONFIG, names=["markov", "popularity"])
    assert results.tuned_on is None
    assert {one.validation for one in results.results} == {None}
    markov = next(one for one in results.results if one.name == "markov")
    assert markov.settings == BASELINES["markov"].Config().model_dump()
    screen = Console(width=160)
    with screen.capture() as capture:
        screen.print(table(results))
    assert "default settings, not tuned" in capture.get()


def test_time_limit_measures_the_first_and_names_the_others(shop):
    results = measure_baselines(shop, CONFIG, names=["markov", "item_knn"], seconds=0)
    assert [one.name for one in results.results] == ["markov"]
    assert not results.results[0].is_complete
    assert list(results.skipped) == ["item_knn"]
    assert "no time" in results.skipped["item_knn"]


def test_baseline_that_cannot_be_fitted_is_skipped_or_refused(shop, monkeypatch):
    ease = BASELINES["ease"]
    monkeypatch.setitem(
        ease.Config.model_fields, "max_items", ease.Config.model_fields["max_items"]
    )
    monkeypatch.setattr(ease, "fit", classmethod(_refuse))
    results = measure_baselines(shop, CONFIG, tuning=False)
    assert results.skipped["ease"] == "too many items"
    with pytest.raises(ConfigError, match="too many items"):
        measure_baselines(shop, CONFIG, names=["ease"], tuning=False)


def _refuse(cls, rows, config):
    raise ConfigError("too many items")


def test_unknown_name_is_refused(shop):
    with pytest.raises(UnknownNameError, match="did you mean 'markov'"):
        measure_baselines(shop, CONFIG, names=["markow"])


def _small(make_dataset, histories, num_items):
    roles = {"t": Role.TRAIN, "v": Role.VALIDATION, "e": Role.TEST}
    return make_dataset([[(i, roles[r]) for i, r in row] for row in histories], num_items)


def test_three_users_are_measured(make_dataset):
    dataset = _small(
        make_dataset,
        [
            [(0, "t"), (1, "t"), (2, "v"), (3, "e")],
            [(1, "t"), (0, "v"), (2, "e")],
            [(2, "t"), (1, "v"), (0, "e")],
        ],
        4,
    )
    config = CONFIG.model_copy(update={"ks": (1, 4), "metric": "ndcg@4"})
    results = measure_baselines(dataset, config)
    assert sorted(one.name for one in results.results) == NAMES
    assert all(0 < one.value <= 1 for one in results.results)


def test_catalog_of_one_item_is_measured(make_dataset):
    dataset = _small(make_dataset, [[(0, "t"), (0, "v"), (0, "e")]] * 3, 1)
    config = CONFIG.model_copy(update={"ks": (1,), "metric": "ndcg@1"})
    results = measure_baselines(dataset, config)
    assert sorted(one.name for one in results.results) == NAMES
    assert {one.value for one in results.results} == {1.0}


def test_hidden_repeats_are_refused(make_dataset):
    dataset = _small(make_dataset, [[(0, "t"), (1, "t"), (0, "v"), (1, "e")]] * 3, 5)
    with pytest.raises(DataError, match=r"evaluation\.filter_seen = false"):
        measure_baselines(dataset, CONFIG.model_copy(update={"filter_seen": True}))
    results = measure_baselines(dataset, CONFIG)
    assert results.best.value > 0.5


def test_dataset_without_training_rows_is_refused(make_dataset):
    dataset = _small(make_dataset, [[(0, "v"), (1, "e")]] * 3, 5)
    with pytest.raises(DataError, match="no training interaction"):
        measure_baselines(dataset, CONFIG)
