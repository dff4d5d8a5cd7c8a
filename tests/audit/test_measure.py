"""The measuring core against every draw of a tiny catalog, listed with its probability."""

import dataclasses
import statistics

import numpy as np
import pytest
import torch

from candid.audit import Effort, Variant, sampler_config
from candid.audit.exact import exact_softmax
from candid.audit.measure import measure
from candid.audit.moments import joined
from candid.audit.sampler import Sampler
from candid.candidates import Candidates
from candid.samplers import Uniform

from .conftest import enumerated, tiny_subject

POPULARITY = {"type": "popularity", "num_candidates": 3}
IN_BATCH = {"type": "in_batch"}


def found(subject, table, *, draws, seed=0, batch_rows=3, **effort):
    sampler = table
    if isinstance(table, dict):
        sampler = sampler_config(table).build(subject.counts)
    sampler = Sampler(sampler, subject, batch_rows, torch.Generator().manual_seed(seed))
    exact = exact_softmax(subject)
    return measure(subject, exact, sampler, (Variant(),), Effort(draws=draws, **effort))[0]


def assert_agrees(finding, expected):
    assert finding.bias_error < 0.03
    assert abs(finding.bias - expected["bias"]) < 4 * finding.bias_error
    assert finding.rmse == pytest.approx(expected["rmse"], rel=0.06)
    assert abs(finding.loss_bias - expected["loss_bias"]) < 4 * finding.loss_bias_error
    assert finding.effective == pytest.approx(expected["effective"], rel=0.06)


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("table", [POPULARITY, IN_BATCH])
def test_findings_are_those_of_all_draws_listed(tiny, table, distinct):
    moments = found(tiny, table | {"distinct": distinct}, draws=800)
    assert_agrees(moments.find(), enumerated(3, distinct))


class UniformForEachRow:
    """A draw of its own for every row, as samplers that follow the query make them."""

    def __init__(self):
        self._shared = Uniform(4, 3)

    def draw(self, batch, generator=None):
        draws = [self._shared.draw(batch, generator) for _ in batch.positive_ids]
        return Candidates(
            ids=torch.stack([draw.ids for draw in draws]),
            log_expected_count=torch.stack([draw.log_expected_count for draw in draws]),
            log_expected_count_positive=draws[0].log_expected_count_positive,
            num_samples=3,
        )

    def log_expected_count_of(self, ids, batch):
        return self._shared.log_expected_count_of(ids, batch)


def test_rows_may_have_candidates_of_their_own(tiny):
    moments = found(tiny, UniformForEachRow(), draws=800)
    assert_agrees(moments.find(), enumerated(3, False, q=np.full(4, 0.25)))


def test_a_catalog_too_large_for_one_sum_is_cut_into_blocks(tiny):
    two_rows = 8 * 8 * 4 * 2
    for table in (POPULARITY, UniformForEachRow()):
        q = None if isinstance(table, dict) else np.full(4, 0.25)
        moments = found(tiny, table, draws=400, memory=two_rows)
        assert moments.draws.tolist() == [400] * 3
        assert_agrees(moments.find(), enumerated(3, False, q))


def test_a_memory_is_an_in_batch_sampler_of_more_rows(tiny):
    memory = found(tiny, {"type": "cross_batch_memory", "size": 2}, draws=800, batch_rows=1)
    assert_agrees(memory.find(), enumerated(3, False))


def test_a_head_that_holds_the_whole_catalog_has_no_error(tiny):
    table = {"type": "exact_popular", "num_exact": 4, "rest": POPULARITY}
    finding = found(tiny, table, draws=16).find()
    assert abs(finding.bias) < 1e-7
    assert finding.rmse < 1e-6
    assert finding.loss_bias == pytest.approx(0, abs=1e-7)


def test_the_stated_error_is_that_of_repeated_audits(tiny):
    runs = [found(tiny, POPULARITY, draws=96, seed=seed).find() for seed in range(16)]
    spread = statistics.stdev(run.bias for run in runs)
    stated = statistics.mean(run.bias_error for run in runs)
    assert 0.4 < stated / spread < 2.5


