"""Loaders against loops over the sequences."""

from dataclasses import replace
from unittest import mock

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.batches import (
    BatchesConfig,
    Loader,
    Position,
    offsets_of,
    permutation,
    target_counts,
)
from candid.data import PreparedDataset, Role, chunks
from candid.errors import ConfigError, DataError
from candid.features import Numbers

T, H, V, X = Role.TRAIN, Role.HISTORY, Role.VALIDATION, Role.TEST


def dataset_of(sequences, roles=None, weights=None):
    """Return a dataset in memory; without roles every interaction is a training target."""
    roles = roles or [[T] * len(s) for s in sequences]
    num_items = max((max(s) for s in sequences if s), default=0) + 1
    return PreparedDataset(
        item_ids=np.array([i for s in sequences for i in s], dtype=np.int32),
        user_offsets=offsets_of(np.array([len(s) for s in sequences])),
        roles=np.array([r for rs in roles for r in rs], dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(len(sequences))}),
        items=pl.DataFrame({"source_id": np.arange(num_items)}),
        weights=weights,
    )


def rows_of(batch):
    """Return (user, history, positive) of each row, by plain indexing."""
    rows = []
    history = batch.history
    for row in range(len(batch)):
        at = int(history.query_positions[row])
        if at < 0:
            rows.append((int(batch.user_ids[row]), (), int(batch.positive_ids[row])))
            continue
        sequence = int((history.offsets <= at).sum()) - 1
        begin = int(history.offsets[sequence])
        rows.append(
            (
                int(batch.user_ids[row]),
                tuple(history.item_ids[begin : at + 1].tolist()),
                int(batch.positive_ids[row]),
            )
        )
    return rows


def epoch_rows(loader):
    return [row for batch in loader.epoch() for row in rows_of(batch)]


def expected_rows(sequences, roles, max_length, windows, empty_histories=False):
    """Return the rows of an epoch by their definition."""
    expected = []
    for user, (sequence, role) in enumerate(zip(sequences, roles, strict=True)):
        targets = [t for t, r in enumerate(role) if r == T]
        if not targets:
            continue
        stop = targets[-1] + 1
        if empty_histories:
            expected.append((user, (), sequence[targets[0]]))
        while stop > 1:
            start = max(0, stop - max_length - 1)
            expected += [
                (user, tuple(sequence[start:t]), sequence[t])
                for t in range(start + 1, stop)
                if role[t] == T
            ]
            stop -= max_length
            if windows == "last":
                break
    return sorted(expected)


sequences_with_roles = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([T, T, T, H, V, X])), max_size=12),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=150)
@given(
    users=sequences_with_roles,
    max_length=st.integers(1, 6),
    windows=st.sampled_from(["last", "all"]),
    batch_size=st.integers(1, 4),
    num_workers=st.sampled_from([0, 2]),
    empty_histories=st.booleans(),
    chunk_rows=st.sampled_from([1, 6, 1 << 20]),
    array_units=st.sampled_from([0, 1 << 22]),
)
def test_epoch_has_every_target_once_with_its_history(
    users, max_length, windows, batch_size, num_workers, empty_histories, chunk_rows, array_units
):
    sequences = [[item for item, _ in user] for user in users]
    roles = [[role for _, role in user] for user in users]
    expected = expected_rows(sequences, roles, max_length, windows, empty_histories)
    config = BatchesConfig(
        batch_size=batch_size,
        max_length=max_length,
        windows=windows,
        num_workers=num_workers,
        empty_histories=empty_histories,
    )
    dataset = dataset_of(sequences, roles)
    with (
        mock.patch.object(chunks, "CHUNK_ROWS", chunk_rows),
        mock.patch.object(permutation, "ARRAY_UNITS", array_units),
    ):
        if not expected:
            with pytest.raises(DataError, match="nothing to train on"):
                Loader(dataset, config, seed=3)
            return
        assert sorted(epoch_rows(Loader(dataset, config, seed=3))) == expected


