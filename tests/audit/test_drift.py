"""Drift against the enumeration of all positives and samples, and against fitted logits."""

import itertools
import math

import numpy as np
import pytest
import torch

from candid.audit import (
    AuditSampler,
    DriftBudget,
    Estimator,
    measure_drift,
    proposal_distance,
    sampler_config,
)
from candid.audit.drift import _sample_positives, add_estimated_softmax, drift_products
from candid.candidates import Candidates
from candid.errors import ConfigError
from candid.losses.comparison import compare

from .conftest import COUNTS, SCORES, refined_gradient, tiny_input

Q = np.array(COUNTS) / sum(COUNTS)
P = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)
KEPT, MASKED, REFINED = Estimator("logq"), Estimator("logq", False, "mask"), Estimator("refined")
LEARNT = Estimator(cap=3.0)
ALL = (KEPT, MASKED, REFINED, Estimator("none"), LEARNT)


UNIFORM = {"type": "uniform", "num_candidates": 3}


def popularity(n, **settings):
    return sampler_config({"type": "popularity", "num_candidates": n, **settings})


def measured(config, estimators=ALL, *, data=None, batch_rows=3, **budget):
    data = tiny_input() if data is None else data
    generator = torch.Generator().manual_seed(0)
    sampler = AuditSampler(config, data, batch_rows=batch_rows, generator=generator)
    return measure_drift(data, sampler, estimators, DriftBudget(**budget))


def enumerated(n, estimators):
    """Exact drift of each estimator and user, [A, 3], from every positive and sample."""
    data = tiny_input()
    samples = list(itertools.product(range(4), repeat=n))
    ids = torch.tensor(samples).repeat(3 * 4, 1)
    positive_ids = torch.arange(4).repeat_interleave(len(samples)).repeat(3)
    users = torch.arange(3).repeat_interleave(4 * len(samples))
    log_counts = torch.from_numpy(np.log(n * Q))
    candidates = Candidates(ids, log_counts[ids], log_counts[positive_ids], num_samples=n)
    query, items = data.query[users].double(), data.item_vectors.double()
    chances = torch.from_numpy(P)[users, positive_ids] * torch.from_numpy(Q)[ids].prod(dim=1)
    sums = torch.zeros(len(estimators), 3, 4, dtype=torch.float64)
    logits = data.query.double() @ items.T
    comparison = compare(query, items, positive_ids, candidates)
    add_estimated_softmax(sums, comparison, estimators, chances, logits.logsumexp(dim=1)[users])
    log_p = logits.log_softmax(dim=1)
    return drift_products((sums - log_p.exp())[:, :, None], log_p)[:, :, 0, 0] / 2


def refined_by_formula(n):
    """Drift of the refined loss of each user by its formula, [3]."""
    drifts = []
    for scores, p in zip(SCORES, P, strict=True):
        mean = np.zeros(4)
        for positive in range(4):
            for sample in itertools.product(range(4), repeat=n):
                valid = sum(item != positive for item in sample)
                expected = max(valid, 1) * Q / (1 - Q[positive])
                chance = p[positive] * math.prod(Q[item] for item in sample)
                mean += chance * refined_gradient(scores, positive, sample, expected)[1]
        drifts.append((mean**2 / p).sum() / 2)
    return np.array(drifts)


@pytest.mark.parametrize("n", [1, 4])
def test_drift_of_kept_hits_is_zero_by_enumeration(n):
    drifts = enumerated(n, [KEPT, MASKED, REFINED, Estimator("none")])
    assert float(drifts[0].abs().max()) < 1e-13
    if n > 1:
        assert float(drifts[1].min()) > 1e-4
    assert float(drifts[2].min()) > 1e-4
    assert float(drifts[3].min()) > 1e-4


@pytest.mark.parametrize("cap", [0.5, 3.0])
@pytest.mark.parametrize("n", [1, 4])
def test_drift_of_a_learnt_partition_function_is_zero_by_enumeration(n, cap):
    assert float(enumerated(n, [Estimator(cap=cap)]).abs().max()) < 1e-13


@pytest.mark.parametrize("n", [1, 4])
def test_enumerated_drift_of_refined_equals_its_formula(n):
    assert enumerated(n, [REFINED])[0].numpy() == pytest.approx(refined_by_formula(n), rel=1e-5)


def test_drift_of_the_full_softmax_is_zero():
    """The whole catalog as candidates with expected count 1, for each positive."""
    data = tiny_input()
    positive_ids = torch.arange(4).repeat(3)
    catalog = Candidates(torch.arange(4), torch.zeros(4), torch.zeros(12))
    comparison = compare(
        data.query.double().repeat_interleave(4, dim=0),
        data.item_vectors.double(),
        positive_ids,
        catalog,
    )
    sums = torch.zeros(1, 3, 4, dtype=torch.float64)
    chances = torch.from_numpy(P).flatten()
    add_estimated_softmax(sums, comparison, [REFINED], chances, torch.zeros(12))
    assert sums[0].numpy() == pytest.approx(P, abs=1e-8)  # float32 scores


