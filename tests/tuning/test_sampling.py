"""Choices of a search: values within the space, each once, and the median rule of pruning."""

import itertools
from statistics import median

import numpy as np

from candid.tuning.sampling import FULL_TRIALS, is_worse, next_values
from candid.tuning.space import Choices, Dimension, Range, Space
from candid.tuning.trials import Trial, TrialStatus

SPACE = Space(
    {
        "a": Dimension("a", Range(1e-4, 1e-1, log=True)),
        "b": Dimension("b", Range(0.0, 0.5, step=0.2)),
        "c": Dimension("c", Range(2, 9)),
        "d": Dimension("d", Choices(("x", {"type": "y"}))),
    }
)


def complete(number, values, best):
    return Trial(number, values, TrialStatus.COMPLETE, validations={1: best}, best=best)


def searched(number, score, seed=0):
    trials = []
    for n in range(number):
        values = next_values(SPACE, trials, seed)
        trials.append(complete(n, values, score(values)))
    return [trial.values for trial in trials]


def test_values_lie_in_the_space_and_follow_the_seed():
    chosen = searched(20, lambda values: -values["a"])
    for values in chosen:
        assert all(SPACE.dimensions[key].values.contains(value) for key, value in values.items())
    assert chosen == searched(20, lambda values: -values["a"])
    assert chosen != searched(20, lambda values: -values["a"], seed=1)


def test_search_moves_to_better_values():
    chosen = searched(40, lambda values: -abs(np.log10(values["a"]) + 2))
    distance = [abs(np.log10(values["a"]) + 2) for values in chosen]
    assert np.mean(distance[-15:]) < 0.7 * np.mean(distance[:8])


def test_values_are_not_repeated_and_a_finite_space_ends():
    space = Space({"d": SPACE.dimensions["d"], "c": Dimension("c", Range(1, 3))})
    trials = []
    while (values := next_values(space, trials, 0)) is not None:
        trials.append(complete(len(trials), values, 0.5))
    expected = [{"d": d, "c": c} for d, c in itertools.product(("x", {"type": "y"}), (1, 2, 3))]
    found = [trial.values for trial in trials]
    assert len(found) == len(expected)
    assert all(values in found for values in expected)


def test_trial_without_values_of_the_space_is_allowed():
    assert next_values(SPACE, [complete(0, {}, 0.1)], 0).keys() == SPACE.dimensions.keys()


def test_median_rule_against_enumeration():
    rng = np.random.default_rng(0)
    for _ in range(30):
        curves = rng.random((5, 4)).cumsum(1)
        trials = [
            Trial(n, {}, TrialStatus.COMPLETE, 1, dict(enumerate(curve.tolist(), 1)), max(curve))
            for n, curve in enumerate(curves)
        ]
        own = rng.random(3).cumsum() * 1.5
        running = Trial(5, {}, validations=dict(enumerate(own.tolist(), 1)))
        expected = max(own) < median(curves[:, 2].tolist())
        assert is_worse(running, trials, 1) == expected


def test_no_trial_is_pruned_before_enough_complete_ones_or_in_the_first_epochs():
    trials = [complete(n, {}, 0.9) for n in range(FULL_TRIALS)]
    running = Trial(FULL_TRIALS, {}, validations={1: 0.1})
    assert is_worse(running, trials, 1)
    assert not is_worse(running, trials[:-1], 1)
    assert not is_worse(running, trials, 2)
    pruned = [Trial(9, {}, TrialStatus.PRUNED, validations={1: 0.1}) for _ in range(5)]
    assert not is_worse(running, trials[:-1] + pruned, 1)


def test_values_of_steps_that_are_inexact_in_binary():
    """Six steps of 0.1 are above 0.6 in binary; warnings are errors here."""
    space = Space({"a": Dimension("a", Range(0.0, 0.6, step=0.1))})
    drawn = {next_values(space, [Trial(0, {})], seed)["a"] for seed in range(12)}
    assert drawn <= {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6}
    assert len(drawn) > 2
