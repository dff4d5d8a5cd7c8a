"""Frequency from the stream, against exact counts and against the rule row by row."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.errors import ArtifactError, ConfigError
from candid.samplers import StreamingFrequency, frequency_error


def zipf_stream(num_items, num_rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = 1.0 / torch.arange(1, num_items + 1, dtype=torch.float64)
    points = torch.rand(num_rows, generator=generator, dtype=torch.float64) * weights.sum()
    sampled = torch.searchsorted(weights.cumsum(0), points).clamp(max=num_items - 1)
    return torch.randperm(num_items, generator=generator)[sampled]


def row_by_row(stream, item, rate):
    """The estimate of one item that shares no bucket, row by row as defined."""
    counted = math.ceil(1 / rate)
    last = times = 0
    gap = 0.0
    for row, seen in enumerate(stream, start=1):
        if seen == item:
            times += 1
            gap = row / times if times <= counted else (1 - rate) * gap + rate * (row - last)
            last = row
    if not times:
        return None
    if times <= counted:
        return times / len(stream)
    return 1 / max(gap, (1 - rate) * gap + rate * (len(stream) - last))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    stream=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    cuts=st.lists(st.integers(1, 20), max_size=6),
    rate=st.sampled_from([0.6, 0.3, 0.1]),
)
def test_batches_give_the_estimate_of_single_rows(stream, cuts, rate):
    frequency = StreamingFrequency(8, num_buckets=4096, num_hashes=2, rate=rate)
    rest = torch.tensor(stream)
    for cut in cuts:
        frequency.observe(rest[:cut])
        rest = rest[cut:]
    frequency.observe(rest)
    estimates = frequency.log_q(torch.arange(8)).exp().tolist()
    for item, estimate in enumerate(estimates):
        expected = row_by_row(stream, item, rate)
        lower_bound = 1 / max(len(stream) + 1, 8)
        assert estimate == pytest.approx(lower_bound if expected is None else expected, rel=1e-5)


def test_error_on_a_zipf_stream_follows_the_rate():
    stream = zipf_stream(2000, 200_000)
    counts = torch.bincount(stream, minlength=2000)
    errors = {}
    for rate in (0.05, 0.005):
        frequency = StreamingFrequency(2000, rate=rate)
        for batch in stream.split(512):
            frequency.observe(batch)
        errors[rate] = frequency_error(frequency, counts).by_band["head"]
        # A normal error of standard deviation sqrt(rate / 2) has a mean size of 0.8 of that.
        assert errors[rate] < 1.6 * math.sqrt(rate / 2)
    assert errors[0.005] < errors[0.05]


def test_several_hashes_use_the_largest_gap():
    stream = zipf_stream(2000, 100_000, seed=1)
    counts = torch.bincount(stream, minlength=2000)
    errors = {}
    for num_hashes in (1, 4):
        frequency = StreamingFrequency(2000, num_buckets=1500, num_hashes=num_hashes)
        frequency.observe(stream)
        errors[num_hashes] = frequency_error(frequency, counts).by_band["tail"]
    assert errors[4] < errors[1] / 3


def test_estimate_follows_a_change():
    """The estimate of an item that becomes ten times as frequent follows."""
    generator = torch.Generator().manual_seed(2)
    before, after = (
        (torch.rand(50_000, generator=generator) >= share).long() for share in (0.02, 0.2)
    )
    frequency = StreamingFrequency(2, rate=0.02)
    frequency.observe(before)
    assert frequency.log_q(torch.tensor(0)).exp().item() == pytest.approx(0.02, rel=0.3)
    frequency.observe(after)
    assert frequency.log_q(torch.tensor(0)).exp().item() == pytest.approx(0.2, rel=0.3)


def test_item_without_new_occurrences_becomes_rare():
    frequency = StreamingFrequency(3, rate=0.1)
    frequency.observe(torch.tensor([0, 1] * 50))
    often = frequency.log_q(torch.tensor(0)).item()
    frequency.observe(torch.ones(10_000, dtype=torch.int64))
    assert often == pytest.approx(math.log(0.5), abs=0.01)
    assert frequency.log_q(torch.tensor(0)).exp().item() == pytest.approx(1 / 1001.9, rel=0.01)


def test_unseen_items_have_the_stated_lower_bound():
    frequency = StreamingFrequency(100)
    assert frequency.log_q(torch.arange(100)).exp().tolist() == pytest.approx([0.01] * 100)
    frequency.observe(torch.zeros(999, dtype=torch.int64))
    assert frequency.log_q(torch.tensor([5])).exp().item() == pytest.approx(1 / 1000)


def test_state_dict_continues_the_estimate():
    stream = zipf_stream(300, 4000)
    settings = {"num_buckets": 128, "num_hashes": 2, "rate": 0.1}
    whole, first, second = (StreamingFrequency(300, **settings) for _ in range(3))
    whole.observe(stream[:1500])
    first.observe(stream[:1500])
    state = copy.deepcopy(first.state_dict())
    first.observe(stream[1500:])
    second.load_state_dict(state)
    assert torch.equal(second.log_q(stream), whole.log_q(stream))
    second.observe(stream[1500:])
    assert torch.equal(second.log_q(stream), first.log_q(stream))
    assert all(torch.equal(state[key], whole.state_dict()[key]) for key in state)


@pytest.mark.parametrize("change", [{"num_buckets": 64}, {"num_hashes": 3}, {"seed": 1}])
def test_state_of_other_hashes_is_refused(change):
    settings = {"num_buckets": 128, "num_hashes": 2, "seed": 0}
    state = StreamingFrequency(9, **settings).state_dict()
    message = "num_buckets, num_hashes and seed|size mismatch for gap"
    with pytest.raises((ArtifactError, RuntimeError), match=message):
        StreamingFrequency(9, **settings | change).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*num_rows"):
        StreamingFrequency(9).load_state_dict({})


def test_ids_of_any_shape_and_no_rows_are_accepted():
    frequency = StreamingFrequency(50)
    frequency.observe(torch.empty(0, dtype=torch.int64))
    frequency.observe(torch.arange(12).view(3, 4))
    assert frequency.num_rows == 12
    assert frequency.log_q(torch.zeros(2, 3, 1, dtype=torch.int64)).shape == (2, 3, 1)
    copied = pickle.loads(pickle.dumps(frequency))
    assert torch.equal(copied.log_q(torch.arange(50)), frequency.log_q(torch.arange(50)))


@pytest.mark.parametrize(
    "settings", [{"num_items": 0}, {"num_buckets": 0}, {"num_hashes": 0}, {"rate": 1.0}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        StreamingFrequency(**{"num_items": 5, **settings})