@pytest.mark.parametrize(
    ("config", "n"), [(popularity(4), 4), (sampler_config({"type": "in_batch"}), 3)]
)
def test_measured_drift_equals_the_enumerated_one(config, n):
    results = measured(config, repeats=4000)
    expected = enumerated(n, ALL).numpy()
    for result, by_user in zip(results, expected, strict=True):
        assert (np.abs(result.by_user.numpy() - by_user) < 4 * result.by_user_error.numpy()).all()
        assert abs(result.mean - by_user.mean()) < 3 * result.block_error
        assert result.error == pytest.approx(math.hypot(result.user_error, result.block_error))
    assert results[2].mean > 10 * results[2].block_error
    assert results[2].block_error < results[2].mean / 10


def test_measured_drift_of_the_full_catalog_is_zero():
    """Every item exact: nothing is estimated."""
    rest = {"type": "uniform", "num_candidates": 2}
    config = sampler_config({"type": "exact_popular", "num_exact": 4, "rest": rest})
    result = measured(config, [REFINED], repeats=16, num_positives=64)[0]
    # What is left comes from the choice of the positives, which does not matter here.
    assert float(result.by_user.abs().max()) < 1e-20


def test_drift_is_not_inflated_by_noise():
    results = [
        measured(popularity(3), [KEPT], repeats=16, num_positives=1, seed=seed)[0].mean
        for seed in range(40)
    ]
    assert abs(np.mean(results)) < 3 * np.std(results) / math.sqrt(len(results))
    assert min(results) < 0 < max(results)


def test_blocks_of_users_agree_with_all_users_together():
    together = measured(popularity(3), [REFINED], repeats=1000)[0]
    apart = measured(popularity(3), [REFINED], repeats=1000, memory=1)[0]
    error = math.hypot(together.block_error, apart.block_error)
    assert abs(together.mean - apart.mean) < 4 * error
    assert apart.by_user.shape == (3,)


@pytest.mark.parametrize(
    "table",
    [
        UNIFORM,
        {"type": "mixture", "components": [UNIFORM, {"type": "in_batch"}]},
        {"type": "quadratic", "num_candidates": 3},
        {"type": "popularity", "num_candidates": 3, "distinct": True},
        {
            "type": "exact_popular",
            "num_exact": 1,
            "rest": {"type": "popularity", "num_candidates": 3},
        },
    ],
)
def test_drift_of_kept_hits_is_small_for_every_family(table):
    kept, refined = measured(sampler_config(table), [KEPT, REFINED], repeats=2000)
    assert abs(kept.mean) < max(4 * kept.block_error, 1e-4)
    assert kept.block_error < 1e-3
    assert refined.mean > kept.mean


def test_positives_follow_the_distribution():
    cumulative = torch.from_numpy(P).cumsum(dim=1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.cat([_sample_positives(cumulative, 5, generator) for _ in range(4000)], dim=1)
    for row in range(3):
        shares = torch.bincount(ids[row], minlength=4) / ids.shape[1]
        assert shares.numpy() == pytest.approx(P[row], abs=0.01)


def test_distances_equal_their_formulas():
    data = tiny_input()
    generator = torch.Generator().manual_seed(0)

    def distances(config):
        sampler = AuditSampler(config, data, batch_rows=5, generator=generator)
        return proposal_distance(data, sampler)

    for config in (popularity(4), popularity(9), sampler_config({"type": "in_batch"})):
        result = distances(config)
        assert result.chi2.numpy() == pytest.approx((P**2 / Q).sum(axis=1) - 1, rel=1e-5)
        assert result.kl.numpy() == pytest.approx((P * np.log(P / Q)).sum(axis=1), rel=1e-5)
    per_row = distances(sampler_config({"type": "quadratic", "num_candidates": 3}))
    assert float(per_row.chi2.min()) >= 0
    assert float(per_row.kl.max()) < math.inf
    rest = {"type": "uniform", "num_candidates": 2}
    table = {"type": "exact_popular", "num_exact": 1, "rest": rest}
    assert distances(sampler_config(table)) is None


def test_distance_is_infinite_where_an_item_is_never_sampled():
    data = tiny_input(counts=torch.tensor([3, 2, 1, 0]))
    sampler = AuditSampler(popularity(4), data, batch_rows=1, generator=torch.Generator())
    result = proposal_distance(data, sampler)
    assert bool(result.chi2.isposinf().all())
    assert bool(result.kl.isposinf().all())


def test_too_small_budgets_are_refused():
    for settings in ({"repeats": 15}, {"num_positives": 0}, {"memory": 0}):
        with pytest.raises(ConfigError, match="repeats of at least 16"):
            DriftBudget(**settings)


def all_counts(n):
    """Every count vector of n samples of four items, with its probability."""
    bars = np.array(list(itertools.combinations(range(n + 3), 3)))
    edges = np.hstack([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), n + 3)])
    counts = np.diff(edges, axis=1) - 1
    log_factorial = np.concatenate([[0.0], np.log(np.arange(1, n + 1)).cumsum()])
    log_chance = log_factorial[n] - log_factorial[counts].sum(axis=1) + counts @ np.log(Q)
    return counts, np.exp(log_chance)


