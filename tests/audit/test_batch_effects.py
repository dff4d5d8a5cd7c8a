from dataclasses import replace

import numpy as np
import pytest
import torch

from candid.audit import Estimator, SamplingBudget, sampler_config
from candid.audit.audit_sampler import AuditSampler
from candid.audit.batch_effects import frequency_error, measure_batch_effects
from candid.audit.full_softmax import compute_full_softmax
from candid.audit.measurement import measure
from candid.batches import BatchesConfig
from candid.candidates import Candidates
from candid.losses import sampled_softmax

from .conftest import clustered_dataset, clustered_input, tiny_input

IN_BATCH = sampler_config({"type": "in_batch"})
REFINED = (Estimator("refined"),)
BUDGET = SamplingBudget(repeats=256)


def effects_of(data, config=IN_BATCH, budget=BUDGET):
    reference = compute_full_softmax(data)
    generator = torch.Generator().manual_seed(0)
    sampler = AuditSampler(config, data, batch_rows=1, generator=generator)
    (means,) = measure(data, reference, sampler, REFINED, budget)
    return measure_batch_effects(data, reference, config, REFINED, [means.statistics()], budget)


def test_bias_of_a_frequency_is_that_of_all_dealt_rows_as_candidates():
    data = tiny_input()
    stated = torch.tensor([5.0, 3.0, 1.0, 7.0]).double() / 16
    result = frequency_error(data, stated.log())
    # With each item exactly as often as it is expected, the estimate is that of infinitely many.
    rows = data.training_positive_ids
    biased = exact = 0.0
    for row in range(3):
        logits = data.item_vectors[:, row].double().requires_grad_()
        positive = data.positive_ids[row : row + 1]
        candidates = Candidates(
            ids=rows,
            log_expected_count=(stated[rows] * len(rows)).log(),
            log_expected_count_positive=(stated[positive] * len(rows)).log(),
            num_samples=len(rows),
        )
        out = sampled_softmax(
            torch.ones(1, 1, dtype=torch.float64),
            logits[:, None],
            positive,
            candidates,
            correction="refined",
        )
        (gradient,) = torch.autograd.grad(out.loss.sum(), logits)
        full = logits.detach().softmax(0) - torch.eye(4, dtype=torch.float64)[positive[0]]
        biased += float((gradient - full).square().sum())
        exact += float(full.square().sum())
    assert result.bias == pytest.approx((biased / exact) ** 0.5, rel=1e-9)
    dealt = np.array([8, 4, 3, 1]) / 16
    assert result.total_variation == pytest.approx(np.abs(stated.numpy() - dealt).sum() / 2)
    assert result.log_ratio_quantile == pytest.approx(np.log(7))


def test_excess_nll_is_the_divergence_from_the_distribution_with_wrong_logits():
    data = tiny_input()
    stated = torch.tensor([5.0, 3.0, 1.0, 7.0]).double() / 16
    result = frequency_error(data, stated.log())
    dealt = np.array([8, 4, 3, 1]) / 16
    expected = []
    for row in range(3):
        p = np.exp(data.item_vectors[:, row].double().numpy())
        p /= p.sum()
        converged = p * stated.numpy() / dealt
        converged /= converged.sum()
        expected.append((p * np.log(p / converged)).sum())
        # There, candidates of frequency dealt / stated reproduce P: the mean gradient is 0.
        estimate = converged * dealt / stated.numpy()
        np.testing.assert_allclose(estimate / estimate.sum(), p)
    assert result.excess_nll == pytest.approx(np.mean(expected))


def test_the_dealt_frequency_has_no_error():
    data = tiny_input()
    result = frequency_error(data, (data.counts.double() / 16).log())
    assert max(result.to_json().values()) < 1e-12


def test_a_dealt_item_that_is_stated_never_to_be_sampled_is_infinitely_wrong():
    data = tiny_input()
    result = frequency_error(data, torch.tensor([0.5, 0.25, 0.25, 0.0]).log())
    assert result.to_json()["excess_nll"] is None
    assert result.bias > 0


@pytest.mark.parametrize("batch_size", [20, 60])
def test_stored_counts_are_seen_and_dealt_counts_are_not(batch_size):
    dataset = clustered_dataset(num_users=60)
    data = clustered_input(dataset, BatchesConfig(batch_size=batch_size))
    # A seventh of the stored interactions are first ones, of four items that are dealt less often.
    stored = torch.from_numpy(dataset.train_counts).double()
    (right,) = effects_of(data)
    (wrong,) = effects_of(replace(data, counts=stored))
    assert right.frequency.bias < 1e-6
    assert right.frequency.excess_nll < 1e-9
    assert wrong.frequency.total_variation > 0.1
    assert wrong.frequency.bias > 0.05
    assert wrong.frequency.excess_nll > 0.02
    assert wrong.real.bias > right.real.bias + 8 * (wrong.real.bias_error + right.real.bias_error)
    assert abs(wrong.real.z_mean - 1) > 0.06 > 0.03 > abs(right.real.z_mean - 1)
    # The measurement with independent rows has the dealt frequency in both.
    assert wrong.independent == right.independent


def test_clusters_show_as_the_difference_from_independent_rows():
    data = clustered_input(clustered_dataset(num_users=60), BatchesConfig(batch_size=4))
    (effects,) = effects_of(data)
    assert effects.real.z_sd > 1.1 * effects.independent.z_sd
    assert effects.real.loss_bias < effects.independent.loss_bias
    assert effects.mean_rows == data.batches.mean_other_rows
    assert "real batches have 18 rows of other units" in effects.sentence()
    assert set(effects.to_json()) == {"mean_rows", "real", "independent", "frequency"}


@pytest.mark.parametrize(
    ("table", "has_frequency"),
    [
        ({"type": "in_batch", "distinct": True}, False),
        ({"type": "cross_batch_memory", "size": 30}, True),
        (
            {
                "type": "mixture",
                "components": [{"type": "in_batch"}, {"type": "uniform", "num_candidates": 4}],
            },
            False,
        ),
    ],
)
def test_every_sampler_that_reads_the_batch_is_separated(table, has_frequency):
    data = clustered_input(clustered_dataset(num_users=60), BatchesConfig(batch_size=6))
    budget = SamplingBudget(repeats=16)
    (effects,) = effects_of(data, sampler_config(table), budget)
    assert (effects.frequency is not None) == has_frequency
    assert np.isfinite(effects.real.bias)


def test_other_samplers_and_independent_rows_have_nothing_to_separate(tiny):
    assert effects_of(tiny, budget=SamplingBudget(repeats=16)) is None
    data = clustered_input(clustered_dataset(), BatchesConfig(batch_size=6))
    uniform = sampler_config({"type": "uniform", "num_candidates": 4})
    assert effects_of(data, uniform, SamplingBudget(repeats=16)) is None


def test_a_frequency_estimated_from_the_stream_is_compared_with_the_dealt_rows():
    data = clustered_input(clustered_dataset(), BatchesConfig(batch_size=6))
    config = sampler_config({"type": "in_batch", "frequency": {"type": "count_min"}})
    (effects,) = effects_of(data, config, SamplingBudget(repeats=16))
    assert 0 < effects.frequency.total_variation < 0.2
