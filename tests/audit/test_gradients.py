"""The gradients written out against autograd of the losses that train."""

from dataclasses import replace

import pytest
import torch

from candid.audit import Variant
from candid.audit.gradients import gradients
from candid.candidates import Candidates, ExactCandidates
from candid.losses.comparison import compare

VARIANTS = [
    Variant(correction, jackknife)
    for correction in ("none", "logq", "refined")
    for jackknife in (False, True)
]
POSITIVES = torch.tensor([3, 0, 5, 7])
NUM_ITEMS, NUM_ROWS = 12, 4


def shared(**changes):
    # Item 3 is the positive of row 0 and comes twice; row 3 wants what is never proposed.
    ids = torch.tensor([3, 1, 8, 3, 9, 0, 1])
    settings = {
        "ids": ids,
        "log_expected_count": torch.linspace(-2, 1, 7)[torch.tensor([0, 1, 2, 0, 4, 5, 1])],
        "log_expected_count_positive": torch.tensor([-2.0, -0.5, -1.0, -torch.inf]),
        "num_samples": 7,
    }
    return Candidates(**(settings | changes))


def of_each_row():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, NUM_ITEMS, (NUM_ROWS, 6), generator=generator)
    ids[1] = 0  # all hits
    ids[2, :5] = 5  # one is left
    return shared(
        ids=ids, log_expected_count=torch.rand(NUM_ROWS, 6, generator=generator), num_samples=6
    )


def with_head(drawn, **row_candidates):
    exact = ExactCandidates(torch.tensor([1, 5]), torch.tensor([-1.0, -3.0]), **row_candidates)
    return replace(drawn, exact=exact)


OWN = ExactCandidates(torch.tensor([[4, 1], [6, -1], [7, 2], [2, 2]]), torch.full((4, 2), -2.5))
CASES = {
    "draws": shared(),
    "a set": shared(num_samples=None),
    "one candidate": shared(
        ids=torch.tensor([2]), log_expected_count=torch.tensor([-0.5]), num_samples=1
    ),
    "nothing but hits": shared(
        ids=torch.tensor([3, 3]), log_expected_count=torch.zeros(2), num_samples=2
    ),
    "users of their own": shared(
        owner=torch.tensor([0, 1, 2, 3, -1, 0, 1]), row_user_ids=torch.arange(4)
    ),
    "draws of each row": of_each_row(),
    "a head": with_head(shared()),
    "heads of the rows": with_head(shared(), row_candidates=OWN),
    "a head without draws": with_head(
        shared(
            ids=torch.zeros(0, dtype=torch.int64), log_expected_count=torch.zeros(0), num_samples=0
        )
    ),
}


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_autograd(case, scale):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(NUM_ROWS, 5, generator=generator, dtype=torch.float64) * scale
    items = torch.randn(NUM_ITEMS, 5, generator=generator, dtype=torch.float64)
    comparison = compare(query, items, POSITIVES, CASES[case])
    found = gradients(comparison, VARIANTS)
    for place, variant in enumerate(VARIANTS):
        leaves = [comparison.positive, comparison.candidates]
        leaves += [] if comparison.exact is None else [comparison.exact]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        out = replace(
            comparison,
            positive=leaves[0],
            candidates=leaves[1],
            exact=leaves[2] if len(leaves) > 2 else None,
        ).softmax(variant.correction, jackknife=variant.jackknife, effective_sample_size=True)
        grads = torch.autograd.grad(out.loss.sum(), leaves)
        close = {"rtol": 1e-9, "atol": 1e-11}
        torch.testing.assert_close(found.loss[place], out.loss.detach(), **close)
        torch.testing.assert_close(found.positive[place], grads[0], **close)
        torch.testing.assert_close(found.candidates[place], grads[1], **close)
        if len(leaves) > 2:
            torch.testing.assert_close(found.exact[place], grads[2], **close)
        torch.testing.assert_close(found.effective[place], out.effective_sample_size, **close)


def test_nothing_is_written_into_the_comparison():
    query, items = torch.randn(NUM_ROWS, 5).double(), torch.randn(NUM_ITEMS, 5).double()
    comparison = compare(query, items, POSITIVES, with_head(shared(), row_candidates=OWN))
    before = [comparison.candidates.clone(), comparison.exact.clone()]
    gradients(comparison, VARIANTS)
    assert torch.equal(comparison.candidates, before[0])
    assert torch.equal(comparison.exact, before[1])