def long_dataset():
    rng = np.random.default_rng(5)
    return dataset_of([rng.integers(0, 50, size=n).tolist() for n in rng.integers(1, 30, 40)])


@pytest.mark.parametrize("unit", ["sequence", "interaction"])
def test_batches_do_not_depend_on_workers_but_on_seed_and_epoch(unit):
    def ids(seed, num_workers, epoch=0):
        loader = Loader(
            long_dataset(),
            BatchesConfig(unit=unit, batch_size=4, max_length=8, num_workers=num_workers),
            seed=seed,
        )
        loader.position = Position(epoch=epoch)
        return torch.cat([b.positive_ids for b in loader.epoch()]).tolist()

    assert ids(1, 0) == ids(1, 1) == ids(1, 4)
    assert ids(1, 0) != ids(2, 0)
    assert ids(1, 0) != ids(1, 0, epoch=1)
    assert sorted(ids(1, 0)) == sorted(ids(1, 0, epoch=1)) == sorted(ids(2, 0))


@pytest.mark.parametrize("array_units", [0, 1 << 22])
@pytest.mark.parametrize("unit", ["sequence", "interaction"])
def test_position_determines_the_rest_of_the_epoch(unit, array_units, monkeypatch):
    monkeypatch.setattr(permutation, "ARRAY_UNITS", array_units)
    config = BatchesConfig(unit=unit, batch_size=3, max_length=8, num_workers=2)
    whole = Loader(long_dataset(), config, seed=1)
    batches = [*whole.epoch(), *whole.epoch()]
    cut = Loader(long_dataset(), config, seed=1)
    stream = cut.epoch()
    for _ in range(4):
        next(stream)
    stream.close()
    assert cut.position == Position(epoch=0, step=4)
    resumed = Loader(long_dataset(), config, seed=1)
    resumed.position = Position(epoch=0, step=4)
    rest = [*resumed.epoch(), *resumed.epoch()]
    assert len(rest) == len(batches) - 4
    for expected, actual in zip(batches[4:], rest, strict=True):
        assert torch.equal(expected.positive_ids, actual.positive_ids)
        assert torch.equal(expected.user_ids, actual.user_ids)


def test_position_after_the_last_batch_is_the_next_epoch():
    loader = Loader(long_dataset(), BatchesConfig(batch_size=3, max_length=8), seed=1)
    stream = loader.epoch()
    for _ in range(loader.num_batches):
        next(stream)
    assert loader.position == Position(epoch=1, step=0)


def test_interaction_units_are_the_training_targets():
    dataset = dataset_of([[1, 2, 3], [4, 5]], [[T, H, T], [V, T]])
    loader = Loader(dataset, BatchesConfig(unit="interaction", batch_size=2), seed=0)
    pairs = [
        pair
        for batch in loader.epoch()
        for pair in zip(batch.user_ids.tolist(), batch.positive_ids.tolist(), strict=True)
    ]
    assert sorted(pairs) == [(0, 1), (0, 3), (1, 5)]
    assert batch_has_no_history(loader)


@settings(deadline=None, max_examples=60)
@given(
    users=sequences_with_roles,
    batch_size=st.integers(1, 4),
    chunk_rows=st.sampled_from([1, 6, 1 << 20]),
    num_repeats=st.sampled_from([1, 40]),
)
def test_interaction_units_are_every_training_target_once(
    users, batch_size, chunk_rows, num_repeats
):
    # Repeated, a history is longer than a piece whose targets are counted at each look-up.
    users = [user * num_repeats for user in users]
    roles = [[role for _, role in user] for user in users]
    dataset = dataset_of([[item for item, _ in user] for user in users], roles)
    expected = [
        [user, event]
        for event, user in enumerate(np.repeat(np.arange(len(users)), [*map(len, users)]).tolist())
        if dataset.roles[event] == T
    ]
    config = BatchesConfig(unit="interaction", batch_size=batch_size, num_workers=0)
    if not expected:
        return
    with mock.patch.object(chunks, "CHUNK_ROWS", chunk_rows):
        loader = Loader(dataset, config, seed=2, context=EventContext())
    pairs = [
        [user, event]
        for batch in loader.epoch()
        for user, (event, _) in zip(
            batch.user_ids.tolist(), batch.context["event"].values.tolist(), strict=True
        )
    ]
    assert sorted(pairs) == expected


