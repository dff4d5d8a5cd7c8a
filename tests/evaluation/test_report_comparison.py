"""Comparison of several reports against ``compare`` on pairs of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from candid.errors import ConfigError, UnknownNameError
from candid.evaluation import EvaluationConfig, compare, compare_reports, evaluate
from candid.evaluation.report_comparison import holm

CONFIG = EvaluationConfig(
    ks=(5, 10), popularity_slices=3, history_slices=(3, 6), confidence=0.9, seed=4
)


@pytest.fixture(scope="module")
def reports(make_random, make_model):
    dataset, model = make_random(num_users=120, max_targets=2)
    others = {"first": model}
    for number, name in enumerate(("second", "third"), 1):
        others[name] = make_model(model.users, model.items.roll(number, 0))
    return {name: evaluate(one, dataset, CONFIG, max_length=5) for name, one in others.items()}


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        # The second smallest times 3 is below the smallest times 4; it must not become smaller.
        ([0.5, 0.02, 0.02, 0.6], [1, 0.08, 0.08, 1]),
        ([0.001, 0.0005], [0.001, 0.001]),
    ],
)
def test_holm_of_p_values_computed_by_hand(p_values, expected):
    np.testing.assert_allclose(holm(p_values), expected)


def test_each_report_is_compared_with_the_first(reports):
    comparison = compare_reports(reports, confidence=0.9, seed=4)
    assert comparison.metrics == ("ndcg@10", "recall@10", "nll")
    for metric in comparison.metrics:
        p_values = []
        for name in ("second", "third"):
            expected = compare(reports[name], reports["first"], metric, confidence=0.9, seed=4)
            assert comparison.differences[metric][name].comparison == expected
            p_values.append(expected.p_value)
        adjusted = [one.adjusted_p_value for one in comparison.differences[metric].values()]
        low, high = sorted(range(2), key=p_values.__getitem__)
        assert adjusted[low] == min(2 * p_values[low], 1)
        assert adjusted[high] == max(adjusted[low], p_values[high])
        values = [reports[name].metrics[metric].value for name in ("second", "first")]
        difference = comparison.differences[metric]["second"].comparison.difference
        assert difference == pytest.approx(values[0] - values[1], abs=1e-12)


def test_slices_are_compared_with_the_slices_of_the_first(reports):
    comparison = compare_reports(reports)
    assert (
        set(comparison.slices)
        == set(reports["first"].slices)
        >= {
            "target_popularity",
            "history_length",
        }
    )
    for slicing, groups in comparison.slices.items():
        for number, group in enumerate(groups):
            first, second = (reports[name].slices[slicing][number] for name in ("first", "second"))
            assert group.label == first.label == second.label
            assert group.users == first.queries_ranked
            assert group.values["second"] == second.metrics["ndcg@10"]
            expected = compare(second.per_user, first.per_user, "ndcg@10")
            assert group.differences["second"].difference == expected.difference
            assert group.differences["second"].low == expected.low


def test_group_that_a_report_lacks_has_no_difference(reports):
    first = reports["first"].slices["history_length"]
    without = replace(reports["second"], slices={"history_length": first[:-1]})
    comparison = compare_reports({"a": reports["first"], "b": without})
    last = comparison.slices["history_length"][-1]
    assert (last.values["b"], last.differences["b"]) == (None, None)
    assert comparison.slices["history_length"][0].differences["b"].difference == 0
    assert comparison.slices["target_popularity"][0].differences["b"] is None
    json.dumps(comparison.to_json())


def test_metrics_that_a_report_lacks_are_left_out_or_refused(reports):
    second = dict(reports["second"].metrics)
    del second["nll"]
    both = {"a": reports["first"], "b": replace(reports["second"], metrics=second)}
    assert compare_reports(both).metrics == ("ndcg@10", "recall@10")
    with pytest.raises(UnknownNameError, match="unknown metric 'nll'"):
        compare_reports(both, ["nll"])
    with pytest.raises(ConfigError, match="at least two reports"):
        compare_reports({"a": reports["first"]})


def test_comparison_as_json_names_the_reference(reports):
    document = json.loads(json.dumps(compare_reports(reports).to_json()))
    assert document["reference"] == "first"
    assert document["reports"]["first"]["differences"] == {}
    difference = document["reports"]["third"]["differences"]["recall@10"]
    assert set(difference) == {
        "metric", "difference", "low", "high", "p_value", "users", "adjusted_p_value"
    }  # fmt: skip
    group = document["slices"]["history_length"][0]
    assert set(group["differences"]["third"]) == {"difference", "low", "high", "users"}
