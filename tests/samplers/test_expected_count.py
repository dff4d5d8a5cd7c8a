import math
from collections import namedtuple
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from candid.samplers import InBatch, Popularity, Uniform
from candid.samplers.expected_count import log_expected_count

Rows = namedtuple("Rows", "positive_ids user_ids query", defaults=(None,))


@given(st.integers(1, 10**9), st.integers(1, 400), st.data())
def test_inclusion_probability_is_exact(denominator, n, data):
    q = Fraction(data.draw(st.integers(1, denominator)), denominator)
    exact = 1 - (1 - q) ** n
    log_q = torch.tensor(float(q), dtype=torch.float64).log()
    expected_counts = log_expected_count(log_q, n, distinct=True).exp().item()
    assert expected_counts == pytest.approx(float(exact), rel=1e-5)


def test_tiny_probability_and_many_samples_do_not_underflow():
    log_q = torch.tensor([-600.0], dtype=torch.float64)
    expected_counts = log_expected_count(log_q, 10**6, distinct=True)
    assert expected_counts.item() == pytest.approx(-600.0 + math.log(10**6), abs=1e-4)


@pytest.mark.parametrize("distinct", [False, True])
def test_expected_count_of_impossible_and_certain_items(distinct):
    log_q = torch.tensor([-math.inf, 0.0], dtype=torch.float64)
    expected_counts = log_expected_count(log_q, 3, distinct)
    assert expected_counts[0].item() == -math.inf
    assert expected_counts[1].item() == pytest.approx(0.0 if distinct else math.log(3))
    assert log_expected_count(log_q, 0, distinct).tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("name", ["uniform", "popularity"])
def test_stated_counts_match_a_simulation(name, distinct, counts, rows, generator):
    sampler = (
        Uniform(len(counts), num_candidates=7, distinct=distinct)
        if name == "uniform"
        else Popularity(counts, num_candidates=7, exponent=0.75, distinct=distinct)
    )
    trials = 2500
    seen = torch.zeros(len(counts), dtype=torch.float64)
    for _ in range(trials):
        seen += torch.bincount(sampler.sample(*rows, generator).ids, minlength=len(counts))
    expected_counts = sampler.log_expected_count_of(torch.arange(len(counts)), *rows).double().exp()
    # A count of 7 samples has a variance of at most its mean.
    error = (seen / trials - expected_counts).abs()
    assert bool((error <= 5 * (expected_counts / trials).sqrt()).all())


@pytest.mark.parametrize("num_candidates", [None, 4])
@pytest.mark.parametrize("exclude_same_user", [False, True])
def test_in_batch_sets_state_the_inclusion_by_other_rows(
    exclude_same_user, num_candidates, counts, generator
):
    sampler = InBatch(
        counts, exclude_same_user=exclude_same_user, distinct=True, num_candidates=num_candidates
    )
    user_ids = torch.tensor([0, 0, 1, 1, 2, 2])
    q = counts.double() / counts.sum()
    trials = 2000
    seen = torch.zeros(len(counts), dtype=torch.float64)
    for _ in range(trials):
        positives = torch.multinomial(q, 6, replacement=True, generator=generator)
        rows = Rows(positives, user_ids)
        sampled = sampler.sample(*rows, generator)
        # The negatives of row 0, which must not depend on the item of row 0.
        assert len(set(sampled.ids.tolist())) == len(sampled.ids)
        negative = sampled.ids != positives[0]
        if exclude_same_user:
            negative &= sampled.owner != 0
        seen[sampled.ids[negative]] += 1
    num_samples = num_candidates or 6
    others = num_samples * (4 / 6 if exclude_same_user else 5 / 6)
    # Given that row 0 does not hold the item itself.
    expected = (1 - (1 - q) ** others) * (1 - q)
    expected_counts = sampler.log_expected_count_of(torch.arange(len(counts)), *rows).double().exp()
    torch.testing.assert_close(expected_counts, 1 - (1 - q) ** others, rtol=1e-5, atol=1e-7)
    if num_candidates is None:
        # With a sample, the number of other rows in it varies about its average.
        error = (seen / trials - expected).abs()
        assert bool((error <= 5 * (expected / trials).sqrt()).all())