@pytest.mark.parametrize("unit", ["sequence", "interaction"])
def test_interactions_beyond_32_bits(unit):
    """Two users whose interactions begin after the first 2**33, which no user has."""
    first, lengths = 2**33, np.array([5, 0, 300])
    num = first + int(lengths.sum())
    dataset = PreparedDataset(
        # One value in memory stands for all of them.
        item_ids=np.broadcast_to(np.int32(7), (num,)),
        user_offsets=first + offsets_of(lengths),
        roles=np.broadcast_to(np.uint8(T), (num,)),
        users=pl.DataFrame({"source_id": np.arange(3)}),
        items=pl.DataFrame({"source_id": np.arange(8)}),
    )
    config = BatchesConfig(unit=unit, batch_size=7, max_length=40)
    loader = Loader(dataset, config, seed=1, context=EventContext())
    rows = [
        (event - first, user)
        for batch in loader.epoch()
        for user, (event, _) in zip(
            batch.user_ids.tolist(), batch.context["event"].values.tolist(), strict=True
        )
    ]
    owners = [0] * 5 + [2] * 300
    without_history = {0, 5} if unit == "sequence" else set()
    assert sorted(rows) == [(e, u) for e, u in enumerate(owners) if e not in without_history]
    assert target_counts(dataset, config).tolist() == [0] * 7 + [len(rows)]


def batch_has_no_history(loader):
    return loader.batch(0, 0).history is None


@pytest.mark.parametrize("unit", ["sequence", "interaction"])
def test_weights_follow_their_interaction(unit):
    sequences = [[1, 2, 3], [4, 5, 6, 7]]
    weights = np.array([0, 20, 30, 0, 50, 60, 70], dtype=np.float32)
    if unit == "interaction":
        weights = np.array([10, 20, 30, 40, 50, 60, 70], dtype=np.float32)
    loader = Loader(
        dataset_of(sequences, weights=weights), BatchesConfig(unit=unit, batch_size=1), seed=0
    )
    for batch in loader.epoch():
        assert batch.weights.tolist() == [10.0 * i for i in batch.positive_ids.tolist()]


def test_drop_last_leaves_out_the_smaller_batch():
    dataset = dataset_of([[1, 2]] * 5)
    assert Loader(dataset, BatchesConfig(batch_size=2), seed=0).num_batches == 3
    short = Loader(dataset, BatchesConfig(batch_size=2, drop_last=True), seed=0)
    assert [len(b) for b in short.epoch()] == [2, 2]
    with pytest.raises(ConfigError, match=r"batches\.batch_size 6"):
        Loader(dataset, BatchesConfig(batch_size=6, drop_last=True), seed=0)


class EventContext:
    """A context whose feature is the interaction of each row."""

    def at(self, events, has_last):
        values = np.stack([events, has_last.astype(np.int64)], axis=1)
        return {"event": Numbers(torch.from_numpy(values))}


@pytest.mark.parametrize("unit", ["sequence", "interaction"])
def test_context_of_a_row_is_that_of_its_positive(unit):
    dataset = long_dataset()
    config = BatchesConfig(unit=unit, batch_size=3, max_length=8, windows="all")
    for batch in Loader(dataset, config, seed=1, context=EventContext()).epoch():
        events = batch.context["event"].values[:, 0].numpy()
        assert dataset.item_ids[events].tolist() == batch.positive_ids.tolist()
        owners = np.searchsorted(dataset.user_offsets, events, side="right") - 1
        assert owners.tolist() == batch.user_ids.tolist()
        moved = batch.to(torch.device("cpu"))
        assert torch.equal(moved.context["event"].values, batch.context["event"].values)


