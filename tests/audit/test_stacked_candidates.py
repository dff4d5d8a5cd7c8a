"""Samples that are scored together against the same samples, scored one after the other."""

import pytest
import torch

from candid.audit import AuditSampler, DriftBudget, Estimator, measure_drift, sampler_config
from candid.audit.audit_sampler import AuditRows
from candid.audit.stacked_candidates import can_be_stacked, stacked

from .conftest import tiny_input

UNIFORM = {"type": "uniform", "num_candidates": 3}
POPULARITY = {"type": "popularity", "num_candidates": 3}
NEAREST = {"type": "exact_nearest", "num_exact": 1, "k": 1, "rest": POPULARITY}
TABLES = [
    POPULARITY,
    POPULARITY | {"distinct": True},
    {"type": "in_batch"},
    {"type": "in_batch", "distinct": True},
    {"type": "mixture", "components": [UNIFORM, {"type": "in_batch"}]},
    {"type": "quadratic", "num_candidates": 3},
    {"type": "exact_popular", "num_exact": 1, "rest": POPULARITY},
    NEAREST,
    NEAREST | {"shared": False},
]


def sampler_of(table, data):
    generator = torch.Generator().manual_seed(0)
    return AuditSampler(sampler_config(table), data, batch_rows=3, generator=generator)


@pytest.mark.parametrize("table", TABLES)
def test_drift_of_stacked_samples_equals_that_of_single_ones(table, monkeypatch):
    data = tiny_input()
    estimators = [Estimator("logq"), Estimator("refined")]

    def drifts():
        budget = DriftBudget(repeats=40, num_positives=2)
        return measure_drift(data, sampler_of(table, data), estimators, budget)

    together = drifts()
    monkeypatch.setattr("candid.audit.drift.can_be_stacked", lambda samples: False)
    for one, other in zip(together, drifts(), strict=True):
        assert one.by_user.numpy() == pytest.approx(other.by_user.numpy(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("table", TABLES)
def test_stacked_rows_have_the_candidates_of_their_sample(table):
    data = tiny_input()
    sampler = sampler_of(table, data)
    samples = [sampler.sample(AuditRows.of(data, slice(0, 3))) for _ in range(4)]
    assert can_be_stacked(samples)
    result = stacked(samples)
    ids, counts = result.by_row(result.ids), result.by_row(result.log_expected_count)
    assert len(ids) == 12
    for index, sample in enumerate(samples):
        size = sample.ids.shape[-1]
        rows = slice(3 * index, 3 * index + 3)
        assert torch.equal(ids[rows, :size], sample.by_row(sample.ids).expand(3, size))
        # A shorter set is padded by entries with an infinite count.
        assert bool(counts[rows, size:].isposinf().all())


def test_samples_of_different_sizes_are_not_stacked():
    data = tiny_input()
    rows = AuditRows.of(data, slice(0, 3))
    samples = [
        sampler_of(table, data).sample(rows)
        for table in (POPULARITY, POPULARITY | {"num_candidates": 4})
    ]
    assert not can_be_stacked(samples)
