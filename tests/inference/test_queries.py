"""Recommendation queries against a loop over the interactions of each user."""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import UNKNOWN_TIME
from candid.data import PreparedDataset, Role, held_out
from candid.errors import ConfigError
from candid.features import Context, FeatureTable, Numbers
from candid.inference import (
    encode_queries,
    held_out_queries,
    pack_queries,
    queries_for_users,
    query_for_history,
    query_for_user,
    seen_items,
)

EVENT_TYPES = ("buy", "like", "view")
HOUR = 3_600_000_000
NUM_ITEMS = 9


def dataset_of(histories, roles=None, target_event_types=("buy", "like")):
    """Interactions one hour apart, of event types 0, 1, 2, 0, 1, …"""
    item_ids = np.array([item for history in histories for item in history], dtype=np.int32)
    roles = [[Role.TRAIN] * len(history) for history in histories] if roles is None else roles
    return PreparedDataset(
        item_ids=item_ids,
        user_offsets=np.cumsum([0, *map(len, histories)]).astype(np.int64),
        roles=np.array([role for row in roles for role in row], dtype=np.uint8),
        users=pl.DataFrame({"source_id": np.arange(len(histories))}),
        items=pl.DataFrame({"source_id": np.arange(NUM_ITEMS)}),
        timestamps=np.arange(len(item_ids)) * HOUR,
        event_types=(np.arange(len(item_ids)) % 3).astype(np.uint8),
        event_type_names=EVENT_TYPES,
        target_event_types=target_event_types,
    )


def random_dataset(seed=0, num_users=40, **settings):
    rng = np.random.default_rng(seed)
    histories = [rng.integers(0, NUM_ITEMS, rng.integers(0, 8)).tolist() for _ in range(num_users)]
    return dataset_of(histories, **settings)


class Identity:
    """A feature that returns its column as it is."""

    def encode(self, column):
        return column.to_list()


COLUMNS = ("time", "since", "event_type", "last_event_type")


def context_of(dataset):
    return Context(
        dataset,
        FeatureTable({n: Identity() for n in COLUMNS}, {n: n for n in COLUMNS}, {"time": []}),
    )


def moment(microseconds):
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=int(microseconds))


def query_by_loop(dataset, user, stop, max_length):
    """History, event type codes and items seen of one user, read one interaction at a time."""
    start = int(dataset.user_offsets[user])
    history, codes, seen = [], [], []
    for event in range(start, stop):
        item, code = int(dataset.item_ids[event]), int(dataset.event_types[event])
        history.append(item)
        codes.append(code + 1)
        if not dataset.target_event_types or EVENT_TYPES[code] in dataset.target_event_types:
            seen.append(item)
    return history[-max_length:], codes[-max_length:], seen


@pytest.mark.parametrize("targets", [(), ("buy",), ("buy", "like"), EVENT_TYPES])
def test_query_for_user_agrees_with_a_loop(targets):
    dataset = random_dataset(target_event_types=targets)
    for user in range(dataset.num_users):
        stop = int(dataset.user_offsets[user + 1])
        history, codes, seen = query_by_loop(dataset, user, stop, 3)
        query = query_for_user(dataset, user, max_length=3, time=7, event_type="buy")
        assert query.item_ids.tolist() == history
        assert query.event_types.tolist() == codes
        times = [event * HOUR for event in range(dataset.user_offsets[user], stop)][-3:]
        assert (query.times.tolist() if times else []) == times
        assert query.seen_ids.tolist() == seen
        assert (query.user_id, query.time, query.event_type) == (user, 7, "buy")
        has_history = stop > dataset.user_offsets[user]
        assert query.last_time == ((stop - 1) * HOUR if has_history else None)
        assert query.last_event_type == (EVENT_TYPES[codes[-1] - 1] if has_history else None)


