"""Relevant targets and refused evaluations, against a loop over users."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from candid.data import PreparedDataset, Role, chunks, held_out
from candid.errors import DataError
from candid.evaluation import EvaluationConfig, check_has_relevant
from candid.evaluation.queries import seen_items_of, select_queries, targets_of

EVENT_TYPES = ("buy", "like", "view")
TARGETS = [(), ("buy",), ("buy", "like"), EVENT_TYPES]


def with_event_types(dataset, target_event_types, seed=1):
    codes = np.random.default_rng(seed).integers(0, len(EVENT_TYPES), len(dataset.item_ids))
    return replace(
        dataset,
        event_types=codes.astype(np.uint8),
        event_type_names=EVENT_TYPES,
        target_event_types=target_event_types,
    )


def seen_by_loop(dataset, target_event_types, start, stop):
    """Items of target event types, in order."""
    counted = target_event_types or EVENT_TYPES
    return [
        int(dataset.item_ids[event])
        for event in range(start, stop)
        if EVENT_TYPES[dataset.event_types[event]] in counted
    ]


@pytest.mark.parametrize("targets", TARGETS)
def test_targets_are_relevant_unless_seen_by_a_target_event_type(make_random, targets):
    dataset = with_event_types(make_random(repeats=True, max_targets=3)[0], targets)
    queries, rows = held_out(dataset, Role.TEST), slice(7, 40)
    seen = seen_items_of(dataset, queries, rows)
    filtered = targets_of(queries, rows, dataset.num_items, seen)
    expected = set()
    for row, q in enumerate(range(7, 40)):
        start = dataset.user_offsets[queries.user_ids[q]]
        hidden = seen_by_loop(dataset, targets, start, queries.history_stop[q])
        items = queries.target_ids[queries.target_offsets[q] : queries.target_offsets[q + 1]]
        expected |= {row * dataset.num_items + int(i) for i in items if i not in hidden}
    assert set(filtered.relevant.tolist()) == expected
    unfiltered = targets_of(queries, rows, dataset.num_items, None)
    assert 0 < len(filtered.relevant) < len(unfiltered.relevant)


@pytest.mark.parametrize("last", [1, 2])
def test_evaluation_is_refused_only_if_no_target_is_relevant(make_dataset, last):
    """Item 2 of the last user is new, item 1 is not; batches of one find it at the end."""
    histories = [[(0, 0), (0, 3)], [(2, 0), (1, 0), (2, 3)], [(1, 0), (last, 3)]]
    dataset = make_dataset(histories, 3)
    config = EvaluationConfig(ks=(1,), metric="mrr@1", batch_size=1)
    if last == 2:
        check_has_relevant(dataset, config, Role.TEST, needs_history=True)
        return
    with pytest.raises(DataError, match=r"mrr@1 is undefined: all 3 test targets .* hides them"):
        check_has_relevant(dataset, config, Role.TEST, needs_history=True)
    unfiltered = config.model_copy(update={"filter_seen": False})
    check_has_relevant(dataset, unfiltered, Role.TEST, needs_history=True)


def test_user_without_history_has_seen_no_item(make_dataset):
    dataset = make_dataset([[(0, 0), (0, 3)], [(0, 3)]], 3)
    config = EvaluationConfig(ks=(1,), metric="mrr@1")
    check_has_relevant(dataset, config, Role.TEST, needs_history=False)
    with pytest.raises(DataError, match="all 1 test targets"):
        check_has_relevant(dataset, config, Role.TEST, needs_history=True)


@pytest.mark.parametrize("max_users", [None, 9])
@pytest.mark.parametrize("catalog", ["all", "warm", "cold"])
def test_queries_are_those_of_a_loop_over_users(make_random, monkeypatch, catalog, max_users):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 16)
    dataset = make_random(repeats=True, max_targets=3)[0]
    counts = np.where(np.arange(dataset.num_items) % 3 == 0, 0.0, 1.0)
    is_target = {"all": counts >= 0, "warm": counts > 0, "cold": counts == 0}[catalog]
    settings = {"needs_history": True, "seed": 5, "catalog": catalog, "item_counts": counts}
    queries = select_queries(dataset, Role.TEST, max_users=max_users, **settings)
    expected, num_skipped = {}, 0
    for user in range(dataset.num_users):
        start, stop = dataset.user_offsets[user : user + 2]
        events = [e for e in range(start, stop) if dataset.roles[e] == Role.TEST]
        targets = [int(i) for i in dataset.item_ids[events] if is_target[i]]
        if targets and events[0] > start:
            expected[user] = (int(events[0]), targets)
        num_skipped += bool(targets) and events[0] == start
    held, offsets = queries.held_out, queries.held_out.target_offsets
    actual = {
        int(user): (int(stop), held.target_ids[begin:end].tolist())
        for user, stop, begin, end in zip(
            held.user_ids, held.history_stop, offsets[:-1], offsets[1:], strict=True
        )
    }
    assert len(actual) == (max_users or len(expected))
    assert actual.items() <= expected.items()
    assert list(actual) == sorted(actual)
    assert queries.num_population == len(expected) > 9
    assert queries.counts["users_without_history"] == num_skipped


def test_memory_of_a_sample_is_that_of_users_and_not_of_targets(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 1 << 12)
    num_users, length = 500, 800
    num = num_users * length
    dataset = PreparedDataset(
        item_ids=(np.arange(num) % 5).astype(np.int32),
        user_offsets=np.arange(num_users + 1) * length,
        roles=np.tile(np.repeat([Role.TRAIN, Role.VALIDATION], length // 2), num_users),
        users=pl.DataFrame({"source_id": np.arange(num_users)}),
        items=pl.DataFrame({"source_id": np.arange(5)}),
    )
    config = EvaluationConfig(ks=(1,), metric="mrr@1", max_users=10, filter_seen=False)
    counts = dataset.train_counts
    tracemalloc.start()
    try:
        queries = check_has_relevant(
            dataset, config, Role.VALIDATION, needs_history=True, item_counts=counts
        )
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(queries) == 10
    assert len(queries.held_out.target_ids) == 10 * length // 2
    # 200,000 targets as int64 would be 1.6 MB.
    assert kept < peak < num
