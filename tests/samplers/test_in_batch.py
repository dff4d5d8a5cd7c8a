import numpy as np
import pytest
import torch

from candid.errors import ConfigError, DataError, UnknownNameError
from candid.samplers import ExactFrequency, Frequency, InBatch


def test_all_positives_become_candidates(counts, rows):
    sampled = InBatch(counts).sample(*rows)
    assert sampled.ids is rows.positive_ids
    assert torch.equal(sampled.owner, rows.user_ids)
    expected = 6 * counts.double() / counts.sum()
    torch.testing.assert_close(
        sampled.log_expected_count.double().exp(), expected[rows.positive_ids]
    )


def test_candidates_have_no_owner_without_exclusion(counts, rows):
    sampled = InBatch(counts, exclude_same_user=False).sample(*rows)
    assert sampled.owner is None
    assert sampled.row_user_ids is None


def test_num_candidates_rows_are_taken_without_replacement(counts, rows, generator):
    sampler = InBatch(counts, num_candidates=4)
    for _ in range(20):
        sampled = sampler.sample(*rows, generator)
        pairs = list(zip(sampled.ids.tolist(), sampled.owner.tolist(), strict=True))
        assert len(pairs) == len(set(pairs)) == sampled.num_samples == 4
    assert InBatch(counts, num_candidates=99).sample(*rows).num_samples == 6


def test_item_of_several_users_has_no_owner(counts, rows):
    sampled = InBatch(counts, distinct=True).sample(*rows)
    owners = dict(zip(sampled.ids.tolist(), sampled.owner.tolist(), strict=True))
    assert owners == {0: -1, 1: 3, 2: 2, 4: 2, 7: 9}


def test_expected_counts_of_a_set_are_of_the_average_number_of_rows_of_others(counts):
    users = [4, 4, 7, 4, 2, 7, 1]
    average = sum(other != user for user in users for other in users) / len(users)
    ids = torch.arange(7)
    sampled = InBatch(counts, distinct=True).sample(ids, torch.tensor(users))
    miss = 1 - counts.double()[ids] / counts.sum()
    torch.testing.assert_close(sampled.log_expected_count.double().exp(), 1 - miss**average)


def test_positive_of_frequency_zero_is_named(counts, rows):
    rows.positive_ids[2] = 9
    with pytest.raises(DataError, match="item 9"):
        InBatch(counts).sample(*rows)


@pytest.mark.parametrize("kind", ["tensor", "numpy", "exact", "own"])
def test_frequency_is_counts_or_a_frequency(kind, counts, rows):
    class Flat(Frequency):
        def log_q(self, ids):
            return torch.full(ids.shape, -np.log(10), dtype=torch.float32)

    frequency = {
        "tensor": counts,
        "numpy": counts.numpy(),
        "exact": ExactFrequency(counts),
        "own": Flat(10),
    }[kind]
    sampled = InBatch(frequency).sample(*rows)
    expected = 0.6 if kind == "own" else 6 * 40 / 100
    assert sampled.log_expected_count[0].exp().item() == pytest.approx(expected)
    assert isinstance(InBatch(frequency).frequency, Frequency)


def test_zero_candidates_are_refused(counts):
    with pytest.raises(ConfigError):
        InBatch(counts, num_candidates=0)


@pytest.mark.parametrize("kind", ["streaming", "count_min"])
def test_frequency_is_estimated_from_the_stream(kind, counts, rows):
    config = InBatch.Config.model_validate({"frequency": {"type": kind, "num_hashes": 2}})
    assert config.model_dump()["frequency"]["type"] == kind
    sampler, resumed = config.build(counts), config.build(counts)
    assert sampler.frequency.num_hashes == 2
    # Without observations all items are equal, also those of training count 0.
    assert sampler.sample(*rows).log_expected_count.exp().tolist() == pytest.approx([6 / 10] * 6)
    for _ in range(3):
        sampler.observe(*rows[:2])
    expected_counts = sampler.sample(*rows).log_expected_count.exp().tolist()
    assert expected_counts == pytest.approx([6 * 2 / 6, 1, 2, 1, 1, 1])
    resumed.load_state_dict(sampler.state_dict())
    assert torch.equal(
        resumed.sample(*rows).log_expected_count, sampler.sample(*rows).log_expected_count
    )


def test_exact_frequency_ignores_the_stream(counts, rows):
    sampler = InBatch.Config().build(counts)
    before = sampler.sample(*rows).log_expected_count
    sampler.observe(*rows[:2])
    assert torch.equal(sampler.sample(*rows).log_expected_count, before)
    assert sampler.state_dict() == {}
    sampler.load_state_dict({})


def test_unknown_frequency_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="count_min, exact, streaming"):
        InBatch.Config.model_validate({"frequency": "sketchy"})
