"""Samplers without some items, against the distribution that they state."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from candid.samplers import InBatch, Mixture, Popularity, Uniform


def rows_of(positive_ids):
    ids = torch.tensor(positive_ids)
    return ids, torch.arange(len(ids)), torch.zeros(len(ids), 2)


def expected(kind, counts, excluded):
    """Q outside the excluded items, from its definition."""
    weights = [1.0 if kind == "uniform" else float(c) ** 0.7 for c in counts]
    left = [0.0 if d in excluded else w for d, w in enumerate(weights)]
    return [w / sum(left) for w in left]


def sampler_of(kind, counts, num_candidates, **options):
    if kind == "uniform":
        return Uniform(len(counts), num_candidates=num_candidates, **options)
    return Popularity(torch.tensor(counts), num_candidates=num_candidates, exponent=0.7, **options)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 40), min_size=3, max_size=15),
    excluded=st.sets(st.integers(0, 14), min_size=1),
    seed=st.integers(0, 10**6),
)
def test_samples_follow_the_renormalised_q(kind, counts, excluded, seed):
    excluded = {d for d in excluded if d < len(counts)}
    assume(excluded and len(excluded) < len(counts))
    assume(any(count for d, count in enumerate(counts) if d not in excluded))
    n = 4000
    whole = sampler_of(kind, counts, n)
    excluded_ids = torch.tensor(sorted(excluded, key=lambda d: (d * 7) % 5))  # in any order
    rest = whole.excluding(excluded_ids)
    q = expected(kind, counts, excluded)
    sampled = rest.sample(*rows_of([0]), torch.Generator().manual_seed(seed))
    occurrences = torch.bincount(sampled.ids, minlength=len(counts)).tolist()
    reachable = [d for d, p in enumerate(q) if p > 0]
    assert all(occurrences[d] == 0 for d in range(len(counts)) if q[d] == 0)
    if len(reachable) > 1:
        chance = stats.chisquare([occurrences[d] for d in reachable], [n * q[d] for d in reachable])
        assert chance.pvalue > 1e-6
    expected_counts = rest.log_expected_count_of(torch.arange(len(counts)), *rows_of([0])).tolist()
    for log_expected_count, p in zip(expected_counts, q, strict=True):
        assert log_expected_count == (pytest.approx(math.log(n * p), abs=1e-5) if p else -math.inf)
    # The sampler itself is unchanged.
    again = whole.log_expected_count_of(torch.arange(len(counts)), *rows_of([0])).exp()
    assert float(again.sum()) == pytest.approx(n, rel=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_sets_state_inclusion_probabilities_of_the_other_items(kind):
    counts, excluded = [9, 4, 2, 1, 1], {0, 3}
    rest = sampler_of(kind, counts, 5, distinct=True).excluding(torch.tensor([0, 3]))
    q = expected(kind, counts, excluded)
    expected_counts = rest.log_expected_count_of(torch.arange(5), *rows_of([0])).exp().tolist()
    assert expected_counts == pytest.approx([1 - (1 - p) ** 5 for p in q], rel=1e-5)
    sampled = rest.sample(*rows_of([0]), torch.Generator().manual_seed(1))
    assert sampled.num_samples is None
    assert len(set(sampled.ids.tolist())) == len(sampled.ids) <= 3


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_single_remaining_item_is_certain(kind):
    counts = [0.3, 0.1, 0.7, 0.2, 0.9]
    for distinct in (False, True):
        rest = sampler_of(kind, counts, 5, distinct=distinct).excluding(torch.tensor([4, 0, 1, 3]))
        sampled = rest.sample(*rows_of([2]), torch.Generator().manual_seed(1))
        assert set(sampled.ids.tolist()) == {2}
        assert sampled.log_expected_count_positive.exp().tolist() == pytest.approx(
            [1.0 if distinct else 5.0]
        )


@pytest.mark.parametrize("excluded", [[0, 1, 2, 3], [0, 1, 2]])
def test_excluding_every_item_returns_the_sampler_itself(excluded):
    popularity = Popularity(torch.tensor([5, 2, 1, 0]), num_candidates=8)
    assert popularity.excluding(torch.tensor(excluded)) is popularity
    uniform = Uniform(4, num_candidates=8)
    assert (uniform.excluding(torch.tensor(excluded)) is uniform) == (len(excluded) == 4)


def test_excluding_twice_excludes_both():
    once = Uniform(6, num_candidates=4).excluding(torch.tensor([1, 5]))
    rest = once.excluding(torch.tensor([2, 1]))
    expected_counts = rest.log_expected_count_of(torch.arange(6), *rows_of([0])).exp().tolist()
    assert expected_counts == pytest.approx([4 / 3, 0, 0, 4 / 3, 4 / 3, 0])


def test_mixture_excludes_items_in_the_components_that_can():
    counts = torch.tensor([4, 3, 2, 1])
    mixture = Mixture([Uniform(4, num_candidates=6), InBatch(counts)])
    rest = mixture.excluding(torch.tensor([0, 1]))
    expected_counts = rest.log_expected_count_of(torch.arange(4), *rows_of([0, 3])).exp().tolist()
    assert expected_counts == pytest.approx([0.8, 0.6, 3.4, 3.2])
