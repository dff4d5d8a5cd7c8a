"""Exact candidates beside sampled ones, against the full softmax and against plain loops."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.candidates import Candidates, ExactCandidates
from candid.losses import full_softmax, sampled_softmax
from candid.samplers import ExactPopular, Popularity, Uniform, sample_groups

INF = math.inf


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 30), min_size=4, max_size=14),
    num_exact=st.integers(1, 3),
    positive=st.integers(0, 3),
    uniform=st.booleans(),
    seed=st.integers(0, 10**6),
)
@pytest.mark.slow
def test_estimate_of_z_is_unbiased(counts, num_exact, positive, uniform, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(counts)
    scores = torch.randn(len(counts), generator=generator, dtype=torch.float64)
    rest = (
        Uniform(len(counts), num_candidates=8)
        if uniform
        else Popularity(counts, num_candidates=8, exponent=0.7)
    )
    trials = 1000
    positive_ids = torch.full((trials,), positive)
    sampler = ExactPopular(counts, num_exact=num_exact, rest=rest)
    candidates = sample_groups(sampler, trials, positive_ids, generator=generator)
    out = sampled_softmax(
        scores.expand(trials, -1),
        torch.eye(len(scores)).double(),
        positive_ids,
        candidates,
        correction="refined",
    )
    exact_ids = candidates.exact.ids
    assert exact_ids.tolist() == sorted(exact_ids.tolist())
    top = sorted(counts.tolist())[::-1][:num_exact]
    assert sorted(counts[exact_ids].tolist(), reverse=True) == top
    # Samples are renormalized over the items that are not exact; a row without any has no estimate.
    is_valid = ~(torch.isin(candidates.ids, exact_ids) | (candidates.ids == positive)).all(dim=1)
    expected = float(scores.exp().sum() - scores[positive].exp())
    z = out.log_z.exp()[is_valid]
    assert float(z.mean()) == pytest.approx(
        expected, abs=5 * float(z.std()) / math.sqrt(len(z)) + 1e-6 * expected
    )


def test_whole_catalog_as_exact_candidates_equals_the_full_softmax():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    positive_ids = torch.tensor([0, 3, 3, 8, 1])
    rest = Popularity(torch.ones(9), num_candidates=6)
    sampler = ExactPopular(torch.ones(9), num_exact=9, rest=rest)
    candidates = sampler.sample(positive_ids, generator=generator)
    for jackknife in (False, True):
        out = sampled_softmax(
            query, items, positive_ids, candidates, jackknife=jackknife, correction="refined"
        )
        expected = full_softmax(query, items, positive_ids)
        torch.testing.assert_close(out.log_z, expected.log_z)
        torch.testing.assert_close(out.loss, expected.loss)
        grads, expected_grads = (
            torch.autograd.grad(output.loss.sum(), (query, items), retain_graph=True)
            for output in (out, expected)
        )
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-9)


V, N = 12, 7
ROW_IDS = torch.tensor([[0, 5, -1], [2, 2, 7], [-1, -1, -1], [9, 1, 4], [3, 3, 3]])
POSITIVES = torch.tensor([5, 1, 0, 11, 3])


def inputs(exact_ids, num_samples=N, seed=1):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.arange(V, 0, -1).double()
    log_q = (counts / counts.sum()).log()
    ids = torch.multinomial(counts, N, replacement=True, generator=generator)
    log_expected_count = (math.log(N) + log_q).float()
    candidates = Candidates(
        ids=ids,
        log_expected_count=log_expected_count[ids],
        log_expected_count_positive=log_expected_count[POSITIVES],
        num_samples=num_samples,
        exact=ExactCandidates(exact_ids, log_expected_count[exact_ids.clamp(min=0)]),
    )
    query = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    items = torch.randn(V, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    return query, items, candidates, log_q


def plain_log_z(query, items, candidates, log_q, row, left_out=None):
    """Equation (1) of one row, item by item, and the number of its valid samples."""
    exact_ids = candidates.exact.ids
    exact_ids = exact_ids if exact_ids.ndim == 1 else exact_ids[row]
    members = sorted({int(i) for i in exact_ids if i >= 0} - {int(POSITIVES[row])})
    scores = items @ query[row]
    excluded = {*members, int(POSITIVES[row])}
    sampled = [int(i) for i in candidates.ids if int(i) not in excluded]
    if left_out is not None:
        sampled = sampled[:left_out] + sampled[left_out + 1 :]
    rest = 1 - sum(math.exp(log_q[i]) for i in excluded)
    logits = [scores[i] for i in members]
    if candidates.num_samples is None:
        logits += [scores[i] - (math.log(N) + log_q[i]) for i in sampled]
    else:
        n = len(sampled)
        logits += [scores[i] - math.log(n) - log_q[i] + math.log(rest) for i in sampled]
    log_z = torch.logsumexp(torch.stack(logits), 0) if logits else torch.tensor(-INF)
    return log_z, len(sampled)


@pytest.mark.parametrize("num_samples", [N, None])
@pytest.mark.parametrize("exact_ids", [ROW_IDS, torch.tensor([1, 3, 6])], ids=["row", "shared"])
def test_exact_and_sampled_candidates_are_combined_as_defined(exact_ids, num_samples):
    query, items, candidates, log_q = inputs(exact_ids, num_samples)
    out = sampled_softmax(
        query, items, POSITIVES, candidates, effective_sample_size=True, correction="refined"
    )
    losses = []
    for row in range(5):
        log_z, _ = plain_log_z(query, items, candidates, log_q, row)
        positive = items[POSITIVES[row]] @ query[row]
        assert out.log_z[row].item() == pytest.approx(log_z.item(), abs=1e-6)
        losses.append(torch.logaddexp(positive, log_z) - positive)
    torch.testing.assert_close(out.loss, torch.stack(losses), rtol=1e-6, atol=1e-6)
    grads = torch.autograd.grad(out.loss.sum(), (query, items), retain_graph=True)
    expected_grads = torch.autograd.grad(sum(losses), (query, items))
    for grad, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)
    assert bool((out.effective_sample_size >= 0.999).all())
    assert bool((out.effective_sample_size <= N + exact_ids.shape[-1]).all())


@pytest.mark.parametrize("exact_ids", [ROW_IDS, torch.tensor([8, 10, 11])], ids=["row", "shared"])
def test_jackknife_leaves_the_exact_candidates_in(exact_ids):
    query, items, candidates, log_q = inputs(exact_ids)
    out = sampled_softmax(query, items, POSITIVES, candidates, jackknife=True, correction="refined")
    for row in range(5):
        positive = items[POSITIVES[row]] @ query[row]

        def loss(left_out=None, row=row, positive=positive):
            log_z, _ = plain_log_z(query, items, candidates, log_q, row, left_out)
            return (torch.logaddexp(positive, log_z) - positive).item()

        n = plain_log_z(query, items, candidates, log_q, row)[1]
        assert n >= 2
        expected = n * loss() - (n - 1) / n * sum(loss(i) for i in range(n))
        assert out.loss[row].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("jackknife", [False, True])
def test_rows_with_exact_candidates_alone_and_with_no_candidates(jackknife):
    items = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    query = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    positive_ids = torch.tensor([0, 0])
    candidates = Candidates(
        ids=torch.tensor([0, 0, 0]),
        log_expected_count=torch.zeros(3),
        log_expected_count_positive=torch.zeros(2),
        num_samples=3,
        exact=ExactCandidates(torch.tensor([[2], [-1]]), torch.zeros(2, 1)),
    )
    out = sampled_softmax(
        query,
        items,
        positive_ids,
        candidates,
        jackknife=jackknife,
        effective_sample_size=True,
        correction="refined",
    )
    assert out.log_z[0].item() == pytest.approx((query[0] @ items[2]).item(), abs=1e-6)
    assert out.log_z[1].item() == -INF
    assert out.loss[1].item() == 0
    query_grad, item_grad = torch.autograd.grad(out.loss.sum(), (query, items))
    assert bool(torch.isfinite(query_grad).all() & torch.isfinite(item_grad).all())
    assert bool(query_grad[0].any())
    assert not query_grad[1].any()


@pytest.mark.slow
def test_exact_popular_reduces_the_variance_at_equal_cost():
    """Standard deviation of log Z', 1,000 items by Zipf, scores near log popularity.

    The rest of the recipe's sampler excludes the exact items: none of its 206 samples is lost.
    """
    generator = torch.Generator().manual_seed(3)
    counts = 1.0 / torch.arange(1, 1001)
    rows = 1000
    scores = (counts / counts.sum()).log() + 1.5 * torch.randn(1000, generator=generator)
    positive_ids = torch.full((rows,), 700)

    def deviation(sampler):
        candidates = sample_groups(sampler, rows, positive_ids, generator=generator)
        query = scores.expand(rows, -1)
        return float(
            sampled_softmax(
                query, torch.eye(1000), positive_ids, candidates, correction="refined"
            ).log_z.std()
        )

    sampled = deviation(Popularity(counts, num_candidates=256))
    table = {"num_exact": 50, "rest": {"type": "popularity", "num_candidates": 206}}
    with_exact = deviation(ExactPopular.Config.model_validate(table).build(counts))
    assert with_exact < sampled / 1.5


def test_estimate_is_unbiased_for_any_exact_candidates():
    """The least popular items as exact candidates increase the variance but add no bias."""
    generator = torch.Generator().manual_seed(4)
    counts = torch.arange(20, 0, -1).double()
    scores = torch.randn(20, generator=generator, dtype=torch.float64)
    rows = 1500
    positive_ids = torch.zeros(rows, dtype=torch.int64)
    rest = Popularity(counts, num_candidates=10)
    candidates = sample_groups(rest, rows, positive_ids, generator=generator)
    exact_ids = torch.tensor([17, 18, 19])
    exact = ExactCandidates(exact_ids, rest.log_expected_count_of(exact_ids, positive_ids))
    candidates = replace(candidates, exact=exact)
    items = torch.eye(20).double()
    z = sampled_softmax(
        scores.expand(rows, -1), items, positive_ids, candidates, correction="refined"
    ).log_z.exp()
    expected = float(scores[1:].exp().sum())
    assert float(z.mean()) == pytest.approx(expected, abs=5 * float(z.std()) / math.sqrt(rows))


@pytest.mark.parametrize("per_row", [False, True])
def test_logq_expects_an_exact_positive_once(per_row):
    generator = torch.Generator().manual_seed(3)
    items = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    positive_ids, exact_ids = torch.tensor([0, 5]), torch.tensor([0, 1])
    ids = torch.tensor([2, 3, 2])
    log_expected_count = torch.tensor([-0.4, -1.1, -0.4])
    exact_ids = exact_ids.repeat(2, 1) if per_row else exact_ids
    candidates = Candidates(
        ids=ids,
        log_expected_count=log_expected_count,
        # A sampler that excludes the exact items never samples item 0.
        log_expected_count_positive=torch.tensor([-math.inf, -0.7]),
        num_samples=3,
        exact=ExactCandidates(exact_ids, torch.full(exact_ids.shape, -math.inf)),
    )
    settings = {"correction": "logq", "accidental_hits": "mask"}
    loss = sampled_softmax(query, items, positive_ids, candidates, **settings).loss
    scores = query @ items.T
    for row, (positive, shift, others) in enumerate(((0, 0.0, [1]), (5, 0.7, [0, 1]))):
        terms = [scores[row, item] for item in others]
        terms += [
            scores[row, item] - count
            for item, count in zip(ids.tolist(), log_expected_count.tolist(), strict=True)
        ]
        logits = torch.stack([scores[row, positive] + shift, *terms])
        assert loss[row].item() == pytest.approx(-logits.log_softmax(0)[0].item(), abs=1e-6)


def test_all_item_vectors_are_requested_in_one_call():
    positive_ids = torch.tensor([0, 3, 3, 8, 1])
    rest = Uniform(9, num_candidates=6)
    sampler = ExactPopular(torch.ones(9), num_exact=2, rest=rest)
    candidates = sampler.sample(positive_ids, generator=torch.Generator().manual_seed(0))
    table, requests = torch.randn(9, 4), []

    def encode(ids):
        requests.append(ids)
        return table[ids]

    sampled_softmax(torch.randn(5, 4), encode, positive_ids, candidates, correction="refined")
    (ids,) = requests
    assert ids.tolist() == [
        *positive_ids.tolist(),
        *candidates.ids.tolist(),
        *candidates.exact.ids.tolist(),
    ]
