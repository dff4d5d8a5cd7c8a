"""Slicings of targets and users."""

from __future__ import annotations

import numpy as np
import pytest

from candid.evaluation.slices import by_history_length, by_popularity, by_warmth


def test_popularity_slices_hold_about_the_same_interactions():
    counts = np.random.default_rng(0).lognormal(3, 1, 5000).astype(np.int64) + 1
    slicing = by_popularity(counts, 5)
    mass = np.bincount(slicing.groups, weights=counts, minlength=6)
    largest_tie = max(counts[counts == value].sum() for value in np.unique(counts))
    assert mass[0] == 0
    assert np.abs(np.cumsum(mass[1:]) - counts.sum() * np.arange(1, 6) / 5).max() <= largest_tie
    assert mass[1:].min() > 0


def test_popularity_slices_are_ordered_and_keep_ties_together():
    counts = np.array([0, 7, 7, 1, 50, 7, 3, 0])
    groups = by_popularity(counts, 3).groups
    order = np.argsort(counts)
    assert (np.diff(groups[order]) >= 0).all()
    assert len(set(groups[counts == 7])) == 1
    assert (groups[counts == 0] == 0).all()
    assert (groups[counts > 0] >= 1).all()
    assert groups.max() <= 3


def test_popularity_labels_name_the_counts():
    slicing = by_popularity(np.array([0, 1, 1, 2, 4]), 2)
    assert slicing.labels == ("untrained", "1/2 (count 1 to 2)", "2/2 (count 4 to 4)")


def test_popularity_labels_of_expected_counts():
    """With ``drop_last`` counts are expected numbers of targets."""
    slicing = by_popularity(np.array([0, 0.8, 1.6, 1.6, 123456.04]), 2)
    assert slicing.labels == ("untrained", "1/2 (count 0.8 to 1.6)", "2/2 (count 123456 to 123456)")


def test_popularity_slices_of_shares_of_one_target():
    """Counts below 1 in all are divided like others."""
    counts = np.array([0.01, 0.02, 0.03, 0.04])
    assert (
        by_popularity(counts, 2).groups.tolist() == by_popularity(100 * counts, 2).groups.tolist()
    )


def test_popularity_slices_without_training_are_one_slice():
    assert by_popularity(np.zeros(4, dtype=np.int64), 3).groups.tolist() == [0, 0, 0, 0]


def test_warmth_labels():
    slicing = by_warmth(np.array([0, 3, 1]))
    assert [slicing.labels[group] for group in slicing.groups] == ["cold", "warm", "warm"]


@pytest.mark.parametrize(
    ("length", "label"),
    [(0, "0"), (1, "1-4"), (4, "1-4"), (5, "5-9"), (9, "5-9"), (10, "10+"), (999, "10+")],
)
def test_history_length_labels(length, label):
    slicing = by_history_length(np.array([length]), (1, 5, 10))
    assert slicing.labels[slicing.groups[0]] == label
