"""Closed-form gradients against autograd of the training losses."""

from dataclasses import replace

import pytest
import torch

from candid.audit import Estimator
from candid.audit.gradients import gradients
from candid.candidates import Candidates, ExactCandidates
from candid.losses import LOSSES
from candid.losses.comparison import compare
from candid.losses.corrected_softmax import dense_softmax

ESTIMATORS = [
    Estimator(correction, jackknife)
    for correction in ("none", "logq", "refined")
    for jackknife in (False, True)
] + [Estimator("logq", jackknife, "mask") for jackknife in (False, True)]
LOG_PARTITION = torch.zeros(4, dtype=torch.float64)
"""Read by a learnt partition function alone."""
POSITIVES = torch.tensor([3, 0, 5, 7])
NUM_ITEMS, NUM_ROWS = 12, 4


def shared(**changes):
    # Item 3 is the positive of row 0 and occurs twice; the positive of row 3 is never sampled.
    ids = torch.tensor([3, 1, 8, 3, 9, 0, 1])
    settings = {
        "ids": ids,
        "log_expected_count": torch.linspace(-2, 1, 7)[torch.tensor([0, 1, 2, 0, 4, 5, 1])],
        "log_expected_count_positive": torch.tensor([-2.0, -0.5, -1.0, -torch.inf]),
        "num_samples": 7,
    }
    return Candidates(**(settings | changes))


def per_row():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, NUM_ITEMS, (NUM_ROWS, 6), generator=generator)
    ids[1] = 0  # all accidental hits
    ids[2, :5] = 5  # one valid candidate
    return shared(
        ids=ids, log_expected_count=torch.rand(NUM_ROWS, 6, generator=generator), num_samples=6
    )


def with_exact(candidates, **row_candidates):
    exact = ExactCandidates(torch.tensor([1, 5]), torch.tensor([-1.0, -3.0]), **row_candidates)
    return replace(candidates, exact=exact)


ROW_CANDIDATES = ExactCandidates(
    torch.tensor([[4, 1], [6, -1], [7, 2], [2, 2]]), torch.full((4, 2), -2.5)
)
CASES = {
    "samples": shared(),
    "a set": shared(num_samples=None),
    "one candidate": shared(
        ids=torch.tensor([2]), log_expected_count=torch.tensor([-0.5]), num_samples=1
    ),
    "only accidental hits": shared(
        ids=torch.tensor([3, 3]), log_expected_count=torch.zeros(2), num_samples=2
    ),
    "owners": shared(owner=torch.tensor([0, 1, 2, 3, -1, 0, 1]), row_user_ids=torch.arange(4)),
    "samples per row": per_row(),
    "exact candidates": with_exact(shared()),
    "exact candidates per row": with_exact(shared(), row_candidates=ROW_CANDIDATES),
    "exact candidates alone": with_exact(
        shared(
            ids=torch.zeros(0, dtype=torch.int64), log_expected_count=torch.zeros(0), num_samples=0
        )
    ),
}


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_autograd(case, scale):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(NUM_ROWS, 5, generator=generator, dtype=torch.float64) * scale
    items = torch.randn(NUM_ITEMS, 5, generator=generator, dtype=torch.float64)
    comparison = compare(query, items, POSITIVES, CASES[case])
    result = gradients(comparison, ESTIMATORS, LOG_PARTITION)
    for index, estimator in enumerate(ESTIMATORS):
        scores, leaf_comparison = with_leaves(comparison)
        out = dense_softmax(
            leaf_comparison,
            estimator.correction,
            estimator.accidental_hits,
            jackknife=estimator.jackknife,
            effective_sample_size=True,
        )
        grads = torch.autograd.grad(out.loss.sum(), scores)
        close = {"rtol": 1e-9, "atol": 1e-11}
        torch.testing.assert_close(result.loss[index], out.loss.detach(), **close)
        # Samples of the positive have its score.
        is_hit = comparison.candidates.by_row(comparison.candidates.ids) == POSITIVES[:, None]
        positive = grads[0] + grads[1].where(is_hit, 0.0).sum(dim=1)
        torch.testing.assert_close(result.positive[index], positive, **close)
        candidates = grads[1].masked_fill(is_hit, 0.0)
        torch.testing.assert_close(result.candidates[index], candidates, **close)
        if len(grads) > 2:
            torch.testing.assert_close(result.exact[index], grads[2], **close)
        sample_size = result.effective_sample_size[index]
        torch.testing.assert_close(sample_size, out.effective_sample_size, **close)


@pytest.mark.parametrize("cap", [0.5, 3.0])
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_a_learnt_partition_function_equal_autograd(case, cap):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(NUM_ROWS, 5, generator=generator, dtype=torch.float64)
    items = torch.randn(NUM_ITEMS, 5, generator=generator, dtype=torch.float64)
    comparison = compare(query, items, POSITIVES, CASES[case])
    log_partition = (query @ items.T).logsumexp(dim=1)
    # Another estimator beside it must not change it.
    estimators = [Estimator("refined"), Estimator(cap=cap)]
    result = gradients(comparison, estimators, log_partition)
    loss = LOSSES["learnt_partition"].Config(cap=cap).build(NUM_ITEMS)
    loss.head.predict = lambda query: log_partition
    scores, leaf_comparison = with_leaves(comparison)
    losses = loss.row_losses(leaf_comparison)
    grads = torch.autograd.grad(losses.sum(), scores)
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(result.loss[1], losses.detach(), **close)
    torch.testing.assert_close(result.positive[1], grads[0], **close)
    torch.testing.assert_close(result.candidates[1], grads[1], **close)
    if len(grads) > 2:
        torch.testing.assert_close(result.exact[1], grads[2], **close)


def with_leaves(comparison):
    """The scores as leaves of autograd, and a comparison that uses them."""
    names = ["positive_scores", "candidate_scores"]
    names += [] if comparison.exact_scores is None else ["exact_scores"]
    leaves = [getattr(comparison, name).clone().requires_grad_() for name in names]
    copy = replace(comparison)
    vars(copy).update(zip(names, leaves, strict=True))
    return leaves, copy


def test_gradients_do_not_write_into_the_comparison():
    query, items = torch.randn(NUM_ROWS, 5).double(), torch.randn(NUM_ITEMS, 5).double()
    candidates = with_exact(shared(), row_candidates=ROW_CANDIDATES)
    comparison = compare(query, items, POSITIVES, candidates)
    before = [comparison.candidate_scores.clone(), comparison.exact_scores.clone()]
    gradients(comparison, ESTIMATORS, LOG_PARTITION)
    assert torch.equal(comparison.candidate_scores, before[0])
    assert torch.equal(comparison.exact_scores, before[1])
