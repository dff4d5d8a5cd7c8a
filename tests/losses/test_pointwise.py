import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from candid.errors import ConfigError
from candid.losses import GBCE, LOSSES, binary_cross_entropy, full_softmax
from candid.losses.pointwise import calibrated_beta
from candid.samplers import Uniform


@pytest.mark.parametrize("row_reduction", ["sum", "mean"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_value_equals_the_formula(beta, row_reduction):
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(4, generator=generator, dtype=torch.float64)
    candidates = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    accidental_hits = torch.rand(4, 5, generator=generator) < 0.3
    out = binary_cross_entropy(
        positive=positive,
        candidates=candidates,
        accidental_hits=accidental_hits,
        beta=beta,
        row_reduction=row_reduction,
    )
    for row in range(4):
        negatives = candidates[row, ~accidental_hits[row]]
        terms = -torch.log(torch.sigmoid(positive[row]) ** beta)
        terms = terms - torch.log(1 - torch.sigmoid(negatives)).sum()
        expected = terms / (len(negatives) + 1) if row_reduction == "mean" else terms
        assert out[row].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["bce", "gbce"])
def test_figures_estimate_those_of_the_full_softmax(name):
    """log Z' and 1 - P of a large sample, beside a loss of another scale."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    query = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    positive_ids = torch.arange(4)
    sampler = Uniform(7, num_candidates=200_000)
    candidates = sampler.sample(positive_ids, generator=generator)
    out = LOSSES[name].Config().build(7)(query, items, positive_ids, candidates)
    exact = full_softmax(query, items, positive_ids)
    torch.testing.assert_close(out.log_z, exact.log_z, atol=0.02, rtol=0)
    torch.testing.assert_close(out.sample_weight, exact.sample_weight, atol=0.01, rtol=0)


def test_extreme_scores_stay_finite():
    positive = torch.tensor([-500.0], requires_grad=True)
    candidates = torch.tensor([[500.0]], requires_grad=True)
    loss = binary_cross_entropy(positive=positive, candidates=candidates, beta=0.5)
    assert loss.item() == pytest.approx(750.0)
    first, second = torch.autograd.grad(loss.sum(), (positive, candidates))
    assert first.item() == pytest.approx(-0.5)
    assert second.item() == pytest.approx(1.0)


@given(st.floats(0, 1), st.integers(1, 500), st.integers(501, 10**7))
def test_beta_equals_that_of_the_paper(t, num_negatives, num_items):
    alpha = num_negatives / (num_items - 1)
    expected = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    assert calibrated_beta(t, num_negatives, num_items) == pytest.approx(expected, abs=1e-9)
    assert calibrated_beta(0.0, num_negatives, num_items) == 1.0
    assert calibrated_beta(1.0, num_negatives, num_items) == pytest.approx(alpha)


def test_full_calibration_recovers_the_true_probability():
    """At t = 1 the score that minimises the expected loss has the true probability.

    One positive and n negatives, uniform over the other V - 1 items: an item is the positive
    with probability P, and a negative with n/(V - 1) otherwise.
    """
    num_items, n, p = 1000, 20, 0.2
    beta = calibrated_beta(1.0, n, num_items)
    logits = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    risk = -p * beta * logits.sigmoid().log() - (1 - p) * n / (num_items - 1) * (
        (-logits).sigmoid().log()
    )
    assert logits[risk.argmin()].item() == pytest.approx(math.log(p / (1 - p)), abs=1e-3)


def test_calibration_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match=r"between 0 and 1, got 1\.5"):
        GBCE(10, t=1.5, row_reduction="mean")
