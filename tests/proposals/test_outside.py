"""Draws outside a head, against the distribution that they claim."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from candid.proposals import EncodedBatch, InBatch, Mixture, Popularity, Uniform
from candid.proposals.outside import outside


def rows_of(positive_ids):
    ids = torch.tensor(positive_ids)
    return EncodedBatch(ids, torch.arange(len(ids)), torch.zeros(len(ids), 2))


def expected(kind, counts, head):
    """Q outside the head by the words of its definition."""
    weights = [1.0 if kind == "uniform" else float(c) ** 0.7 for c in counts]
    left = [0.0 if d in head else w for d, w in enumerate(weights)]
    return [w / sum(left) for w in left]


def tail(kind, counts, num_candidates, **options):
    if kind == "uniform":
        return Uniform(len(counts), num_candidates, **options)
    return Popularity(torch.tensor(counts), num_candidates, 0.7, **options)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 40), min_size=3, max_size=15),
    head=st.sets(st.integers(0, 14), min_size=1),
    seed=st.integers(0, 10**6),
)
def test_draws_follow_what_is_left_of_q(kind, counts, head, seed):
    head = {d for d in head if d < len(counts)}
    assume(head and len(head) < len(counts))
    assume(any(count for d, count in enumerate(counts) if d not in head))
    n = 4000
    whole = tail(kind, counts, n)
    head_ids = torch.tensor(sorted(head, key=lambda d: (d * 7) % 5))  # in any order
    rest = outside(whole, head_ids)
    q = expected(kind, counts, head)
    drawn = rest.draw(rows_of([0]), torch.Generator().manual_seed(seed))
    found = torch.bincount(drawn.ids, minlength=len(counts)).tolist()
    reachable = [d for d, p in enumerate(q) if p > 0]
    assert all(found[d] == 0 for d in range(len(counts)) if q[d] == 0)
    if len(reachable) > 1:
        chance = stats.chisquare([found[d] for d in reachable], [n * q[d] for d in reachable])
        assert chance.pvalue > 1e-6
    stated = rest.log_count_of(torch.arange(len(counts)), rows_of([0])).tolist()
    for log_count, p in zip(stated, q, strict=True):
        assert log_count == (pytest.approx(math.log(n * p), abs=1e-5) if p else -math.inf)
    # The proposal itself is as it was.
    again = whole.log_count_of(torch.arange(len(counts)), rows_of([0])).exp()
    assert float(again.sum()) == pytest.approx(n, rel=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_a_set_is_included_by_what_is_left(kind):
    counts, head = [9, 4, 2, 1, 1], {0, 3}
    rest = outside(tail(kind, counts, 5, distinct=True), torch.tensor([0, 3]))
    q = expected(kind, counts, head)
    stated = rest.log_count_of(torch.arange(5), rows_of([0])).exp().tolist()
    assert stated == pytest.approx([1 - (1 - p) ** 5 for p in q], rel=1e-5)
    drawn = rest.draw(rows_of([0]), torch.Generator().manual_seed(1))
    assert drawn.num_draws is None
    assert len(set(drawn.ids.tolist())) == len(drawn.ids) <= 3


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_one_item_left_is_certain(kind):
    counts = [0.3, 0.1, 0.7, 0.2, 0.9]
    for distinct in (False, True):
        rest = outside(tail(kind, counts, 5, distinct=distinct), torch.tensor([4, 0, 1, 3]))
        drawn = rest.draw(rows_of([2]), torch.Generator().manual_seed(1))
        assert set(drawn.ids.tolist()) == {2}
        assert drawn.log_count_positive.exp().tolist() == pytest.approx([1.0 if distinct else 5.0])


@pytest.mark.parametrize("head", [[0, 1, 2, 3], [0, 1, 2]])
def test_where_nothing_is_left_it_draws_as_before(head):
    popularity = Popularity(torch.tensor([5, 2, 1, 0]), 8)
    assert outside(popularity, torch.tensor(head)) is popularity
    uniform = Uniform(4, 8)
    assert (outside(uniform, torch.tensor(head)) is uniform) == (len(head) == 4)


def test_what_a_second_head_leaves():
    rest = outside(outside(Uniform(6, 4), torch.tensor([1, 5])), torch.tensor([2, 1]))
    stated = rest.log_count_of(torch.arange(6), rows_of([0])).exp().tolist()
    assert stated == pytest.approx([4 / 3, 0, 0, 4 / 3, 4 / 3, 0])


def test_a_mixture_is_left_by_those_of_its_components_that_can():
    counts = torch.tensor([4, 3, 2, 1])
    mixture = Mixture([Uniform(4, 6), InBatch(counts)])
    rest = outside(mixture, torch.tensor([0, 1]))
    stated = rest.log_count_of(torch.arange(4), rows_of([0, 3])).exp().tolist()
    assert stated == pytest.approx([0.8, 0.6, 3.4, 3.2])
