"""Sampled batches against the batches of a loader."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from candid.audit.batch_source import IndependentRows, TrainingRows, UnitBatches
from candid.batches import BatchesConfig, Loader, offsets_of, unit_targets
from candid.errors import ConfigError

from .conftest import clustered_dataset

DRAWS = 4000


def unit_batches(lengths, units_per_batch, **settings):
    """Units of the given lengths: row r has item r, and the user is the unit."""
    num_rows = sum(lengths)
    user_ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    rows = TrainingRows(torch.arange(num_rows), user_ids)
    return UnitBatches(rows, offsets_of(np.array(lengths)), units_per_batch, **settings)


def contexts(source, num=DRAWS, seed=0, memory_rows=0):
    generator = torch.Generator().manual_seed(seed)
    return [source.beside_a_row(generator, memory_rows) for _ in range(num)]


def units_of(rows):
    """The units in the order of their first row; checks that each is whole."""
    return [unit for unit, _ in itertools.groupby(rows.user_ids.tolist())]


@pytest.mark.parametrize("settings", [{}, {"drop_last": True}])
def test_rows_beside_a_row_have_the_distribution_of_loader_batches(settings):
    dataset = clustered_dataset(num_users=22)
    config = BatchesConfig(batch_size=4, **settings)
    targets = unit_targets(dataset, config)
    item_ids = torch.from_numpy(dataset.item_ids[targets.events].astype(np.int64))
    rows = TrainingRows(item_ids, torch.from_numpy(targets.user_ids))
    source = UnitBatches(rows, targets.offsets, config.batch_size, **settings)
    user = int(rows.user_ids[0])
    loader = Loader(dataset, config, seed=1)
    real = []
    for epoch in range(1500):
        for step in range(loader.num_batches):
            batch = loader.batch(epoch, step)
            if user in batch.user_ids:
                real.append(batch.positive_ids[batch.user_ids != user])
                break
    sampled = [
        context.others.positive_ids[context.others.user_ids != user] for context in contexts(source)
    ]
    # The audited user's own unit is among the other units with probability 3 / 22, which lowers
    # the mean number of other rows by 1 / 22.
    means = []
    for batches in (real, sampled):
        counts = torch.stack([torch.bincount(ids, minlength=dataset.num_items) for ids in batches])
        means.append((counts.double().mean(0), counts.double().var(0) / len(counts)))
    (expected, variance), (mean, other_variance) = means
    distance = (mean / (1 - 1 / 22) - expected) / (variance + other_variance).sqrt()
    is_seen = expected > 0.02
    assert int(is_seen.sum()) > 10
    assert float(distance[is_seen].square().mean()) < 2
    sizes, others = (Counter(len(ids) > 0 for ids in batches) for batches in (real, sampled))
    assert abs(sizes[False] / len(real) - others[False] / len(sampled)) < 0.03


def test_batches_consist_of_whole_units():
    source = unit_batches([3, 1, 4, 2, 5, 2], units_per_batch=3)
    for context in contexts(source, 50):
        units = units_of(context.others)
        assert len(units) == len(set(units)) == 2
        assert len(context.others.positive_ids) == int(source.lengths[units].sum())
        assert context.num_own_rows in (1, 2, 3, 4, 5)
    generator = torch.Generator().manual_seed(0)
    assert len(set(units_of(source.batch(generator)))) == 3


def test_last_batch_of_an_epoch_is_smaller_for_its_share_of_the_rows():
    source = unit_batches([1] * 10, units_per_batch=4)
    sizes = Counter(len(context.others.positive_ids) for context in contexts(source))
    # Of 10 rows 8 stand in batches of four and 2 in the last batch of two.
    assert set(sizes) == {3, 1}
    assert sizes[1] / DRAWS == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / DRAWS) ** 0.5)
    mean = np.mean([len(context.others.positive_ids) for context in contexts(source)])
    assert source.mean_other_rows == pytest.approx(0.8 * 3 + 0.2 * 1)
    assert mean == pytest.approx(source.mean_other_rows, abs=0.06)


def test_drop_last_has_no_smaller_batch():
    source = unit_batches([1] * 10, units_per_batch=4, drop_last=True)
    sizes = {len(context.others.positive_ids) for context in contexts(source, 200)}
    assert sizes == {3}
    assert source.mean_other_rows == 3.0


def test_one_batch_with_all_units_is_not_random():
    source = unit_batches([3, 1, 4], units_per_batch=8)
    for context in contexts(source, 5):
        assert context.others.positive_ids.tolist() == list(range(8))
        assert context.num_own_rows == 0


def test_memory_has_the_units_before_the_batch_without_repetition_in_an_epoch():
    source = unit_batches([2] * 12, units_per_batch=3)
    crossed = 0
    for context in contexts(source, 300, memory_rows=7):
        units = units_of(context.memory)
        assert len(context.memory.positive_ids) == 8  # 7 rows need four units of two
        beside = set(units_of(context.others))
        overlap = [unit for unit in units if unit in beside]
        crossed += bool(overlap)
    # The first two batches of four have fewer than 4 units before them in the epoch: only these
    # can repeat units of the batch.
    assert 0 < crossed < 150
    assert all(len(context.memory.positive_ids) == 0 for context in contexts(source, 3))


def test_memory_is_longer_than_an_epoch_where_needed():
    source = unit_batches([1, 2], units_per_batch=2)
    for context in contexts(source, 20, memory_rows=10):
        assert len(context.memory.positive_ids) >= 10


def test_the_same_generator_state_gives_the_same_batch():
    source = unit_batches([3, 1, 4, 2, 5, 2], units_per_batch=3)
    first, again = (contexts(source, 2, seed=7, memory_rows=3) for _ in range(2))
    assert [c.others.positive_ids.tolist() for c in first] == [
        c.others.positive_ids.tolist() for c in again
    ]
    assert first[0].others.positive_ids.tolist() != first[1].others.positive_ids.tolist()


@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 4, 3]])
def test_offsets_that_do_not_cover_the_rows_are_refused(offsets):
    rows = TrainingRows(torch.arange(3), torch.arange(3))
    with pytest.raises(ConfigError, match="offsets of units must ascend from 0 to the 3 rows"):
        UnitBatches(rows, np.array(offsets), 1)


@pytest.mark.parametrize("settings", [{"units_per_batch": 0}, {"units_per_batch": 4}])
def test_batches_without_units_are_refused(settings):
    with pytest.raises(ConfigError, match="units_per_batch must be 1 to 3"):
        unit_batches([1, 1, 1], drop_last=True, **settings)


def test_independent_rows_are_sampled_with_replacement():
    rows = TrainingRows(torch.tensor([4, 5]), torch.tensor([0, 1]))
    source = IndependentRows(rows, num_rows=3)
    assert source.mean_other_rows == 3.0
    (context,) = contexts(source, 1, memory_rows=2)
    assert len(context.others.positive_ids) == 3
    assert len(context.memory.positive_ids) == 2
    assert context.num_own_rows == 1
    samples = torch.cat([context.others.positive_ids for context in contexts(source)])
    assert float((samples == 4).double().mean()) == pytest.approx(0.5, abs=0.02)
