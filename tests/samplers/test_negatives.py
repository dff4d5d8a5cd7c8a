"""Given negatives, against every outcome of a sample and the full softmax."""

import itertools
import math
from collections import namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.candidates import Candidates, ExactCandidates
from candid.errors import ConfigError, DataError
from candid.losses import full_softmax, sampled_softmax
from candid.samplers import ExactPopular, InBatch, Popularity, Uniform, with_negatives

V, N = 5, 3
Rows = namedtuple("Rows", "positive_ids user_ids query", defaults=(None,))


def rows_of(positive_ids):
    return Rows(positive_ids, torch.arange(len(positive_ids)))


def every_outcome(sampler, log_q, positive, exact_ids):
    """Return all V^N samples, one for each row, and the probability of each."""
    ids = torch.tensor(list(itertools.product(range(V), repeat=N)))
    batch = rows_of(torch.full((len(ids),), positive))
    if sampler.distinct:
        # A repeated item is not a candidate; inf marks padding.
        is_new = torch.ones_like(ids, dtype=torch.bool)
        for one, other in itertools.combinations(range(N), 2):
            is_new[:, other] &= ids[:, one] != ids[:, other]
        log_expected_count = sampler.log_expected_count_of(ids, *batch).masked_fill(
            ~is_new, math.inf
        )
    else:
        log_expected_count = sampler.log_expected_count_of(ids, *batch)
    sampled = Candidates(
        ids=ids,
        log_expected_count=log_expected_count,
        log_expected_count_positive=sampler.log_expected_count_of(batch.positive_ids, *batch),
        num_samples=None if sampler.distinct else N,
        exact=None
        if exact_ids is None
        else ExactCandidates(
            torch.tensor(exact_ids), sampler.log_expected_count_of(torch.tensor(exact_ids), *batch)
        ),
    )
    return sampled, batch, log_q[ids].sum(dim=1).exp()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 9), min_size=V, max_size=V),
    positive=st.integers(0, V - 1),
    negatives=st.lists(st.integers(-1, V - 1), max_size=4),
    exact_ids=st.none() | st.sets(st.integers(0, V - 1), min_size=1, max_size=2).map(sorted),
    distinct=st.booleans(),
    exponent=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_expected_z_is_exact(counts, positive, negatives, exact_ids, distinct, exponent, seed):
    """Summed over all V^N outcomes, not sampled: the error is that of float32 counts alone."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(V, generator=generator, dtype=torch.float64)
    weights = torch.tensor(counts).double() ** exponent
    sampler = Popularity(
        torch.tensor(counts), num_candidates=N, exponent=exponent, distinct=distinct
    )
    sampled, batch, chance = every_outcome(
        sampler, (weights / weights.sum()).log(), positive, exact_ids
    )
    given_ids = torch.tensor(negatives, dtype=torch.int64).expand(len(chance), -1)
    out = sampled_softmax(
        scores.expand(len(chance), -1),
        torch.eye(V, dtype=torch.float64),
        batch.positive_ids,
        with_negatives(sampled, given_ids, sampler, *batch),
        correction="refined",
    )
    z = out.log_z.exp()
    known = {i for i in negatives if i >= 0} | set(exact_ids or []) | {positive}
    if not distinct and len(known) < V:
        # Samples are renormalised over the other items; a row without any has no estimate.
        has_estimate = ~torch.isin(sampled.ids, torch.tensor(sorted(known))).all(dim=1)
        z, chance = z[has_estimate], chance[has_estimate] / chance[has_estimate].sum()
    exact = float(scores.exp().sum() - scores[positive].exp())
    assert float((z * chance).sum()) == pytest.approx(exact, rel=1e-5, abs=1e-9)


def test_expected_z_is_exact_for_in_batch_samples():
    """Every pair of positives of two other rows, weighted by its probability, beside user rows."""
    generator = torch.Generator().manual_seed(2)
    counts = torch.tensor([5, 4, 3, 2, 1])
    scores = torch.randn(V, generator=generator, dtype=torch.float64)
    sampler = InBatch(counts)
    user_ids = torch.tensor([0, 0, 1, 2])
    negatives = torch.tensor([[1, -1], [-1, -1], [2, 3], [0, 0]])
    total = share = 0.0
    for others in itertools.product(range(V), repeat=2):
        positive_ids = torch.tensor([4, 0, *others])
        batch = Rows(positive_ids, user_ids)
        sampled = with_negatives(sampler.sample(*batch), negatives, sampler, *batch)
        out = sampled_softmax(
            scores.expand(4, -1),
            torch.eye(V, dtype=torch.float64),
            positive_ids,
            sampled,
            correction="refined",
        )
        chance = float(counts[list(others)].double().prod() / counts.sum() ** 2)
        if set(others) - {4, 1}:
            total += chance * float(out.log_z[0].exp())
            share += chance
    exact = float(scores[:4].exp().sum())
    assert total / share == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("negatives", [[], [4], [0, 3], [2, 3, 4]])
@pytest.mark.parametrize("positive", [0, 4])
def test_expected_z_is_exact_beside_exact_popular_items(positive, negatives):
    counts = torch.tensor([9, 7, 3, 2, 1])
    scores = torch.randn(V, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    sampler = ExactPopular(counts, num_exact=2, rest=Popularity(counts, num_candidates=N))
    ids = torch.tensor(list(itertools.product([2, 3, 4], repeat=N)))
    batch = rows_of(torch.full((len(ids),), positive))
    one = sampler.sample(*batch, torch.Generator().manual_seed(0))
    sampled = Candidates(
        ids=ids,
        log_expected_count=(N * counts / counts[2:].sum()).log()[ids],
        log_expected_count_positive=one.log_expected_count_positive,
        num_samples=N,
        exact=one.exact,
    )
    given_ids = torch.tensor(negatives, dtype=torch.int64).expand(len(ids), -1)
    out = sampled_softmax(
        scores.expand(len(ids), -1),
        torch.eye(V, dtype=torch.float64),
        batch.positive_ids,
        with_negatives(sampled, given_ids, sampler, *batch),
        correction="refined",
    )
    has_estimate = ~torch.isin(ids, torch.tensor([positive, *negatives])).all(dim=1)
    has_estimate = has_estimate if bool(has_estimate.any()) else torch.ones_like(has_estimate)
    chance = (counts / counts[2:].sum()).double()[ids].prod(dim=1) * has_estimate
    exact = float(scores.exp().sum() - scores[positive].exp())
    estimate = float((out.log_z.exp() * chance).sum() / chance.sum())
    assert estimate == pytest.approx(exact, rel=1e-5)


def sample_with(exact_ids=None, num_rows=3):
    sampler = Uniform(10, num_candidates=4)
    if exact_ids is not None:
        sampler = ExactPopular(torch.arange(10, 0, -1), num_exact=4, rest=sampler)
    batch = rows_of(torch.arange(num_rows))
    return sampler, batch, sampler.sample(*batch, torch.Generator().manual_seed(0))


def test_every_item_as_negative_gives_the_full_softmax_and_its_gradient():
    sampler, batch, sampled = sample_with()
    query = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    items = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    everything = torch.arange(10).expand(3, -1)
    full = with_negatives(sampled, everything, sampler, *batch)
    sampled = sampled_softmax(query, items, batch.positive_ids, full, correction="refined")
    exact = full_softmax(query, items, batch.positive_ids)
    torch.testing.assert_close(sampled.loss, exact.loss)
    mine, theirs = (torch.autograd.grad(o.loss.sum(), (query, items)) for o in (sampled, exact))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_shared_exact_candidates_stay_shared_and_a_second_list_joins_the_first():
    sampler, batch, sampled = sample_with(exact_ids=True)
    first = with_negatives(sampled, torch.tensor([[9], [8], [-1]]), sampler, *batch)
    assert first.exact.ids is sampled.exact.ids
    assert first.exact.row_candidates.ids.tolist() == [[9], [8], [-1]]
    assert first.exact.row_candidates.log_expected_count[:2, 0].tolist() == pytest.approx(
        [math.log(4 / 6)] * 2
    )
    second = with_negatives(first, torch.tensor([[1, 7], [8, 5], [6, -1]]), sampler, *batch)
    assert second.exact.row_candidates.ids.tolist() == [[9, 1, 7], [8, 8, 5], [-1, 6, -1]]
    assert sampled.exact.row_candidates is None
    query, items = torch.randn(3, 4).double(), torch.randn(10, 4).double()
    at_once = ExactCandidates(
        torch.tensor([[0, 1, 2, 3, 9, 7], [0, 1, 2, 3, 8, 5], [0, 1, 2, 3, 6, 6]]), 0
    )
    at_once = ExactCandidates(at_once.ids, sampler.log_expected_count_of(at_once.ids, *batch))
    apart = sampled_softmax(
        query, items, batch.positive_ids, second, effective_sample_size=True, correction="refined"
    )
    joined = sampled_softmax(
        query,
        items,
        batch.positive_ids,
        Candidates(
            second.ids,
            second.log_expected_count,
            second.log_expected_count_positive,
            second.num_samples,
            exact=at_once,
        ),
        effective_sample_size=True,
        correction="refined",
    )
    torch.testing.assert_close(apart.log_z, joined.log_z)
    torch.testing.assert_close(apart.effective_sample_size, joined.effective_sample_size)


def test_rows_without_negatives_are_unchanged():
    sampler, batch, sampled = sample_with()
    query, items = torch.randn(3, 4), torch.randn(10, 4)
    plain = sampled_softmax(query, items, batch.positive_ids, sampled, correction="refined")
    for nothing in (torch.full((3, 2), -1), torch.empty(3, 0, dtype=torch.int64)):
        out = sampled_softmax(
            query,
            items,
            batch.positive_ids,
            with_negatives(sampled, nothing, sampler, *batch),
            correction="refined",
        )
        torch.testing.assert_close(out.loss, plain.loss)


def test_negatives_of_the_same_user_count():
    """In-batch masks a user's own positives; what that user was shown is a negative."""
    sampler = InBatch(torch.ones(4))
    batch = Rows(torch.tensor([0, 1]), torch.tensor([5, 5]))
    sampled = with_negatives(sampler.sample(*batch), torch.tensor([[1], [3]]), sampler, *batch)
    scores = torch.randn(4, dtype=torch.float64)
    out = sampled_softmax(
        scores.expand(2, -1),
        torch.eye(4).double(),
        batch.positive_ids,
        sampled,
        correction="refined",
    )
    torch.testing.assert_close(out.log_z, scores[[1, 3]])


