"""Look-ups by rank against binary search and against a list of the selected entries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.batches import offsets_of
from candid.batches.ranked import PIECE, RangeLookup, Selected, cut_pieces, sums_of_ranges


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 50, 1000]), min_size=1, max_size=40),
    first=st.sampled_from([0, 5]),
)
def test_range_of_every_position(lengths, first):
    lengths = np.array([first, *lengths])
    offsets = offsets_of(lengths)
    expected = np.repeat(np.arange(len(lengths)), lengths)
    found = RangeLookup(offsets)(np.arange(offsets[-1]))
    assert found.tolist() == expected.tolist()


def test_ranges_of_positions_beyond_32_bits():
    rng = np.random.default_rng(0)
    offsets = offsets_of(rng.integers(0, 2**36, 3000))
    positions = np.concatenate([rng.integers(0, offsets[-1], 5000), offsets[:-1], offsets[1:] - 1])
    expected = np.searchsorted(offsets, positions, side="right") - 1
    assert RangeLookup(offsets)(positions).tolist() == expected.tolist()


def test_many_empty_ranges_in_a_row():
    offsets = offsets_of(np.array([3] + [0] * 1000 + [2] + [0] * 1000 + [1]))
    assert RangeLookup(offsets)(np.arange(6)).tolist() == [0, 0, 0, 1001, 1001, 2002]


@settings(deadline=None, max_examples=150)
@given(
    num=st.sampled_from([1, 5, PIECE - 1, PIECE, PIECE + 1, 700]),
    share=st.sampled_from([0.02, 0.5, 0.98, 1.0]),
    bounds=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 700)), max_size=6),
    seed=st.integers(0, 1000),
)
def test_selected_entries_by_rank(num, share, bounds, seed):
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(num) < share, 2, rng.integers(3, 6, num)).astype(np.uint8)
    # Ranges in ascending order that do not overlap; between them entries do not count.
    edges = np.unique(np.clip(np.array(bounds, dtype=np.int64).ravel(), 0, num))
    edges = edges[: len(edges) // 2 * 2].reshape(-1, 2)
    starts, lengths = cut_pieces(edges[:, 0], edges[:, 1])
    counts = sums_of_ranges(values == 2, starts, starts + lengths)
    expected = [e for start, stop in edges for e in range(start, stop) if values[e] == 2]
    selected = Selected(starts, lengths, counts, values, 2)
    assert len(selected) == len(expected)
    order = rng.permutation(len(expected))
    entries, pieces = selected(order)
    assert entries.tolist() == [expected[rank] for rank in order]
    assert ((starts[pieces] <= entries) & (entries < starts[pieces] + lengths[pieces])).all()


def test_long_pieces_must_be_selected_as_a_whole():
    values = np.ones(PIECE + 1, dtype=np.uint8)
    starts, lengths = np.array([0]), np.array([PIECE + 1])
    assert Selected(starts, lengths, lengths, values, 1)(np.array([PIECE]))[0].tolist() == [PIECE]
    values[5] = 0
    with pytest.raises(ValueError, match=f"at most {PIECE} entries, got {PIECE + 1}"):
        Selected(starts, lengths, lengths - 1, values, 1)


def test_sums_of_ranges_with_empty_and_overlapping_ones():
    values = np.array([True, False, True, True])
    starts, stops = np.array([0, 4, 2, 1, 0, 3]), np.array([4, 4, 2, 3, 2, 4])
    assert sums_of_ranges(values, starts, stops).tolist() == [3, 0, 0, 1, 1, 1]
    nothing = np.empty(0, dtype=np.int64)
    assert sums_of_ranges(values, nothing, nothing).tolist() == []
