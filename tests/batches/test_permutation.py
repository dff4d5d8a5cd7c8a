"""Permutations of units: bijections, the order of published batches, and statistics of mixing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.batches import permutation
from candid.batches.permutation import EpochOrder, KeyedPermutation


def order(seed=3, epoch=2, always=50, further=0, sampled=0):
    return EpochOrder(seed, epoch, num_always=always, num_further=further, num_sampled=sampled)


@settings(deadline=None, max_examples=200)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_every_number_comes_out_once(size, seed):
    permuted = KeyedPermutation(size, [seed])(np.arange(size))
    assert permuted.dtype == np.int64
    assert sorted(permuted.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [2**31 - 1, 2**31 + 11, 10**12 + 39, 2**53 + 5, 2**62])
def test_large_permutations_stay_in_their_range(size):
    permute = KeyedPermutation(size, [1])
    positions = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)])
    units = permute(positions)
    assert len(set(units.tolist())) == len(positions)
    assert 0 <= units.min() <= units.max() < size
    # One at a time and in another order they are the same.
    assert permute(positions[::-7]).tolist() == units[::-7].tolist()
    # Spread over the whole range: 5 standard errors of the mean of a uniform variable.
    assert abs(units.mean() / size - 0.5) < 5 * 0.289 / np.sqrt(len(units))


def test_order_of_few_units_is_that_of_a_shuffled_array():
    for epoch in range(3):
        expected = np.random.default_rng([3, epoch]).permutation(50)
        assert order(epoch=epoch)[slice(0, 50)].tolist() == expected.tolist()
        rng = np.random.default_rng([3, epoch])
        units = np.append(np.arange(20), 20 + rng.choice(30, 12, replace=False))
        expected = rng.permutation(units)
        sampled = order(epoch=epoch, always=20, further=30, sampled=12)
        assert sampled[slice(0, 99)].tolist() == expected.tolist()


@pytest.mark.parametrize("array_units", [0, 1 << 22])
@pytest.mark.parametrize("sizes", [(50, 0, 0), (20, 30, 12), (0, 30, 30), (7, 30, 0), (1, 0, 0)])
def test_epoch_has_every_unit_once_and_a_sample_of_others(sizes, array_units, monkeypatch):
    monkeypatch.setattr(permutation, "ARRAY_UNITS", array_units)
    always, further, sampled = sizes
    seen = set()
    for epoch in range(200):
        epoch_order = order(3, epoch, always, further, sampled)
        units = np.concatenate([epoch_order[slice(n, n + 8)] for n in range(0, 56, 8)])
        assert len(units) == always + sampled == len(set(units.tolist()))
        assert set(range(always)) <= set(units.tolist()) <= set(range(always + further))
        seen |= set(units.tolist())
    assert len(seen) == always + (further if sampled else 0)


def test_orders_differ_by_seed_epoch_and_sample(monkeypatch):
    monkeypatch.setattr(permutation, "ARRAY_UNITS", 0)
    orders = {
        tuple(order(seed, epoch, 40, further, further)[slice(0, 40)].tolist())
        for seed, epoch, further in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 0, 40)]
    }
    assert len(orders) == 5


def chi_square(counts, expected):
    """Return the chi-square statistic as a number of standard deviations from its mean."""
    degrees = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees)


def test_units_at_each_position_are_uniform_over_keys():
    """Each cell of position times unit, and each pair of neighbours, as often as any other."""
    size, keys = 400, 1500
    permuted = np.stack([KeyedPermutation(size, [key])(np.arange(size)) for key in range(keys)])
    cells = np.zeros((size, size))
    for position in range(size):
        cells[position] = np.bincount(permuted[:, position], minlength=size)
    # Rows and columns have fixed sums, so that (size - 1)**2 cells are free.
    statistic = ((cells - keys / size) ** 2 / (keys / size)).sum()
    assert abs(statistic - (size - 1) ** 2) < 5 * np.sqrt(2 * (size - 1) ** 2)
    gaps = (permuted[:, 1:] - permuted[:, :-1]) % size
    counts = np.bincount(gaps.ravel(), minlength=size)[1:]
    assert abs(chi_square(counts, counts.sum() / (size - 1))) < 5


def test_batches_mix_units_as_a_shuffle_does():
    """Units of one user are adjacent numbers; batches must have no more of them than chance."""
    size, batch, block = 1_000_003, 1000, 100
    permute = KeyedPermutation(size, [7])
    pairs = []
    for start in range(0, 200 * batch, batch):
        units = permute(np.arange(start, start + batch))
        counts = np.bincount(units // block)
        pairs.append((counts * (counts - 1) // 2).sum())
    # A pair of a batch has the same block with probability (block - 1) / (size - 1).
    expected = batch * (batch - 1) / 2 * (block - 1) / (size - 1)
    assert abs(np.mean(pairs) - expected) < 5 * np.sqrt(expected / len(pairs))
    assert 0.7 < np.var(pairs) / expected < 1.4


def test_ranks_of_neighbours_are_not_correlated():
    size = 2_000_003
    for seed in range(5):
        units = KeyedPermutation(size, [seed])(np.arange(100_000)) / size
        for lag in (1, 2, 1415, 2830):
            correlation = np.corrcoef(units[:-lag], units[lag:])[0, 1]
            assert abs(correlation) < 5 / np.sqrt(len(units) - lag)