def test_noise_of_the_draws_does_not_look_like_bias(tiny):
    # Without the cross product, 16 draws would add RMSE² / 16 to the squared bias.
    squares = [
        run.bias * abs(run.bias)
        for run in (found(tiny, POPULARITY, draws=16, seed=s).find() for s in range(60))
    ]
    expected = enumerated(3, False)
    noise = expected["rmse"] ** 2 / 16
    error = statistics.stdev(squares) / 60**0.5
    assert abs(statistics.mean(squares) - expected["bias"] ** 2) < 3 * error < noise


def test_draws_are_added_until_the_accuracy_is_reached(tiny):
    sampler = Sampler(
        sampler_config(POPULARITY).build(tiny.counts), tiny, 3, torch.Generator().manual_seed(0)
    )
    exact = exact_softmax(tiny)
    variants = (Variant(), Variant(jackknife=True))
    (loose, _), (tight, other) = (
        measure(tiny, exact, sampler, variants, Effort(accuracy=accuracy))
        for accuracy in (0.2, 0.02)
    )
    assert tight.find().bias_error <= 0.02
    assert other.find().bias_error <= 0.02
    assert loose.draws[0] < tight.draws[0] <= 2048
    assert tight.draws[0] == other.draws[0]


def test_time_ends_the_draws_short_of_the_accuracy(tiny):
    effort = {"accuracy": 1e-9, "seconds": 1e-6}
    moments = found(tiny, POPULARITY, draws=None, **effort)
    assert moments.draws.tolist() == [16] * 3
    moments = found(tiny, POPULARITY, draws=None, **effort | {"seconds": 600.0, "max_draws": 48})
    assert moments.draws.tolist() == [48] * 3


def test_parts_of_the_rows_pool_to_the_whole(tiny):
    moments = found(tiny, POPULARITY, draws=64)
    parts = [
        dataclasses.replace(
            moments,
            **{f.name: getattr(moments, f.name)[[row]] for f in dataclasses.fields(moments)},
        )
        for row in range(3)
    ]
    assert joined(parts).find() == moments.find()
    mask = torch.tensor([True, False, True])
    assert moments.find(mask) == joined([parts[0], parts[2]]).find()
    assert moments.find(mask).rows == 2


def test_rows_of_the_same_user_are_no_negatives_of_each_other():
    rows = tiny_subject().training_positive_ids
    row_candidates = tiny_subject(training_user_ids=torch.zeros_like(rows))
    sampler = Sampler(
        sampler_config(IN_BATCH).build(row_candidates.counts),
        row_candidates,
        3,
        torch.Generator().manual_seed(0),
    )
    moments = measure(
        row_candidates, exact_softmax(row_candidates), sampler, (Variant(),), Effort(draws=400)
    )[0]
    # Row 0 is of user 0, as all training rows are: no candidate is left, so no gradient.
    assert moments.square[0].sum() == 0
    assert moments.effective[0].sum() == 0
    assert moments.square[1].min() > 0


def test_the_exact_softmax_is_that_of_all_scores(tiny, monkeypatch):
    monkeypatch.setattr("candid.audit.exact.BLOCK_SCORES", 6)  # two items at a time
    exact = exact_softmax(tiny)
    scores = tiny.item_vectors.T.double()
    log_probs = torch.log_softmax(scores, dim=1)
    gradient = log_probs.exp() - torch.eye(4, dtype=torch.float64)[tiny.positive_ids]
    nll = -log_probs[torch.arange(3), tiny.positive_ids]
    torch.testing.assert_close(exact.nll, nll)
    torch.testing.assert_close(exact.log_partition, scores.logsumexp(dim=1))
    torch.testing.assert_close(exact.weight, 1 - torch.exp(-nll))
    torch.testing.assert_close(exact.square, gradient.square().sum(dim=1))
