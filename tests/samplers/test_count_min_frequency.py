import math
import pickle
import sys

import pytest
import torch

from candid.errors import ArtifactError, ConfigError
from candid.samplers import CountMinFrequency


def test_counts_are_never_too_low_and_within_the_bound():
    generator = torch.Generator().manual_seed(0)
    stream = (torch.rand(30_000, generator=generator).pow(3) * 2000).long()
    frequency = CountMinFrequency(2000, num_buckets=500, num_hashes=4)
    for batch in stream.split(700):
        frequency.observe(batch)
    assert frequency.num_rows == 30_000
    exact = torch.bincount(stream, minlength=2000)
    occurs = exact > 0
    estimated_counts = frequency.log_q(torch.arange(2000)).double().exp() * 30_000
    excess = (estimated_counts - exact)[occurs]
    assert bool((excess > -0.1).all())
    within = (excess <= math.e / 500 * 30_000 + 0.1).double().mean()
    assert within >= 1 - math.exp(-4)


def test_counts_are_exact_with_enough_buckets():
    frequency = CountMinFrequency(20, num_buckets=4096)
    frequency.observe(torch.tensor([[3, 3, 3], [7, 3, 1]]))
    assert frequency.log_q(torch.tensor([[3], [1]])).exp().flatten().tolist() == pytest.approx(
        [4 / 6, 1 / 6]
    )


def test_unseen_items_have_the_stated_lower_bound():
    frequency = CountMinFrequency(100)
    assert frequency.log_q(torch.tensor([4])).exp().item() == pytest.approx(0.01)
    frequency.observe(torch.zeros(999, dtype=torch.int64))
    assert frequency.log_q(torch.tensor([4])).exp().item() == pytest.approx(1 / 1000)


def test_state_and_pickle_restore_the_sketch_exactly():
    frequency, other = (CountMinFrequency(60, num_buckets=16, num_hashes=2) for _ in range(2))
    frequency.observe(torch.arange(60).repeat(3))
    expected = frequency.log_q(torch.arange(60))
    state = frequency.state_dict()
    frequency.observe(torch.zeros(500, dtype=torch.int64))
    other.load_state_dict(state)
    assert torch.equal(other.log_q(torch.arange(60)), expected)
    assert torch.equal(other.state_dict()["sketch"], state["sketch"])
    copied = pickle.loads(pickle.dumps(frequency))
    assert torch.equal(copied.log_q(torch.arange(60)), frequency.log_q(torch.arange(60)))


def test_state_of_other_settings_or_damaged_is_refused():
    frequency = CountMinFrequency(60, num_buckets=16)
    with pytest.raises(ArtifactError, match="4 arrays of 32 buckets"):
        frequency.load_state_dict(CountMinFrequency(60, num_buckets=32).state_dict())
    with pytest.raises(ArtifactError, match="cannot be read"):
        frequency.load_state_dict({"sketch": torch.zeros(7, dtype=torch.uint8)})
    with pytest.raises(RuntimeError, match=r"Missing key.*sketch"):
        frequency.load_state_dict({})


def test_missing_extra_is_named_with_the_command_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketches", None)
    with pytest.raises(ConfigError, match=r"pip install 'candid-retrieval\[sketch\]'"):
        CountMinFrequency(5)


@pytest.mark.parametrize("settings", [{"num_items": 0}, {"num_buckets": 2}, {"num_hashes": 17}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        CountMinFrequency(**{"num_items": 5, **settings})