@pytest.mark.parametrize("targets", [(), ("buy",), ("buy", "like"), EVENT_TYPES])
def test_seen_items_agree_with_a_loop(targets):
    dataset = random_dataset(target_event_types=targets)
    starts, stops = dataset.user_offsets[:-1], dataset.user_offsets[1:]
    seen = seen_items(dataset, starts, stops)
    offsets = seen.offsets.tolist()
    assert len(offsets) == dataset.num_users + 1
    for user, stop in enumerate(stops):
        items = seen.item_ids[offsets[user] : offsets[user + 1]].tolist()
        assert items == query_by_loop(dataset, user, int(stop), 3)[2]


def test_seen_items_without_event_types_are_all_items():
    dataset = replace(random_dataset(), event_types=None, event_type_names=())
    seen = seen_items(dataset, dataset.user_offsets[:-1], dataset.user_offsets[1:])
    assert seen.item_ids.tolist() == dataset.item_ids.tolist()
    assert seen.offsets.tolist() == dataset.user_offsets.tolist()


def test_query_for_history_counts_new_items_and_unknown_event_types_as_seen():
    dataset = random_dataset()
    query = query_for_history(
        dataset,
        [1, NUM_ITEMS + 2, 3, 4, 5],
        max_length=3,
        event_types=["view", "view", None, "like", "view"],
        last_time=9,
        attributes={"age": 3},
        time=11,
    )
    assert query.user_id == -1
    # The model reads no item added after training; a view does not count as seen.
    assert query.item_ids.tolist() == [3, 4, 5]
    assert query.event_types.tolist() == [0, 2, 3]
    assert query.seen_ids.tolist() == [3, 4]
    assert (query.last_time, query.last_event_type) == (9, "view")
    untyped = query_for_history(dataset, [1, NUM_ITEMS + 2], max_length=3)
    assert untyped.event_types.tolist() == [0]
    assert untyped.seen_ids.tolist() == [1, NUM_ITEMS + 2]


def test_query_for_history_without_event_types_in_the_dataset():
    dataset = replace(
        random_dataset(), event_types=None, event_type_names=(), target_event_types=()
    )
    query = query_for_history(dataset, [1, 2], max_length=3)
    assert query.event_types is None
    assert query.seen_ids.tolist() == [1, 2]
    assert pack_queries([query]).history.event_types is None


def test_query_for_history_with_times():
    dataset = random_dataset()
    times = [5 * HOUR, None, 7 * HOUR, 8 * HOUR]
    query = query_for_history(dataset, [1, 2, NUM_ITEMS + 1, 3], max_length=3, times=times)
    assert query.item_ids.tolist() == [1, 2, 3]
    assert query.times.tolist() == [5 * HOUR, UNKNOWN_TIME, 8 * HOUR]
    untimed = query_for_history(dataset, [4, 5], max_length=3)
    assert query_for_history(dataset, [4], max_length=3, times=[None]).times is None
    packed = pack_queries([untimed, query])
    assert packed.history.times.tolist() == [UNKNOWN_TIME, UNKNOWN_TIME, *query.times.tolist()]
    assert pack_queries([untimed]).history.times is None


def same_queries(one, other):
    assert one.user_ids.tolist() == other.user_ids.tolist()
    assert one.history.item_ids.tolist() == other.history.item_ids.tolist()
    assert one.history.offsets.tolist() == other.history.offsets.tolist()
    assert one.history.query_positions.tolist() == other.history.query_positions.tolist()
    assert one.history.event_types.tolist() == other.history.event_types.tolist()
    assert one.history.times.tolist() == other.history.times.tolist()
    assert one.context == other.context


@pytest.mark.parametrize("event_type", [None, "view"])
def test_vectorised_queries_equal_packed_single_queries(event_type):
    dataset = random_dataset()
    user_ids = np.array([3, 0, 17, 17, 39])
    context = context_of(dataset)
    together = queries_for_users(
        dataset,
        user_ids,
        max_length=3,
        context=context,
        times=np.full(5, 1000 * HOUR),
        event_types=None if event_type is None else pl.Series([event_type] * 5),
    )
    singles = [
        query_for_user(dataset, user, max_length=3, time=1000 * HOUR, event_type=event_type)
        for user in user_ids.tolist()
    ]
    same_queries(together, pack_queries(singles, context=context))
    assert together.context["time"] == [moment(1000 * HOUR)] * 5


