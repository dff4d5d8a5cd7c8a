"""Buckets of time gaps against whole numbers of Python, and the look-up against autograd."""

import numpy as np
import pytest
import torch

from candid.batches import UNKNOWN_TIME
from candid.towers import padded_transformer, time_gaps

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND + 700_000


def expected_bucket(earlier, later):
    """The bucket of the gap between two times in microseconds."""
    if UNKNOWN_TIME in (earlier, later) or later // SECOND < earlier // SECOND:
        return 0
    return min(later // SECOND - earlier // SECOND + 1, 2**30).bit_length()


def random_times(shape, seed=0):
    """Times with gaps of up to years, some of them negative, some unknown."""
    rng = np.random.default_rng(seed)
    gaps = SECOND * 2 ** rng.uniform(-2, 24, shape) * rng.choice([1, 1, 1, 1, -0.1], shape)
    times = NOW + gaps.astype(np.int64).cumsum(-1)
    return np.where(rng.random(shape) < 0.15, UNKNOWN_TIME, times)


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0, 1), (1, 2), (2, 2), (3, 3), (6, 3), (7, 4), (3600, 12), (86_400, 17), (2**30 - 1, 31)],
)
def test_bucket_is_the_binary_logarithm_of_the_gap(seconds, bucket):
    gaps = torch.tensor([seconds + 1], dtype=torch.int32)
    assert time_gaps.bucket_of(gaps).tolist() == [bucket]


def test_bucket_of_a_graph_is_that_of_the_tower():
    powers = torch.tensor([2**k for k in range(31)])
    gaps = torch.cat([powers - 1, powers, powers + 1, torch.randint(0, 2**30, (5000,))])
    gaps = torch.cat([gaps.clamp(max=2**30), torch.tensor([0, -1, -(2**30)])]).int()
    buckets = time_gaps.bucket_of(gaps)
    assert torch.equal(buckets, padded_transformer._bucket_of(gaps))
    assert (buckets[-3:] == 0).all()
    assert buckets.max() < time_gaps.NUM_BUCKETS


def test_seconds_before_the_latest_interaction_of_a_sequence():
    times = torch.tensor([NOW, NOW + 400_000, NOW + 5 * SECOND, UNKNOWN_TIME, -5, NOW, 3])
    sequences = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    seconds = time_gaps.seconds_before_last(times, sequences, 3)
    # .7 s + .4 s is in the next second; a history of 53 years is cut.
    assert seconds.tolist() == [5, 4, 0, -1, 0, 0, 2**30 - 1]


def test_buckets_equal_those_of_loops():
    times = random_times((6, 9))
    flat = torch.from_numpy(times.flatten())
    sequences = torch.arange(6).repeat_interleave(9)
    seconds = time_gaps.seconds_before_last(flat, sequences, 6)
    pairs = time_gaps.pair_buckets(seconds.view(6, 9))
    previous = time_gaps.previous_buckets(seconds, torch.arange(9).repeat(6)).view(6, 9)
    for s, row in enumerate(times.tolist()):
        first = 0 if row[0] == UNKNOWN_TIME else time_gaps.FIRST
        assert previous[s].tolist() == [first, *map(expected_bucket, row, row[1:])]
        for i, later in enumerate(row):
            expected = [expected_bucket(earlier, later) for earlier in row[: i + 1]]
            assert pairs[s, i].tolist() == expected + [time_gaps.LATER] * (8 - i)
    assert len(pairs.unique()) > 15


@pytest.mark.parametrize("sums", [time_gaps._sums_by_head, time_gaps._sums_by_row])
def test_look_up_has_the_gradient_of_indexing(sums, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(time_gaps, "_sums_by_head", sums)
    buckets = torch.randint(0, 5, (3, 7, 7), dtype=torch.int32)
    table = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 2, 7, 7, dtype=torch.float64)
    biases = time_gaps.look_up(table, buckets)
    (gradient,) = torch.autograd.grad((biases * weights).sum(), table)
    expected = table[:, buckets.long()].transpose(0, 1)
    assert torch.equal(biases, expected)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), table)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
