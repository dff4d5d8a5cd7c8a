"""Kept and masked accidental hits against the enumeration of all positives and samples.

A small catalog, float64. The model is at its own distribution: the positive has P = softmax of the
scores. The gradient with respect to the scores, averaged over positives and samples, is 0 for the
full softmax. The drift in nats is ½ Σ b² / P of that mean gradient b.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from candid import InBatchSoftmaxLoss, SampledSoftmaxLoss, sampled_softmax
from candid.candidates import Candidates, ExactCandidates
from candid.losses import full_softmax, sampled
from candid.samplers import (
    CrossBatchMemory,
    InBatch,
    Mixture,
    Popularity,
    Uniform,
    sample_groups,
)

Q = torch.tensor([5.0, 4.0, 2.0, 1.0, 3.0], dtype=torch.float64) / 15
SCORES = torch.tensor([0.4, -1.6, 1.9, 0.3, -0.8], dtype=torch.float64)
P = SCORES.softmax(dim=0)
V = len(Q)
EYE = torch.eye(V, dtype=torch.float64)


def drift(outcomes, **settings):
    """Drift over (probability, positive, candidates of one row)."""
    mean = torch.zeros(V, dtype=torch.float64)
    total = 0.0
    for probability, positive, candidates in outcomes:
        scores = SCORES.clone()[None].requires_grad_()
        out = sampled_softmax(scores, EYE, torch.tensor([positive]), candidates, **settings)
        mean += probability * torch.autograd.grad(out.loss.sum(), scores)[0][0]
        total += probability
    assert total == pytest.approx(1.0)
    return float((mean.square() / P).sum() / 2)


def independent_samples(n, q=Q):
    """All n samples from q, with their probability."""
    items = [item for item in range(V) if q[item] > 0]
    for ids in itertools.product(items, repeat=n):
        yield float(q[list(ids)].prod()), list(ids)


def samples_with_replacement(n, **fields):
    counts = (n * Q).log()
    for positive in range(V):
        for probability, ids in independent_samples(n):
            ids = torch.tensor(ids)
            yield (
                float(P[positive]) * probability,
                positive,
                Candidates(ids, counts[ids], counts[positive][None], num_samples=n, **fields),
            )


@pytest.mark.parametrize("n", [1, 2, 4])
def test_drift_of_kept_hits_is_zero_at_every_number_of_samples(n):
    assert drift(samples_with_replacement(n), correction="logq") < 1e-12


def test_drift_of_masked_hits_and_of_other_corrections_is_not_zero():
    for settings in (
        {"correction": "logq", "accidental_hits": "mask"},
        {"correction": "refined"},
        {"correction": "none"},
    ):
        assert drift(samples_with_replacement(2), **settings) > 1e-4


def test_drift_of_the_full_softmax_is_zero():
    scores = SCORES.expand(V, -1).clone().requires_grad_()
    loss = full_softmax(scores, EYE, torch.arange(V)).loss
    mean = torch.autograd.grad((P * loss).sum(), scores)[0].sum(dim=0)
    assert float((mean.square() / P).sum() / 2) < 1e-28


def test_drift_of_kept_hits_is_zero_in_tiles(monkeypatch):
    monkeypatch.setattr(sampled, "DENSE_SCORES", -1)
    assert drift(samples_with_replacement(2), correction="logq") < 1e-12


def test_drift_of_kept_hits_is_zero_in_a_batch_without_the_own_row():
    """Row 0 with two rows of other users: their positives are samples from Q."""

    def outcomes(sampler, user_ids):
        for positive in range(V):
            for probability, ids in independent_samples(2):
                rows = torch.tensor([positive, *ids])
                batch = sampler.sample(rows, user_ids)
                owner = batch.owner
                one_row = Candidates(
                    batch.ids,
                    batch.log_expected_count,
                    batch.log_expected_count_positive[:1],
                    batch.num_samples,
                    owner=owner,
                    row_user_ids=None if owner is None else batch.row_user_ids[:1],
                    source_rows=batch.source_rows,
                )
                yield float(P[positive]) * probability, positive, one_row

    settings = {"correction": "logq"}
    users = torch.tensor([7, 8, 9])
    for sampler, user_ids in (
        (InBatch(Q), None),
        (InBatch(Q), users),
        (InBatch(Q, exclude_same_user=False), torch.tensor([7, 7, 9])),
        (CrossBatchMemory(Q, size=4), None),
    ):
        assert drift(outcomes(sampler, user_ids), **settings) < 1e-12
    # The other row of the same user is masked: one sample is left.
    assert drift(outcomes(InBatch(Q), torch.tensor([7, 7, 9])), **settings) < 1e-12
    masked = settings | {"accidental_hits": "mask"}
    assert drift(outcomes(InBatch(Q), users), **masked) > 1e-4


def exact_and_samples(exact_ids, n, q):
    """Exact candidates beside n samples from q, of which those that are exact are masked."""
    counts = (n * q).log()
    exact_ids = torch.tensor(exact_ids)
    exact = ExactCandidates(exact_ids, counts[exact_ids])
    for positive in range(V):
        for probability, ids in independent_samples(n, q):
            ids = torch.tensor(ids)
            candidates = Candidates(
                ids, counts[ids], counts[positive][None], num_samples=n, exact=exact
            )
            yield float(P[positive]) * probability, positive, candidates


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("are_excluded", [True, False])
@pytest.mark.parametrize("in_tiles", [False, True])
def test_drift_of_kept_hits_is_zero_beside_exact_candidates(n, are_excluded, in_tiles, monkeypatch):
    if in_tiles:
        monkeypatch.setattr(sampled, "DENSE_SCORES", -1)
    exact_ids = [2, 3]
    q = Q.clone()
    if are_excluded:
        q[exact_ids] = 0.0
        q /= q.sum()
    outcomes = list(exact_and_samples(exact_ids, n, q))
    assert drift(outcomes, correction="logq") < 1e-12
    assert drift(outcomes, correction="logq", accidental_hits="mask") > 1e-5


@pytest.mark.parametrize("user_ids", [None, torch.tensor([7, 8, 9, 7])], ids=["rows", "users"])
def test_drift_of_kept_hits_is_zero_beside_exact_candidates_in_a_batch(user_ids):
    """The expected counts are those of the rows of others, not of the whole batch."""
    exact_ids = torch.tensor([2, 3])
    sampler = InBatch(Q)

    def outcomes():
        for positive in range(V):
            for probability, ids in independent_samples(3):
                rows = torch.tensor([positive, *ids])
                batch = sampler.sample(rows, user_ids)
                counts = sampler.log_expected_count_of(exact_ids, rows, user_ids)
                one_row = replace(
                    batch,
                    log_expected_count_positive=batch.log_expected_count_positive[:1],
                    row_user_ids=None if user_ids is None else user_ids[:1],
                    exact=ExactCandidates(exact_ids, counts),
                )
                yield float(P[positive]) * probability, positive, one_row

    assert drift(outcomes(), correction="logq") < 1e-12


def test_drift_is_zero_for_items_that_are_included_independently():
    """In a set the positive is masked and takes part once, with its inclusion probability."""
    inclusion = torch.tensor([0.7, 0.2, 0.5, 0.9, 0.1], dtype=torch.float64)

    def outcomes(exact=None):
        for positive in range(V):
            for included in itertools.product([False, True], repeat=V):
                mask = torch.tensor(included)
                probability = torch.where(mask, inclusion, 1 - inclusion).prod()
                ids = mask.nonzero()[:, 0]
                counts = inclusion.log()
                candidates = Candidates(ids, counts[ids], counts[positive][None], exact=exact)
                yield float(P[positive] * probability), positive, candidates

    for rule in ("keep", "mask"):
        settings = {"correction": "logq", "accidental_hits": rule}
        assert drift(outcomes(), **settings) < 1e-12
        exact_ids = torch.tensor([1, 2])
        beside_exact = outcomes(ExactCandidates(exact_ids, inclusion.log()[exact_ids]))
        assert drift(beside_exact, **settings) < 1e-12


@pytest.mark.parametrize("n", [2, 4])
def test_drift_is_small_for_the_distinct_items_of_samples(n):
    counts = (1 - (1 - Q) ** n).log()

    def outcomes():
        for positive in range(V):
            for probability, ids in independent_samples(n):
                ids = torch.tensor(ids).unique()
                yield (
                    float(P[positive]) * probability,
                    positive,
                    Candidates(ids, counts[ids], counts[positive][None]),
                )

    distinct = drift(outcomes(), correction="logq")
    assert 0 < distinct < 1e-4
    assert distinct < drift(outcomes(), correction="refined") / 100


def test_drift_is_small_for_a_mixture():
    """A fixed number of samples of each component: an error of about 1e-5 nats."""
    uniform = torch.full((V,), 1 / V, dtype=torch.float64)
    counts = (2 * Q + uniform).log()

    def outcomes():
        for positive in range(V):
            for first, ids in independent_samples(2):
                for second, others in independent_samples(1, uniform):
                    both = torch.tensor(ids + others)
                    candidates = Candidates(both, counts[both], counts[positive][None], 3)
                    yield float(P[positive]) * first * second, positive, candidates

    kept = drift(outcomes(), correction="logq")
    assert kept < 2e-5
    assert kept < drift(outcomes(), correction="logq", accidental_hits="mask") / 50


def test_rows_are_found_in_groups_subsets_and_mixtures():
    """``source_rows`` names the row of each in-batch candidate, -1 for others."""
    ids = torch.tensor([2, 0, 2, 1])
    assert InBatch(Q).sample(ids).source_rows.tolist() == [0, 1, 2, 3]
    assert InBatch(Q).sample(ids, ids).source_rows is None
    assert InBatch(Q, distinct=True).sample(ids).source_rows is None
    subset = InBatch(Q, num_candidates=2).sample(ids)
    assert torch.equal(ids[subset.source_rows], subset.ids)
    mixture = Mixture([Uniform(V, num_candidates=3), InBatch(Q)]).sample(ids)
    assert mixture.source_rows.tolist() == [-1, -1, -1, 0, 1, 2, 3]
    kept = ~mixture.accidental_hits(ids, keep=True)
    expected = torch.ones(4, 7, dtype=torch.bool)
    expected[:, 3:] = ~torch.eye(4, dtype=torch.bool)
    assert torch.equal(kept, expected)


def test_modules_pass_the_rule_on():
    ids = torch.tensor([2, 0, 2, 1])
    query, table = torch.randn(4, 3), torch.randn(V, 3)

    def losses(rule):
        in_batch = InBatchSoftmaxLoss(Q, correction="logq", accidental_hits=rule)
        by_table = SampledSoftmaxLoss(InBatch(Q), correction="logq", accidental_hits=rule)
        return in_batch(query, table[ids], ids), by_table(query, table, ids)

    for rule in ("keep", "mask"):
        first, second = losses(rule)
        torch.testing.assert_close(first, second)
    assert not torch.isclose(losses("keep")[0], losses("mask")[0])
    assert torch.equal(losses("keep")[0], losses(None)[0])


def test_replaced_sample_comes_from_another_row_and_user():
    ids = torch.tensor([2, 0, 2, 1])
    users = torch.tensor([5, 5, 6, 7])
    is_exact = torch.tensor([False, False, True, False])
    position, count = InBatch(Q).sample(ids, users).replaced_samples(is_exact)
    assert position.tolist() == [2, 2, -1, 0]
    assert count.tolist() == [2, 2, 3, 3]
    position, count = InBatch(Q).sample(ids).replaced_samples(is_exact)
    assert position.tolist() == [1, 0, -1, 0]
    assert count.tolist() == [3, 3, 3, 3]
    single = InBatch(Q).sample(ids[:1]).replaced_samples(is_exact[:1])
    assert [part.tolist() for part in single] == [[-1], [0]]
    popular = Popularity(Q, num_candidates=3).sample(ids).replaced_samples(is_exact)
    assert [part.tolist() for part in popular] == [[0, 0, -1, 0], [3] * 4]


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("name", ["user", "row", "both", "neither"])
def test_replaced_sample_is_the_first_of_another_row_and_user(name, num_groups, monkeypatch):
    generator = torch.Generator().manual_seed(4)
    sampler = {
        "user": InBatch(Q),
        "row": InBatch(Q, exclude_same_user=False),
        "both": Mixture([InBatch(Q), InBatch(Q, exclude_same_user=False)]),
        "neither": Uniform(V, num_candidates=3),
    }[name]
    for num_rows, num_users in ((1, 1), (2, 1), (3, 2), (9, 2), (9, 20)):
        ids = torch.randint(V, (num_rows,), generator=generator)
        users = torch.randint(num_users, (num_rows,), generator=generator, dtype=torch.int32)
        is_exact = torch.rand(num_rows, generator=generator) < 0.3
        sampled = sample_groups(sampler, num_groups, ids, users, generator=generator)
        owners, sources = (
            None if keys is None else sampled.by_row(keys).expand(num_rows, -1).tolist()
            for keys in (sampled.owner, sampled.source_rows)
        )
        with monkeypatch.context() as patch:
            if num_groups == 1 and name != "both":
                # Without [B, N].
                patch.setattr(Candidates, "_is_of_others", None)
            positions, counts = sampled.replaced_samples(is_exact)
        assert positions.dtype == counts.dtype == torch.int64
        for row in range(num_rows):
            others = [
                column
                for column in range(sampled.ids.shape[-1])
                if (owners is None or owners[row][column] != users[row])
                and (sources is None or sources[row][column] != row)
            ]
            assert counts[row] == len(others)
            assert positions[row] == (others[0] if others and not is_exact[row] else -1)
