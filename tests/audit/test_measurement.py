"""Measured statistics against the enumeration of every sample of a tiny catalog."""

import dataclasses
import math
import statistics

import numpy as np
import pytest
import torch

from candid.audit import Estimator, SamplingBudget, sampler_config
from candid.audit.audit_sampler import AuditSampler
from candid.audit.full_softmax import compute_full_softmax
from candid.audit.measurement import measure
from candid.audit.statistics import concatenate
from candid.candidates import Candidates
from candid.samplers import Uniform
from candid.samplers.config import SamplerConfig
from candid.samplers.sampler import Sampler

from .conftest import enumerate_statistics, tiny_input

POPULARITY = sampler_config({"type": "popularity", "num_candidates": 3})
IN_BATCH = sampler_config({"type": "in_batch"})


def audit_sampler(data, config, *, batch_rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return AuditSampler(config, data, batch_rows=batch_rows, generator=generator)


def measure_means(data, config, *, repeats, seed=0, batch_rows=3, **budget):
    sampler = audit_sampler(data, config, batch_rows=batch_rows, seed=seed)
    exact = compute_full_softmax(data)
    sampling = SamplingBudget(repeats=repeats, **budget)
    return measure(data, exact, sampler, (Estimator("refined"),), sampling)[0]


def assert_agrees(result, expected):
    assert result.bias_error < 0.03
    assert abs(result.bias - expected["bias"]) < 4 * result.bias_error
    assert result.rmse == pytest.approx(expected["rmse"], rel=0.06)
    assert abs(result.loss_bias - expected["loss_bias"]) < 4 * result.loss_bias_error
    expected_size = expected["effective_sample_size"]
    assert result.effective_sample_size == pytest.approx(expected_size, rel=0.06)
    error = expected["z_sd"] / math.sqrt(result.repeats)
    assert abs(result.z_mean - expected["z_mean"]) < 4 * error
    assert result.z_sd == pytest.approx(expected["z_sd"], rel=0.1)


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("config", [POPULARITY, IN_BATCH])
def test_statistics_equal_those_of_all_samples(tiny, config, distinct):
    config = config.model_copy(update={"distinct": distinct})
    means = measure_means(tiny, config, repeats=800)
    assert_agrees(means.statistics(), enumerate_statistics(3, distinct))


class UniformPerRow(Sampler):
    """A separate uniform sample for every row, like the samplers that follow the query."""

    class Config(SamplerConfig):
        """Settings of ``UniformPerRow``."""

        def build(self, counts):
            return UniformPerRow(len(counts))

        def candidates_per_row(self, batch_rows):
            return 3

        @property
        def samples_per_row(self):
            return True

    def __init__(self, num_items):
        super().__init__(num_items)
        self._shared = Uniform(num_items, num_candidates=3)

    def sample(self, positive_ids, user_ids=None, query=None, generator=None):
        samples = [
            self._shared.sample(positive_ids, user_ids, query, generator) for _ in positive_ids
        ]
        return Candidates(
            ids=torch.stack([sample.ids for sample in samples]),
            log_expected_count=torch.stack([sample.log_expected_count for sample in samples]),
            log_expected_count_positive=samples[0].log_expected_count_positive,
            num_samples=3,
        )

    def log_expected_count_of(self, ids, positive_ids, user_ids=None, query=None):
        return self._shared.log_expected_count_of(ids, positive_ids, user_ids, query)


def test_statistics_of_samples_per_row(tiny):
    means = measure_means(tiny, UniformPerRow.Config(), repeats=800)
    assert_agrees(means.statistics(), enumerate_statistics(3, False, q=np.full(4, 0.25)))


def test_measure_with_little_memory_divides_rows_into_blocks(tiny):
    two_rows = 8 * 8 * 4 * 2
    for config, q in ((POPULARITY, None), (UniformPerRow.Config(), np.full(4, 0.25))):
        means = measure_means(tiny, config, repeats=400, memory=two_rows)
        assert means.repeats.tolist() == [400] * 3
        assert_agrees(means.statistics(), enumerate_statistics(3, False, q))


def test_statistics_of_a_cross_batch_memory_are_in_batch_with_more_rows(tiny):
    config = sampler_config({"type": "cross_batch_memory", "size": 2})
    means = measure_means(tiny, config, repeats=800, batch_rows=1)
    assert_agrees(means.statistics(), enumerate_statistics(3, False))


def test_exact_candidates_of_the_whole_catalog_have_no_error(tiny):
    config = sampler_config({"type": "exact_popular", "num_exact": 4, "rest": POPULARITY})
    result = measure_means(tiny, config, repeats=16).statistics()
    assert abs(result.bias) < 1e-7
    assert result.rmse < 1e-6
    assert result.loss_bias == pytest.approx(0, abs=1e-7)


def test_bias_error_equals_deviation_of_repeated_audits(tiny):
    runs = [
        measure_means(tiny, POPULARITY, repeats=96, seed=seed).statistics() for seed in range(16)
    ]
    deviation = statistics.stdev(run.bias for run in runs)
    stated = statistics.mean(run.bias_error for run in runs)
    assert 0.4 < stated / deviation < 2.5


def test_bias_is_not_inflated_by_sampling_noise(tiny):
    # Without the cross product, 16 repeats would add RMSE² / 16 to the squared bias.
    squares = [
        run.bias * abs(run.bias)
        for run in (
            measure_means(tiny, POPULARITY, repeats=16, seed=seed).statistics()
            for seed in range(60)
        )
    ]
    expected = enumerate_statistics(3, False)
    noise = expected["rmse"] ** 2 / 16
    error = statistics.stdev(squares) / 60**0.5
    assert abs(statistics.mean(squares) - expected["bias"] ** 2) < 3 * error < noise


def test_measure_repeats_until_the_accuracy_is_reached(tiny):
    sampler = audit_sampler(tiny, POPULARITY)
    exact = compute_full_softmax(tiny)
    estimators = (Estimator("refined"), Estimator("refined", jackknife=True))
    (loose, _), (tight, other) = (
        measure(tiny, exact, sampler, estimators, SamplingBudget(accuracy=accuracy))
        for accuracy in (0.2, 0.02)
    )
    assert tight.statistics().bias_error <= 0.02
    assert other.statistics().bias_error <= 0.02
    assert loose.repeats[0] < tight.repeats[0] <= 2048
    assert tight.repeats[0] == other.repeats[0]


def test_measure_stops_at_the_time_limit(tiny):
    budget = {"accuracy": 1e-9, "seconds": 1e-6}
    means = measure_means(tiny, POPULARITY, repeats=None, **budget)
    assert means.repeats.tolist() == [16] * 3
    budget |= {"seconds": 600.0, "max_repeats": 48}
    means = measure_means(tiny, POPULARITY, repeats=None, **budget)
    assert means.repeats.tolist() == [48] * 3


def test_statistics_of_concatenated_parts_equal_the_whole(tiny):
    means = measure_means(tiny, POPULARITY, repeats=64)
    parts = [
        dataclasses.replace(
            means,
            **{f.name: getattr(means, f.name)[[row]] for f in dataclasses.fields(means)},
        )
        for row in range(3)
    ]
    assert concatenate(parts).statistics() == means.statistics()
    mask = torch.tensor([True, False, True])
    assert means.statistics(mask) == concatenate([parts[0], parts[2]]).statistics()
    assert means.statistics(mask).num_rows == 2


def test_rows_of_the_same_user_are_masked():
    rows = tiny_input().training_positive_ids
    data = tiny_input(training_user_ids=torch.zeros_like(rows))
    means = measure_means(data, IN_BATCH, repeats=400)
    # All training rows belong to user 0, as row 0 does: it has no candidates and no gradient.
    assert means.squared_norm[0].sum() == 0
    assert means.effective_sample_size[0].sum() == 0
    assert means.squared_norm[1].min() > 0


def test_full_softmax_in_blocks_equals_log_softmax(tiny, monkeypatch):
    monkeypatch.setattr("candid.audit.full_softmax.BLOCK_SCORES", 6)  # two items at a time
    exact = compute_full_softmax(tiny)
    scores = tiny.item_vectors.T.double()
    log_probs = torch.log_softmax(scores, dim=1)
    gradient = log_probs.exp() - torch.eye(4, dtype=torch.float64)[tiny.positive_ids]
    nll = -log_probs[torch.arange(3), tiny.positive_ids]
    torch.testing.assert_close(exact.nll, nll)
    torch.testing.assert_close(exact.log_partition, scores.logsumexp(dim=1))
    torch.testing.assert_close(exact.sample_weight, 1 - torch.exp(-nll))
    torch.testing.assert_close(exact.squared_norm, gradient.square().sum(dim=1))
