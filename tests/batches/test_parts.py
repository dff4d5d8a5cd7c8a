"""Parts of a batch: every row once, with its own history, context and time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.batches import History, Queries, offsets_of, parts_of
from candid.features import Codes


def make_queries(lengths, rows):
    """Return queries at random tokens of histories, some of them without a history."""
    offsets = offsets_of(np.array(lengths, dtype=np.int64))
    total = int(offsets[-1])
    positions = torch.tensor([row % (total + 1) - 1 for row in rows], dtype=torch.int64)
    numbers = torch.arange(len(rows))
    return Queries(
        user_ids=100 + numbers,
        history=History(
            item_ids=torch.arange(total) * 7,
            offsets=torch.from_numpy(offsets),
            query_positions=positions,
            event_types=torch.arange(total) % 3,
            times=torch.arange(total) * 1000,
        ),
        context={"kind": Codes(numbers[:, None], len(rows) + 1)},
        times=numbers * 10,
    )


def history_of(queries, row):
    """Return the number of the sequence of a row, and the tokens up to the row."""
    history = queries.history
    position = int(history.query_positions[row])
    if position < 0:
        return None
    sequence = int(torch.searchsorted(history.offsets, position, right=True)) - 1
    tokens = slice(int(history.offsets[sequence]), position + 1)
    parts = (history.item_ids[tokens], history.event_types[tokens], history.times[tokens])
    return history.first_sequence + sequence, *(part.tolist() for part in parts)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=7),
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
    st.integers(1, 9),
)
def test_every_row_is_in_one_part_with_its_history(lengths, rows, size):
    queries = make_queries(lengths, rows)
    parts = list(parts_of(queries, size))
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(len(rows)))
    for part in parts:
        assert len(part.queries.history.offsets) - 1 <= size
        assert torch.equal(part.queries.row_numbers, part.rows)
        assert torch.equal(part.queries.user_ids, queries.user_ids[part.rows])
        assert torch.equal(part.queries.times, queries.times[part.rows])
        assert torch.equal(part.queries.context["kind"].ids[:, 0], part.rows)
        for place, row in enumerate(part.rows.tolist()):
            assert history_of(part.queries, place) == history_of(queries, row)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_rows_without_histories_are_cut_by_number(size):
    queries = Queries(user_ids=torch.arange(10) * 2)
    parts = list(parts_of(queries, size))
    assert torch.equal(torch.cat([part.rows for part in parts]), torch.arange(10))
    assert max(len(part.queries) for part in parts) == min(size, 10)
    assert all(torch.equal(part.queries.user_ids, part.rows * 2) for part in parts)


def test_part_of_a_part_keeps_its_place_in_the_whole_batch():
    queries = make_queries([3, 2, 4, 1], range(1, 11))
    [_, second] = parts_of(queries, 2)
    [_, last] = parts_of(second.queries, 1)
    assert last.queries.history.first_sequence == 3
    assert last.queries.row_numbers.tolist() == [9]
