"""Draws outside a head, against the distribution that they claim."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from candid.samplers import EncodedBatch, InBatch, Mixture, Popularity, Uniform
from candid.samplers.excluding import excluding


def rows_of(positive_ids):
    ids = torch.tensor(positive_ids)
    return EncodedBatch(ids, torch.arange(len(ids)), torch.zeros(len(ids), 2))


def expected(kind, counts, exact):
    """Q outside the head by the words of its definition."""
    weights = [1.0 if kind == "uniform" else float(c) ** 0.7 for c in counts]
    left = [0.0 if d in exact else w for d, w in enumerate(weights)]
    return [w / sum(left) for w in left]


def sampler_of(kind, counts, num_candidates, **options):
    if kind == "uniform":
        return Uniform(len(counts), num_candidates, **options)
    return Popularity(torch.tensor(counts), num_candidates, 0.7, **options)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 40), min_size=3, max_size=15),
    exact=st.sets(st.integers(0, 14), min_size=1),
    seed=st.integers(0, 10**6),
)
def test_draws_follow_what_is_left_of_q(kind, counts, exact, seed):
    exact = {d for d in exact if d < len(counts)}
    assume(exact and len(exact) < len(counts))
    assume(any(count for d, count in enumerate(counts) if d not in exact))
    n = 4000
    whole = sampler_of(kind, counts, n)
    exact_ids = torch.tensor(sorted(exact, key=lambda d: (d * 7) % 5))  # in any order
    rest = excluding(whole, exact_ids)
    q = expected(kind, counts, exact)
    sampled = rest.sample(rows_of([0]), torch.Generator().manual_seed(seed))
    found = torch.bincount(sampled.ids, minlength=len(counts)).tolist()
    reachable = [d for d, p in enumerate(q) if p > 0]
    assert all(found[d] == 0 for d in range(len(counts)) if q[d] == 0)
    if len(reachable) > 1:
        chance = stats.chisquare([found[d] for d in reachable], [n * q[d] for d in reachable])
        assert chance.pvalue > 1e-6
    stated = rest.log_expected_count_of(torch.arange(len(counts)), rows_of([0])).tolist()
    for log_expected_count, p in zip(stated, q, strict=True):
        assert log_expected_count == (pytest.approx(math.log(n * p), abs=1e-5) if p else -math.inf)
    # The sampler itself is as it was.
    again = whole.log_expected_count_of(torch.arange(len(counts)), rows_of([0])).exp()
    assert float(again.sum()) == pytest.approx(n, rel=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_a_set_is_included_by_what_is_left(kind):
    counts, exact = [9, 4, 2, 1, 1], {0, 3}
    rest = excluding(sampler_of(kind, counts, 5, distinct=True), torch.tensor([0, 3]))
    q = expected(kind, counts, exact)
    stated = rest.log_expected_count_of(torch.arange(5), rows_of([0])).exp().tolist()
    assert stated == pytest.approx([1 - (1 - p) ** 5 for p in q], rel=1e-5)
    sampled = rest.sample(rows_of([0]), torch.Generator().manual_seed(1))
    assert sampled.num_samples is None
    assert len(set(sampled.ids.tolist())) == len(sampled.ids) <= 3


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_one_item_left_is_certain(kind):
    counts = [0.3, 0.1, 0.7, 0.2, 0.9]
    for distinct in (False, True):
        rest = excluding(sampler_of(kind, counts, 5, distinct=distinct), torch.tensor([4, 0, 1, 3]))
        sampled = rest.sample(rows_of([2]), torch.Generator().manual_seed(1))
        assert set(sampled.ids.tolist()) == {2}
        assert sampled.log_expected_count_positive.exp().tolist() == pytest.approx(
            [1.0 if distinct else 5.0]
        )


@pytest.mark.parametrize("head", [[0, 1, 2, 3], [0, 1, 2]])
def test_where_nothing_is_left_it_draws_as_before(exact):
    popularity = Popularity(torch.tensor([5, 2, 1, 0]), 8)
    assert excluding(popularity, torch.tensor(exact)) is popularity
    uniform = Uniform(4, 8)
    assert (excluding(uniform, torch.tensor(exact)) is uniform) == (len(exact) == 4)


def test_what_a_second_head_leaves():
    rest = excluding(excluding(Uniform(6, 4), torch.tensor([1, 5])), torch.tensor([2, 1]))
    stated = rest.log_expected_count_of(torch.arange(6), rows_of([0])).exp().tolist()
    assert stated == pytest.approx([4 / 3, 0, 0, 4 / 3, 4 / 3, 0])


def test_a_mixture_is_left_by_those_of_its_components_that_can():
    counts = torch.tensor([4, 3, 2, 1])
    mixture = Mixture([Uniform(4, 6), InBatch(counts)])
    rest = excluding(mixture, torch.tensor([0, 1]))
    stated = rest.log_expected_count_of(torch.arange(4), rows_of([0, 3])).exp().tolist()
    assert stated == pytest.approx([0.8, 0.6, 3.4, 3.2])
