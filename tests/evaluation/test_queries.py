"""What counts as seen, and which questions can be answered, read user by user."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from candid.data import Role, held_out
from candid.errors import DataError
from candid.evaluation import EvaluationConfig, check_relevant
from candid.evaluation.queries import seen, seen_between, targets_of

KINDS = ("buy", "like", "view")
TARGETS = [(), ("buy",), ("buy", "like"), KINDS]


def with_kinds(dataset, target_event_types, seed=1):
    kinds = np.random.default_rng(seed).integers(0, len(KINDS), len(dataset.item_ids))
    return replace(
        dataset,
        event_types=kinds.astype(np.uint8),
        event_type_names=KINDS,
        target_event_types=target_event_types,
    )


def by_hand(dataset, target_event_types, start, stop):
    """The items in order, of the kinds that are targets."""
    counted = target_event_types or KINDS
    return [
        int(dataset.item_ids[event])
        for event in range(start, stop)
        if KINDS[dataset.event_types[event]] in counted
    ]


@pytest.mark.parametrize("targets", TARGETS)
def test_only_items_of_kinds_that_are_targets_are_seen(make_random, targets):
    dataset = with_kinds(make_random(repeats=True, max_targets=3)[0], targets)
    starts, stops = dataset.user_offsets[:-1], dataset.user_offsets[1:]
    found = seen_between(dataset, starts, stops)
    offsets = found.offsets.tolist()
    assert len(offsets) == dataset.num_users + 1
    for user, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        own = found.item_ids[offsets[user] : offsets[user + 1]].tolist()
        assert own == by_hand(dataset, targets, start, stop)


@pytest.mark.parametrize("targets", TARGETS)
def test_a_target_of_which_only_a_lesser_kind_was_seen_is_relevant(make_random, targets):
    dataset = with_kinds(make_random(repeats=True, max_targets=3)[0], targets)
    asked, rows = held_out(dataset, Role.TEST), slice(7, 40)
    found = targets_of(asked, rows, dataset.num_items, seen(dataset, asked, rows))
    expected = set()
    for row, q in enumerate(range(7, 40)):
        start = dataset.user_offsets[asked.user_ids[q]]
        hidden = by_hand(dataset, targets, start, asked.history_stop[q])
        wanted = asked.target_ids[asked.target_offsets[q] : asked.target_offsets[q + 1]]
        expected |= {row * dataset.num_items + int(i) for i in wanted if i not in hidden}
    assert set(found.relevant.tolist()) == expected
    whole = targets_of(asked, rows, dataset.num_items, None)
    assert 0 < len(found.relevant) < len(whole.relevant)


def test_without_kinds_all_is_seen(make_random):
    dataset = make_random(repeats=True)[0]
    found = seen_between(dataset, dataset.user_offsets[:-1], dataset.user_offsets[1:])
    assert found.item_ids.tolist() == dataset.item_ids.tolist()
    assert found.offsets.tolist() == dataset.user_offsets.tolist()


@pytest.mark.parametrize("last", [1, 2])
def test_questions_are_refused_only_where_no_target_is_left(make_dataset, last):
    """Item 2 of the last user is new, item 1 is not; batches of one find it at the end."""
    histories = [[(0, 0), (0, 3)], [(2, 0), (1, 0), (2, 3)], [(1, 0), (last, 3)]]
    dataset = make_dataset(histories, 3)
    config = EvaluationConfig(ks=(1,), metric="mrr@1", batch_size=1)
    if last == 2:
        check_relevant(dataset, config, Role.TEST, needs_history=True)
        return
    with pytest.raises(DataError, match=r"all 3 test targets .* hides, so that mrr@1 is of no"):
        check_relevant(dataset, config, Role.TEST, needs_history=True)
    shown = config.model_copy(update={"filter_seen": False})
    check_relevant(dataset, shown, Role.TEST, needs_history=True)


def test_who_has_no_history_has_seen_nothing(make_dataset):
    dataset = make_dataset([[(0, 0), (0, 3)], [(0, 3)]], 3)
    config = EvaluationConfig(ks=(1,), metric="mrr@1")
    check_relevant(dataset, config, Role.TEST, needs_history=False)
    with pytest.raises(DataError, match="all 1 test targets"):
        check_relevant(dataset, config, Role.TEST, needs_history=True)
