from collections import namedtuple

import pytest
import torch

from candid.errors import ConfigError, DataError
from candid.samplers import CrossBatchMemory, ExactPopular, Mixture, Uniform

Rows = namedtuple("Rows", "positive_ids user_ids query", defaults=(None,))


def rows_of(ids, users):
    return Rows(torch.tensor(ids), torch.tensor(users))


FIRST = rows_of([0, 1, 2], [10, 11, 12])
SECOND = rows_of([3, 4, 5, 6], [10, 13, 14, 15])
THIRD = rows_of([7, 7], [16, 10])


def pairs(sampled):
    return sorted(zip(sampled.ids.tolist(), sampled.owner.tolist(), strict=True))


def test_latest_rows_are_candidates_beside_the_batch(counts):
    memory = CrossBatchMemory(counts, size=5)
    assert pairs(memory.sample(*FIRST)) == [(0, 10), (1, 11), (2, 12)]
    memory.observe(*FIRST[:2])
    assert pairs(memory.sample(*SECOND))[:3] == [(0, 10), (1, 11), (2, 12)]
    assert memory.sample(*SECOND).num_samples == 7
    memory.observe(*SECOND[:2])
    sampled = memory.sample(*THIRD)
    # Seven rows were observed; the memory holds the five latest.
    expected = [(2, 12), (3, 10), (4, 13), (5, 14), (6, 15), (7, 10), (7, 16)]
    assert pairs(sampled) == expected
    q = counts.double() / counts.sum()
    torch.testing.assert_close(sampled.log_expected_count.double().exp(), 7 * q[sampled.ids])
    assert torch.equal(sampled.row_user_ids, THIRD.user_ids)


def test_batch_larger_than_the_memory_leaves_its_last_rows(counts):
    memory = CrossBatchMemory(counts, size=3)
    memory.observe(*FIRST[:2])
    memory.observe(*SECOND[:2])
    assert {pair for pair in pairs(memory.sample(*THIRD)) if pair[0] != 7} == {
        (4, 13),
        (5, 14),
        (6, 15),
    }
    assert memory.num_remembered == 3


def test_batch_after_one_larger_than_the_memory_evicts_the_oldest_rows(counts):
    memory = CrossBatchMemory(counts, size=3)
    memory.observe(*SECOND[:2])  # rows 3, 4, 5 and 6; the memory holds the last three
    memory.observe(*rows_of([0], [10])[:2])
    memory_pairs = {pair for pair in pairs(memory.sample(*THIRD)) if pair[0] != 7}
    assert memory_pairs == {(5, 14), (6, 15), (0, 10)}
    memory.observe(*rows_of([1], [11])[:2])
    memory_pairs = {pair for pair in pairs(memory.sample(*THIRD)) if pair[0] != 7}
    assert memory_pairs == {(6, 15), (0, 10), (1, 11)}


def test_rows_without_users_belong_to_no_user(counts):
    memory = CrossBatchMemory(counts, size=5)
    memory.observe(FIRST.positive_ids)
    assert memory.sample(SECOND.positive_ids).owner is None
    assert memory.sample(*SECOND).owner.tolist() == [10, 13, 14, 15, -1, -1, -1]


def test_warm_up_uses_the_batch_alone_and_fills_the_memory(counts):
    memory = CrossBatchMemory(counts, size=10, warm_up=2)
    memory.observe(*FIRST[:2])
    assert memory.sample(*SECOND).num_samples == 4
    memory.observe(*SECOND[:2])
    assert memory.sample(*THIRD).num_samples == 9


def test_mean_age_counts_steps(counts):
    memory = CrossBatchMemory(counts, size=5)
    assert memory.mean_age == 0
    memory.observe(*FIRST[:2])
    assert memory.mean_age == 1
    memory.observe(*SECOND[:2])
    assert memory.mean_age == pytest.approx((2 + 4 * 1) / 5)
    assert memory.metrics() == {"memory_rows": 5.0, "memory_age": pytest.approx(1.2)}
    inside = ExactPopular(
        counts, num_exact=2, rest=Mixture([Uniform(10, num_candidates=2), memory])
    )
    assert inside.metrics() == {f"rest/1/{name}": value for name, value in memory.metrics().items()}


def test_candidates_have_no_owner_without_exclusion(counts):
    memory = CrossBatchMemory(counts, size=5, exclude_same_user=False)
    memory.observe(*FIRST[:2])
    assert memory.sample(*SECOND).owner is None


def test_state_dict_continues_the_memory(counts):
    whole, cut = (CrossBatchMemory(counts, size=5, warm_up=1) for _ in range(2))
    whole.observe(*FIRST[:2])
    cut.load_state_dict(whole.state_dict())
    for memory in (whole, cut):
        memory.observe(*SECOND[:2])
    mine, theirs = (memory.sample(*THIRD) for memory in (whole, cut))
    assert torch.equal(mine.ids, theirs.ids)
    assert torch.equal(mine.log_expected_count, theirs.log_expected_count)
    assert whole.mean_age == cut.mean_age
    with pytest.raises(RuntimeError, match="size mismatch for rows"):
        CrossBatchMemory(counts, size=6).load_state_dict(whole.state_dict())


def test_state_dict_does_not_change_with_later_batches(counts):
    memory = CrossBatchMemory(counts, size=5)
    memory.observe(*FIRST[:2])
    state = memory.state_dict()
    before = state["rows"].clone()
    memory.observe(*SECOND[:2])
    assert torch.equal(state["rows"], before)


def test_state_dict_has_the_estimated_frequency(counts):
    config = CrossBatchMemory.Config.model_validate({"size": 4, "frequency": "streaming"})
    memory, resumed = config.build(counts), config.build(counts)
    memory.observe(*THIRD[:2])
    resumed.load_state_dict(memory.state_dict())
    expected_counts = memory.sample(*FIRST).log_expected_count
    assert expected_counts[-1].exp().item() == pytest.approx(5 * 1.0)
    assert torch.equal(resumed.sample(*FIRST).log_expected_count, expected_counts)


def test_positive_of_frequency_zero_is_named(counts):
    with pytest.raises(DataError, match="item 9"):
        CrossBatchMemory(counts, size=4).sample(*rows_of([1, 9], [0, 1]))


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": 3, "warm_up": -1}])
def test_bad_settings_are_refused(counts, settings):
    with pytest.raises(ConfigError):
        CrossBatchMemory(counts, **settings)