def mean_refined_gradient(scores, truth, counts, chances):
    """Gradient of the refined loss over positives from ``truth`` and all samples, [4]."""
    mean = np.zeros(4)
    for positive in range(4):
        others = counts * (np.arange(4) != positive)
        valid = others.sum(axis=1, keepdims=True)
        expected = np.maximum(valid, 1) * Q / (1 - Q[positive])
        weights = others * np.exp(scores) / expected
        z = weights.sum(axis=1, keepdims=True)
        gradient = weights / (z + np.exp(scores[positive]))
        gradient[:, positive] = -(z / (z + np.exp(scores[positive])))[:, 0]
        mean += truth[positive] * (chances @ gradient)
    return mean


@pytest.mark.parametrize(
    ("n", "least", "most", "num_steps"),
    [(4, 0.2, 0.5, 40), (16, 0.55, 0.85, 25), (64, 0.9, 1.0, 12)],
)
def test_drift_predicts_the_excess_likelihood_of_fitted_logits(n, least, most, num_steps):
    """Logits that are fitted with the refined loss to a known truth, over every sample.

    The prediction is of second order: it approaches the excess from below as n grows.
    """
    counts, chances = all_counts(n)
    excess, drifts = [], []
    for scores, truth in zip(SCORES, P, strict=True):
        fitted = np.array(scores)
        for step in range(num_steps):
            gradient = mean_refined_gradient(fitted, truth, counts, chances)
            if step == 0:
                drifts.append((gradient**2 / truth).sum() / 2)
            fitted = fitted - gradient / truth
        assert np.abs(gradient).max() < 1e-5
        fitted_p = np.exp(fitted) / np.exp(fitted).sum()
        excess.append((truth * np.log(truth / fitted_p)).sum())
    ratios = np.array(drifts) / excess
    assert ratios.min() > least
    assert ratios.max() < most
    predicted = measured(popularity(n), [REFINED], repeats=2000)[0]
    assert abs(predicted.mean - np.mean(drifts)) < 3 * predicted.block_error
    assert np.argsort(predicted.by_user.numpy()).tolist() == np.argsort(excess).tolist()


def mean_refined_curvature(scores, truth, counts, chances):
    """Mean Hessian of the refined loss over positives from ``truth`` and all samples, [4, 4]."""
    mean = np.zeros((4, 4))
    for positive in range(4):
        others = counts * (np.arange(4) != positive)
        valid = others.sum(axis=1, keepdims=True)
        weights = others * np.exp(scores) / (np.maximum(valid, 1) * Q / (1 - Q[positive]))
        weights[:, positive] = np.exp(scores[positive])
        shares = weights / weights.sum(axis=1, keepdims=True)
        mean += truth[positive] * (
            np.diag(chances @ shares) - np.einsum("s,si,sj->ij", chances, shares, shares)
        )
    return mean


@pytest.mark.parametrize(("n", "least"), [(4, 0.7), (16, 0.9), (64, 0.95)])
def test_flatness_of_the_sampled_loss_explains_the_underestimate(n, least):
    """One Newton step with the curvature of the sampled loss instead of that of the softmax.

    The drift uses the curvature of the full softmax. A loss with few candidates is flatter, so that
    training goes farther: with its own curvature the prediction is nearly right at n = 4 too.
    """
    counts, chances = all_counts(n)
    for scores, truth in zip(SCORES, P, strict=True):
        fitted = np.array(scores)
        for _ in range(100):
            gradient = mean_refined_gradient(fitted, truth, counts, chances)
            step = np.linalg.pinv(mean_refined_curvature(fitted, truth, counts, chances)) @ gradient
            if (fitted == scores).all():
                predicted = ((truth * step**2).sum() - (truth @ step) ** 2) / 2
            fitted = fitted - 0.7 * step
        assert np.abs(gradient).max() < 1e-9
        fitted_p = np.exp(fitted) / np.exp(fitted).sum()
        excess = (truth * np.log(truth / fitted_p)).sum()
        assert least < predicted / excess < 1.05
        drift = (mean_refined_gradient(np.array(scores), truth, counts, chances) ** 2 / truth).sum()
        assert abs(predicted / excess - 1) < abs(drift / 2 / excess - 1)
