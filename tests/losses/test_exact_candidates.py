"""An exact head beside a sampled tail, against the full softmax and against plain loops."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.candidates import Candidates, ExactCandidates
from candid.losses import full_softmax, sampled_softmax
from candid.samplers import ExactPopular, Popularity, Uniform, sample_groups

INF = math.inf


def rows_of(positive_ids):
    return SimpleNamespace(positive_ids=positive_ids, user_ids=torch.arange(len(positive_ids)))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 30), min_size=4, max_size=14),
    num_exact=st.integers(1, 3),
    positive=st.integers(0, 3),
    uniform=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_expected_z_is_exact(counts, num_exact, positive, uniform, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(counts)
    scores = torch.randn(len(counts), generator=generator, dtype=torch.float64)
    rest = Uniform(len(counts), 8) if uniform else Popularity(counts, 8, 0.7)
    trials = 1000
    positive_ids = torch.full((trials,), positive)
    sampler = ExactPopular(counts, rest, num_exact)
    sampled = sample_groups(sampler, rows_of(positive_ids), trials, generator)
    out = sampled_softmax(
        scores.expand(trials, -1), torch.eye(len(scores)).double(), positive_ids, sampled
    )
    exact = sampled.exact.ids
    assert exact.tolist() == sorted(exact.tolist())
    assert sorted(counts[exact].tolist(), reverse=True) == sorted(counts.tolist())[::-1][:num_exact]
    # Draws are renormalised over those outside the head; none left says nothing of the rest.
    excluding = ~(torch.isin(sampled.ids, exact) | (sampled.ids == positive)).all(dim=1)
    exact = float(scores.exp().sum() - scores[positive].exp())
    z = out.log_z.exp()[excluding]
    assert float(z.mean()) == pytest.approx(
        exact, abs=5 * float(z.std()) / math.sqrt(len(z)) + 1e-6 * exact
    )


def test_a_head_that_is_the_catalog_is_the_full_softmax():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    positive_ids = torch.tensor([0, 3, 3, 8, 1])
    sampler = ExactPopular(torch.ones(9), Popularity(torch.ones(9), 6), 9)
    sampled = sampler.sample(rows_of(positive_ids), generator)
    for jackknife in (False, True):
        sampled = sampled_softmax(query, items, positive_ids, sampled, jackknife=jackknife)
        exact = full_softmax(query, items, positive_ids)
        torch.testing.assert_close(sampled.log_z, exact.log_z)
        torch.testing.assert_close(sampled.loss, exact.loss)
        mine, theirs = (
            torch.autograd.grad(out.loss.sum(), (query, items), retain_graph=True)
            for out in (sampled, exact)
        )
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


V, N = 12, 7
OWN_HEADS = torch.tensor([[0, 5, -1], [2, 2, 7], [-1, -1, -1], [9, 1, 4], [3, 3, 3]])
POSITIVES = torch.tensor([5, 1, 0, 11, 3])


def inputs(exact_ids, num_samples=N, seed=1):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.arange(V, 0, -1).double()
    log_q = (counts / counts.sum()).log()
    ids = torch.multinomial(counts, N, replacement=True, generator=generator)
    log_expected_count = (math.log(N) + log_q).float()
    in_head = log_expected_count[exact_ids.clamp(min=0)]
    sampled = Candidates(
        ids=ids,
        log_expected_count=log_expected_count[ids],
        log_expected_count_positive=log_expected_count[POSITIVES],
        num_samples=num_samples,
        exact=ExactCandidates(exact_ids, in_head),
    )
    query = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(V, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    return query, items, sampled, log_q


def plain_log_z(query, items, sampled, log_q, row, left_out=None):
    """Equation (1) of one row by the words of its definition."""
    exact = sampled.exact.ids if sampled.exact.ids.ndim == 1 else sampled.exact.ids[row]
    members = sorted({int(i) for i in exact if i >= 0} - {int(POSITIVES[row])})
    scores = items @ query[row]
    shut_out = {*members, int(POSITIVES[row])}
    rest = [int(i) for i in sampled.ids if int(i) not in shut_out]
    if left_out is not None:
        rest = rest[:left_out] + rest[left_out + 1 :]
    rest = 1 - sum(math.exp(log_q[i]) for i in shut_out)
    logits = [scores[i] for i in members]
    if sampled.num_samples is None:
        logits += [scores[i] - (math.log(N) + log_q[i]) for i in rest]
    else:
        logits += [scores[i] - math.log(len(rest)) - log_q[i] + math.log(rest) for i in rest]
    return torch.logsumexp(torch.stack(logits), 0) if logits else torch.tensor(-INF), len(rest)


@pytest.mark.parametrize("num_samples", [N, None])
@pytest.mark.parametrize("head_ids", [OWN_HEADS, torch.tensor([1, 3, 6])], ids=["own", "shared"])
def test_head_and_tail_are_put_together_as_defined(exact_ids, num_samples):
    query, items, sampled, log_q = inputs(exact_ids, num_samples)
    out = sampled_softmax(query, items, POSITIVES, sampled, effective_sample_size=True)
    losses = []
    for row in range(5):
        log_z, _ = plain_log_z(query, items, sampled, log_q, row)
        positive = items[POSITIVES[row]] @ query[row]
        assert out.log_z[row].item() == pytest.approx(log_z.item(), abs=1e-6)
        losses.append(torch.logaddexp(positive, log_z) - positive)
    torch.testing.assert_close(out.loss, torch.stack(losses), rtol=1e-6, atol=1e-6)
    mine = torch.autograd.grad(out.loss.sum(), (query, items), retain_graph=True)
    theirs = torch.autograd.grad(sum(losses), (query, items))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert bool((out.effective_sample_size >= 0.999).all())
    assert bool((out.effective_sample_size <= N + exact_ids.shape[-1]).all())


@pytest.mark.parametrize("head_ids", [OWN_HEADS, torch.tensor([8, 10, 11])], ids=["own", "shared"])
def test_the_jackknife_leaves_the_head_in(exact_ids):
    query, items, sampled, log_q = inputs(exact_ids)
    out = sampled_softmax(query, items, POSITIVES, sampled, jackknife=True)
    for row in range(5):
        positive = items[POSITIVES[row]] @ query[row]

        def loss(left_out=None, row=row, positive=positive):
            log_z, _ = plain_log_z(query, items, sampled, log_q, row, left_out)
            return (torch.logaddexp(positive, log_z) - positive).item()

        n = plain_log_z(query, items, sampled, log_q, row)[1]
        assert n >= 2
        expected = n * loss() - (n - 1) / n * sum(loss(i) for i in range(n))
        assert out.loss[row].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("jackknife", [False, True])
def test_a_row_that_only_its_head_says_anything_of_and_one_that_nothing_does(jackknife):
    items = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    query = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    positive_ids = torch.tensor([0, 0])
    sampled = Candidates(
        ids=torch.tensor([0, 0, 0]),
        log_expected_count=torch.zeros(3),
        log_expected_count_positive=torch.zeros(2),
        num_samples=3,
        exact=ExactCandidates(torch.tensor([[2], [-1]]), torch.zeros(2, 1)),
    )
    out = sampled_softmax(
        query, items, positive_ids, sampled, jackknife=jackknife, effective_sample_size=True
    )
    assert out.log_z[0].item() == pytest.approx((query[0] @ items[2]).item(), abs=1e-6)
    assert out.log_z[1].item() == -INF
    assert out.loss[1].item() == 0
    at_query, at_items = torch.autograd.grad(out.loss.sum(), (query, items))
    assert bool(torch.isfinite(at_query).all() & torch.isfinite(at_items).all())
    assert bool(at_query[0].any())
    assert not at_query[1].any()


def test_a_head_takes_the_popular_out_of_the_noise():
    """Spread of log Z' at equal cost, 1,000 items by Zipf, scores near log popularity.

    The recipe's tail is drawn outside the head: none of the 206 draws is lost to it.
    """
    generator = torch.Generator().manual_seed(3)
    counts = 1.0 / torch.arange(1, 1001)
    rows = 1000
    scores = (counts / counts.sum()).log() + 1.5 * torch.randn(1000, generator=generator)
    positive_ids = torch.full((rows,), 700)

    def spread(sampler):
        sampled = sample_groups(sampler, rows_of(positive_ids), rows, generator)
        query = scores.expand(rows, -1)
        out = sampled_softmax(query, torch.eye(1000), positive_ids, sampled)
        return float(out.log_z.std())

    whole = spread(Popularity(counts, 256))
    exact = {"num_exact": 50, "rest": {"type": "popularity", "num_candidates": 206}}
    parted = spread(ExactPopular.Config.model_validate(exact).build(counts))
    assert parted < whole / 1.5


def test_unbiased_whatever_the_head_is():
    """A stale or silly head (the least popular items) costs spread, never truth."""
    generator = torch.Generator().manual_seed(4)
    counts = torch.arange(20, 0, -1).double()
    scores = torch.randn(20, generator=generator, dtype=torch.float64)
    rows = 1500
    positive_ids = torch.zeros(rows, dtype=torch.int64)
    rest = Popularity(counts, 10)
    sampled = sample_groups(rest, rows_of(positive_ids), rows, generator)
    silly = torch.tensor([17, 18, 19])
    sampled = replace(
        sampled,
        exact=ExactCandidates(silly, rest.log_expected_count_of(silly, rows_of(positive_ids))),
    )
    out = sampled_softmax(scores.expand(rows, -1), torch.eye(20).double(), positive_ids, sampled)
    z = out.log_z.exp()
    exact = float(scores[1:].exp().sum())
    assert float(z.mean()) == pytest.approx(exact, abs=5 * float(z.std()) / math.sqrt(rows))


@pytest.mark.parametrize("own", [False, True])
def test_logq_expects_a_positive_of_the_head_once(row_candidates):
    generator = torch.Generator().manual_seed(3)
    items = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    positive_ids, exact_ids = torch.tensor([0, 5]), torch.tensor([0, 1])
    sampled = torch.tensor([2, 3, 2])
    log_expected_count = torch.tensor([-0.4, -1.1, -0.4])
    candidates = Candidates(
        ids=sampled,
        log_expected_count=log_expected_count,
        # A tail that avoids the head never draws item 0.
        log_expected_count_positive=torch.tensor([-math.inf, -0.7]),
        num_samples=3,
        exact=ExactCandidates(
            exact_ids.repeat(2, 1) if row_candidates else exact_ids, torch.full((2, 2), -math.inf)
        )
        if row_candidates
        else ExactCandidates(exact_ids, torch.full((2,), -math.inf)),
    )
    found = sampled_softmax(query, items, positive_ids, candidates, correction="logq").loss
    scores = query @ items.T
    for row, (positive, shift, others) in enumerate(((0, 0.0, [1]), (5, 0.7, [0, 1]))):
        terms = [scores[row, item] for item in others]
        terms += [
            scores[row, item] - count
            for item, count in zip(sampled.tolist(), log_expected_count.tolist(), strict=True)
        ]
        logits = torch.stack([scores[row, positive] + shift, *terms])
        assert found[row].item() == pytest.approx(-logits.log_softmax(0)[0].item(), abs=1e-6)


def test_positives_candidates_and_head_are_encoded_in_one_pass():
    positive_ids = torch.tensor([0, 3, 3, 8, 1])
    sampler = ExactPopular(torch.ones(9), Uniform(9, 6), 2)
    sampled = sampler.sample(rows_of(positive_ids), torch.Generator().manual_seed(0))
    table, asked = torch.randn(9, 4), []

    def encode(ids):
        asked.append(ids)
        return table[ids]

    sampled_softmax(torch.randn(5, 4), encode, positive_ids, sampled)
    (ids,) = asked
    assert ids.tolist() == [
        *positive_ids.tolist(),
        *sampled.ids.tolist(),
        *sampled.exact.ids.tolist(),
    ]