@pytest.mark.parametrize(
    ("negative_ids", "error", "sentence"),
    [
        (torch.zeros(3, dtype=torch.int64), ConfigError, r"must be \[B, S\].*got shape \(3,\)"),
        (torch.zeros(2, 1, dtype=torch.int64), ConfigError, r"each of the 3 rows .* \(2, 1\)"),
        (torch.zeros(3, 1), ConfigError, "must be integers, got torch.float32"),
        (torch.tensor([[0], [1], [-2]]), DataError, "holds -2 in row 2: ids start at 0"),
    ],
)
def test_bad_negatives_are_refused(negative_ids, error, sentence):
    sampler, batch, sampled = sample_with()
    with pytest.raises(error, match=sentence):
        with_negatives(sampled, negative_ids, sampler, *batch)


def test_exact_candidates_of_other_rows_cannot_be_joined():
    sampler, batch, sampled = sample_with()
    first = with_negatives(sampled, torch.tensor([[9], [8], [-1]]), sampler, *batch)
    with pytest.raises(
        ConfigError, match="negatives of 2 rows cannot join exact candidates of 3 rows"
    ):
        with_negatives(first, torch.tensor([[1], [2]]), sampler, *rows_of(torch.arange(2)))


def test_negative_outside_the_catalog_is_named():
    sampler, batch, sampled = sample_with()
    sampled = with_negatives(sampled, torch.tensor([[1], [2], [10]]), sampler, *batch)
    with pytest.raises(DataError, match="item id 10 is outside the catalog: ids must be 0 to 9"):
        sampled_softmax(
            torch.ones(3, 2), torch.ones(10, 2), batch.positive_ids, sampled, correction="refined"
        )