@pytest.mark.parametrize("unit", ["sequence", "interaction"])
def test_event_types_follow_their_interactions(unit):
    dataset = long_dataset()
    event_types = (dataset.item_ids % 3).astype(np.uint8)
    dataset = replace(dataset, event_types=event_types, event_type_names=("a", "b", "c"))
    config = BatchesConfig(unit=unit, batch_size=3, max_length=8)
    for batch in Loader(dataset, config, seed=1).epoch():
        if unit == "interaction":
            assert batch.history is None
            continue
        history = batch.to(torch.device("cpu")).history
        assert torch.equal(history.event_types, history.item_ids % 3 + 1)


@pytest.mark.parametrize("windows", ["all", "last"])
def test_times_follow_their_interactions(windows):
    dataset = long_dataset()
    config = BatchesConfig(batch_size=3, max_length=8, windows=windows)
    for batch in Loader(replace(dataset, timestamps=None), config, seed=1).epoch():
        assert batch.history.times is None
    times = 10**15 + np.arange(len(dataset.item_ids), dtype=np.int64)
    dataset = replace(dataset, timestamps=times)
    for batch in Loader(dataset, config, seed=1).epoch():
        history = batch.to(torch.device("cpu")).history
        events = (history.times - 10**15).numpy()
        assert history.item_ids.tolist() == dataset.item_ids[events].tolist()
        # The time of the target, the next interaction, is not among those before the query.
        has_history = history.query_positions >= 0
        targets = history.times[history.query_positions[has_history]] - 10**15 + 1
        positives = dataset.item_ids[targets.numpy()].tolist()
        assert batch.positive_ids[has_history].tolist() == positives


@pytest.mark.parametrize("unit", ["sequence", "interaction"])
@pytest.mark.parametrize("max_negatives", [0, 2, 20])
def test_negatives_follow_their_positive(unit, max_negatives):
    dataset = long_dataset()
    num = np.arange(len(dataset.item_ids)) % 4
    # Interaction e was shown with e % 4 items: e, e + 1, ... of the catalog, in a cycle.
    shown = [(e + np.arange(n)) % dataset.num_items for e, n in enumerate(num)]
    dataset = replace(
        dataset,
        negative_ids=np.concatenate(shown).astype(np.int32),
        negative_offsets=offsets_of(num),
    )
    config = BatchesConfig(unit=unit, batch_size=3, max_length=8, max_negatives=max_negatives)
    loader = Loader(dataset, config, seed=1, context=EventContext())
    for batch in loader.epoch():
        events = batch.context["event"].values[:, 0].numpy()
        expected = [shown[e][max(0, len(shown[e]) - max_negatives) :].tolist() for e in events]
        if not any(expected):
            assert batch.negative_ids is None
            continue
        negatives = batch.to(torch.device("cpu")).negative_ids
        assert [[i for i in row if i >= 0] for row in negatives.tolist()] == expected
        assert negatives.shape[1] == max(map(len, expected))


def test_empty_histories_need_sequence_units():
    with pytest.raises(ConfigError, match=r"empty_histories has no effect"):
        BatchesConfig(unit="interaction", empty_histories=True)


def test_empty_histories_add_the_first_target_of_each_user():
    roles = [[H, T, T], [H, H], [T]]
    dataset = dataset_of([[1, 2, 3], [4, 5], [6]], roles)
    config = BatchesConfig(batch_size=9, empty_histories=True)
    (batch,) = Loader(dataset, config, seed=0, context=EventContext()).epoch()
    rows = sorted(zip(rows_of(batch), batch.context["event"].values.tolist(), strict=True))
    assert rows == [
        ((0, (), 2), [1, 0]),
        ((0, (1,), 2), [1, 1]),
        ((0, (1, 2), 3), [2, 1]),
        ((2, (), 6), [5, 0]),
    ]