def test_context_of_a_query_has_the_end_of_the_history():
    dataset = dataset_of([[0, 1, 2], [], [3, 4]])
    queries = queries_for_users(
        dataset,
        np.arange(3),
        max_length=9,
        context=context_of(dataset),
        times=np.full(3, 10 * HOUR),
    )
    # Interactions are at hours 0 to 4, of event types buy, like, view, buy, like.
    assert queries.context["since"] == [8 * 3600.0, None, 6 * 3600.0]
    assert queries.context["last_event_type"] == ["view", None, "like"]
    assert queries.context["event_type"] == [None] * 3
    anonymous = query_for_history(dataset, [1], max_length=9, time=10 * HOUR, event_type="buy")
    packed = pack_queries([anonymous], context=context_of(dataset))
    assert packed.context["since"] == packed.context["last_event_type"] == [None]
    assert packed.context["event_type"] == ["buy"]


def test_held_out_queries_end_before_the_first_target():
    T, H, V, X = Role.TRAIN, Role.HISTORY, Role.VALIDATION, Role.TEST
    dataset = dataset_of([[1, 2, 3, 4], [5, 6], [7, 8, 0, 1]], [[T, T, V, X], [T, T], [T, H, X, X]])
    targets = held_out(dataset, X)
    context = context_of(dataset)
    batches = list(held_out_queries(dataset, targets, max_length=2, batch_size=1, context=context))
    assert [rows for rows, _ in batches] == [slice(0, 1), slice(1, 2)]
    assert [queries.user_ids.tolist() for _, queries in batches] == [[0], [2]]
    assert [queries.history.item_ids.tolist() for _, queries in batches] == [[2, 3], [7, 8]]
    assert [queries.history.event_types.tolist() for _, queries in batches] == [[2, 3], [1, 2]]
    # The first targets are interactions 3 and 8, at these hours and of these event types.
    assert [queries.context["time"] for _, queries in batches] == [
        [moment(3 * HOUR)],
        [moment(8 * HOUR)],
    ]
    assert [queries.context["event_type"] for _, queries in batches] == [["buy"], ["view"]]
    assert [queries.context["since"] for _, queries in batches] == [[3600.0], [3600.0]]
    together = list(held_out_queries(dataset, targets, max_length=2, batch_size=9))
    assert len(together) == 1
    assert together[0][1].context is None


class Ages:
    """A model whose query vector is (user id, length of the history, age of an anonymous user)."""

    def encode_queries(self, queries):
        assert not torch.is_grad_enabled()
        ages = torch.full((len(queries),), -1.0)
        if queries.user_features is not None:
            ages = queries.user_features["age"].values[:, 0].float()
        lengths = queries.history.offsets.diff().float()
        return torch.stack([queries.user_ids.float(), lengths, ages], 1)


def encode_ages(attributes):
    ages = [[float(row.get("age", 0))] for row in attributes]
    return {"age": Numbers(torch.tensor(ages))}


def test_encode_queries_keeps_the_order_of_mixed_queries():
    dataset = random_dataset()
    lengths = np.diff(dataset.user_offsets)
    queries = [
        query_for_user(dataset, 5, max_length=99),
        query_for_history(dataset, [1, 2], max_length=99, attributes={"age": 31}),
        query_for_history(dataset, [], max_length=99),
        query_for_history(dataset, [1], max_length=99, attributes={}),
        query_for_user(dataset, 7, max_length=99),
    ]
    vectors = encode_queries(Ages(), queries, encode_attributes=encode_ages)
    assert vectors.tolist() == [
        [5, lengths[5], -1],
        [-1, 2, 31],
        [-1, 0, -1],
        [-1, 1, 0],
        [7, lengths[7], -1],
    ]
    assert vectors.dtype == torch.float32
    only = encode_queries(Ages(), queries[1:2], encode_attributes=encode_ages)
    assert only.tolist() == [[-1, 2, 31]]


def test_encode_queries_without_a_query_is_refused():
    with pytest.raises(ConfigError, match="no query to encode"):
        encode_queries(Ages(), [])
