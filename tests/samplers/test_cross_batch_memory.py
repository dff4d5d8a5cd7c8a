from types import SimpleNamespace

import pytest
import torch

from candid.errors import ArtifactError, ConfigError, DataError
from candid.samplers import CrossBatchMemory, ExactPopular, Mixture, Observer, Stateful, Uniform


def rows_of(ids, users):
    return SimpleNamespace(positive_ids=torch.tensor(ids), user_ids=torch.tensor(users))


FIRST = rows_of([0, 1, 2], [10, 11, 12])
SECOND = rows_of([3, 4, 5, 6], [10, 13, 14, 15])
THIRD = rows_of([7, 7], [16, 10])


def pairs(sampled):
    return sorted(zip(sampled.ids.tolist(), sampled.owner.tolist(), strict=True))


def test_the_latest_rows_are_candidates_beside_the_batch(counts):
    memory = CrossBatchMemory(counts, 5)
    assert pairs(memory.sample(FIRST)) == [(0, 10), (1, 11), (2, 12)]
    memory.observe(FIRST)
    assert pairs(memory.sample(SECOND))[:3] == [(0, 10), (1, 11), (2, 12)]
    assert memory.sample(SECOND).num_samples == 7
    memory.observe(SECOND)
    sampled = memory.sample(THIRD)
    # Seven rows were seen: the five latest are remembered.
    expected = [(2, 12), (3, 10), (4, 13), (5, 14), (6, 15), (7, 10), (7, 16)]
    assert pairs(sampled) == expected
    q = counts.double() / counts.sum()
    torch.testing.assert_close(sampled.log_expected_count.double().exp(), 7 * q[sampled.ids])
    assert torch.equal(sampled.row_user_ids, THIRD.user_ids)


def test_a_batch_larger_than_the_memory_leaves_its_last_rows(counts):
    memory = CrossBatchMemory(counts, 3)
    memory.observe(FIRST)
    memory.observe(SECOND)
    assert {pair for pair in pairs(memory.sample(THIRD)) if pair[0] != 7} == {
        (4, 13),
        (5, 14),
        (6, 15),
    }
    assert memory.num_remembered == 3


def test_warm_up_takes_the_batch_alone_and_remembers(counts):
    memory = CrossBatchMemory(counts, 10, warm_up=2)
    memory.observe(FIRST)
    assert memory.sample(SECOND).num_samples == 4
    memory.observe(SECOND)
    assert memory.sample(THIRD).num_samples == 9


def test_mean_age_counts_steps(counts):
    memory = CrossBatchMemory(counts, 5)
    assert memory.mean_age == 0
    memory.observe(FIRST)
    assert memory.mean_age == 1
    memory.observe(SECOND)
    assert memory.mean_age == pytest.approx((2 + 4 * 1) / 5)
    assert memory.report() == {"memory_rows": 5.0, "memory_age": pytest.approx(1.2)}
    inside = ExactPopular(counts, Mixture([Uniform(10, 2), memory]), 2)
    assert inside.report() == {f"tail/1/{name}": value for name, value in memory.report().items()}


def test_without_exclusion_nobody_owns(counts):
    memory = CrossBatchMemory(counts, 5, exclude_same_user=False)
    memory.observe(FIRST)
    assert memory.sample(SECOND).owner is None


def test_a_resumed_memory_goes_on_as_it_was(counts):
    whole, cut = (CrossBatchMemory(counts, 5, warm_up=1) for _ in range(2))
    whole.observe(FIRST)
    cut.restore(whole.state())
    for memory in (whole, cut):
        memory.observe(SECOND)
    mine, theirs = (memory.sample(THIRD) for memory in (whole, cut))
    assert torch.equal(mine.ids, theirs.ids)
    assert torch.equal(mine.log_expected_count, theirs.log_expected_count)
    assert whole.mean_age == cut.mean_age
    assert isinstance(whole, Observer)
    assert isinstance(whole, Stateful)
    with pytest.raises(ArtifactError, match="memory of 6 rows"):
        CrossBatchMemory(counts, 6).restore(whole.state())


def test_a_state_that_was_taken_does_not_move(counts):
    memory = CrossBatchMemory(counts, 5)
    memory.observe(FIRST)
    state = memory.state()
    before = state["rows"].clone()
    memory.observe(SECOND)
    assert torch.equal(state["rows"], before)


def test_a_learnt_frequency_is_resumed_with_it(counts):
    config = CrossBatchMemory.Config.model_validate({"size": 4, "frequency": "streaming"})
    memory, resumed = config.build(counts), config.build(counts)
    memory.observe(THIRD)
    resumed.restore(memory.state())
    stated = memory.sample(FIRST).log_expected_count
    assert stated[-1].exp().item() == pytest.approx(5 * 1.0)
    assert torch.equal(resumed.sample(FIRST).log_expected_count, stated)


def test_a_positive_of_frequency_zero_is_named(counts):
    with pytest.raises(DataError, match="item 9"):
        CrossBatchMemory(counts, 4).sample(rows_of([1, 9], [0, 1]))


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": 3, "warm_up": -1}])
def test_bad_settings_are_refused(counts, settings):
    with pytest.raises(ConfigError):
        CrossBatchMemory(counts, **settings)
