"""Gradient bias against the full softmax by Monte Carlo: 1,000 items, Zipf popularity.

Setup and expected ranges come from the study of the estimators: "mid" scores are
log Q + 1.5·N(0, 1), "late" raises the positive until P(p) is about .6; negatives are sampled
from Q without the positive. Bias is ||E g - g_full|| / ||g_full||, pooled over pairs, from the
cross product of two independent halves, so that Monte Carlo noise does not inflate it.
"""

import math

import pytest
import torch

from candid.losses import corrected_log_softmax

ITEMS, PAIRS = 1000, 16


def pairs(regime, seed=11):
    generator = torch.Generator().manual_seed(seed)
    q = 1.0 / torch.arange(1, ITEMS + 1, dtype=torch.float64)
    q /= q.sum()
    noise = torch.randn(PAIRS, ITEMS, generator=generator, dtype=torch.float64)
    scores = q.log() + 1.5 * noise
    positives = torch.multinomial(scores.softmax(dim=1), 1, generator=generator)
    if regime == "late":
        others = scores.scatter(1, positives, -math.inf).logsumexp(dim=1, keepdim=True)
        scores = scores.scatter(1, positives, others + math.log(0.6 / 0.4))
    return q, scores, positives[:, 0], generator


def mean_gradient(q, scores, positive, n, num_trials, generator, estimator):
    """Mean over samples of the gradient with respect to all scores, [ITEMS]."""
    rest = q.clone()
    rest[positive] = 0.0
    cumulative = rest.cumsum(0)
    points = torch.rand(num_trials, n, generator=generator, dtype=torch.float64) * cumulative[-1]
    ids = torch.searchsorted(cumulative, points, right=True).clamp_(max=ITEMS - 1)
    raw = (n * q).log().float()
    log_expected_count = raw if estimator == "logq" else (n * rest / cumulative[-1]).log().float()
    candidates = scores.float()[ids].requires_grad_()
    first = scores[positive].float().expand(num_trials).clone().requires_grad_()
    out = corrected_log_softmax(
        positive=first,
        candidates=candidates,
        log_expected_count=log_expected_count[ids],
        log_expected_count_positive=raw[positive].expand(num_trials),
        correction="logq" if estimator == "logq" else "refined",
        jackknife=estimator == "jackknife",
    )
    # Without the paper's weight 1 - P(p), every row counts 1.
    row = 1 / out.sample_weight if estimator == "w=1" else torch.ones(num_trials)
    at_positive, at_candidates = torch.autograd.grad((out.loss * row).sum(), (first, candidates))
    total = torch.zeros(ITEMS, dtype=torch.float64)
    total.index_add_(0, ids.flatten(), at_candidates.double().flatten())
    total[positive] += at_positive.double().sum()
    return total / num_trials


def bias(regime, estimator, n, num_trials):
    q, scores, positives, generator = pairs(regime)
    squared = length = 0.0
    for row, positive in zip(scores, positives.tolist(), strict=True):
        exact = row.softmax(dim=0)
        exact[positive] -= 1.0
        first, second = (
            mean_gradient(q, row, positive, n, num_trials, generator, estimator) - exact
            for _ in range(2)
        )
        squared += float(first @ second)
        length += float(exact @ exact)
    return math.copysign(math.sqrt(abs(squared) / length), squared)


@pytest.fixture(scope="module")
def refined():
    return {
        n: bias("mid", "refined", n, num_trials)
        for n, num_trials in [(16, 20000), (64, 10000), (256, 4000), (512, 3000)]
    }


@pytest.mark.slow
def test_refined_bias_is_in_the_range_of_the_study(refined):
    assert 0.012 < refined[64] < 0.05
    assert 0.001 < refined[512] < 0.01


@pytest.mark.slow
def test_refined_bias_decreases_with_the_number_of_candidates(refined):
    assert 1.9 < refined[16] / refined[64] < 5.0
    assert 1.9 < refined[64] / refined[256] < 5.0


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "floor"), [("logq", 0.04), ("w=1", 0.05)])
def test_bias_of_other_estimators_has_a_floor(estimator, floor, refined):
    biases = [bias("mid", estimator, n, 2000) for n in (256, 512)]
    assert min(biases) > floor
    assert biases[1] > 0.75 * biases[0]
    assert biases[1] > 5 * refined[512]


@pytest.mark.slow
def test_jackknife_at_least_halves_the_bias():
    plain = bias("late", "refined", 64, 10000)
    assert 0.008 < plain < 0.04
    assert bias("late", "jackknife", 64, 10000) < plain / 2
