import math
import pickle
import sys

import pytest
import torch

from candid.errors import ArtifactError, ConfigError
from candid.samplers import CountMinFrequency, StreamFrequency


def test_counts_are_never_too_low_and_within_the_bound():
    generator = torch.Generator().manual_seed(0)
    stream = (torch.rand(30_000, generator=generator).pow(3) * 2000).long()
    frequency = CountMinFrequency(2000, num_buckets=500, num_hashes=4)
    for batch in stream.split(700):
        frequency.observe(batch)
    assert frequency.num_rows == 30_000
    exact = torch.bincount(stream, minlength=2000)
    seen = exact > 0
    stated = frequency.log_q(torch.arange(2000)).double().exp() * 30_000
    excess = (stated - exact)[seen]
    assert bool((excess > -0.1).all())
    within = (excess <= math.e / 500 * 30_000 + 0.1).double().mean()
    assert within >= 1 - math.exp(-4)


def test_enough_buckets_count_exactly():
    frequency = CountMinFrequency(20, num_buckets=4096)
    frequency.observe(torch.tensor([[3, 3, 3], [7, 3, 1]]))
    assert frequency.log_q(torch.tensor([[3], [1]])).exp().flatten().tolist() == pytest.approx(
        [4 / 6, 1 / 6]
    )


def test_what_was_never_seen_has_the_stated_floor():
    frequency = CountMinFrequency(100)
    assert frequency.log_q(torch.tensor([4])).exp().item() == pytest.approx(0.01)
    frequency.observe(torch.zeros(999, dtype=torch.int64))
    assert frequency.log_q(torch.tensor([4])).exp().item() == pytest.approx(1 / 1000)


def test_state_and_pickle_come_back_exactly():
    frequency, other = (CountMinFrequency(60, num_buckets=16, num_hashes=2) for _ in range(2))
    frequency.observe(torch.arange(60).repeat(3))
    expected = frequency.log_q(torch.arange(60))
    state = frequency.state()
    frequency.observe(torch.zeros(500, dtype=torch.int64))
    other.restore(state)
    assert torch.equal(other.log_q(torch.arange(60)), expected)
    assert torch.equal(other.state()["sketch"], state["sketch"])
    copied = pickle.loads(pickle.dumps(frequency))
    assert torch.equal(copied.log_q(torch.arange(60)), frequency.log_q(torch.arange(60)))
    assert isinstance(frequency, StreamFrequency)


def test_a_foreign_or_damaged_state_is_refused():
    frequency = CountMinFrequency(60, num_buckets=16)
    with pytest.raises(ArtifactError, match="4 arrays of 32 buckets"):
        frequency.restore(CountMinFrequency(60, num_buckets=32).state())
    with pytest.raises(ArtifactError, match="cannot be read"):
        frequency.restore({"sketch": torch.zeros(7, dtype=torch.uint8)})
    with pytest.raises(ArtifactError, match="no stored"):
        frequency.restore({})


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketches", None)
    with pytest.raises(ConfigError, match=r"pip install 'candid\[sketch\]'"):
        CountMinFrequency(5)


@pytest.mark.parametrize("settings", [{"num_items": 0}, {"num_buckets": 2}, {"num_hashes": 17}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        CountMinFrequency(**{"num_items": 5, **settings})
