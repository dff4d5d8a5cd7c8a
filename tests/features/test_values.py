from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from candid.features import Bags, Codes, Numbers

ROWS = st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=6)


def bags(rows):
    offsets = [sum(map(len, rows[:end])) for end in range(len(rows) + 1)]
    flat = [code for row in rows for code in row]
    return Bags(torch.tensor(flat, dtype=torch.int64), torch.tensor(offsets), 6)


def lists(values):
    ends = values.offsets.tolist()
    return [values.ids[a:b].tolist() for a, b in pairwise(ends)]


@given(ROWS, st.data())
def test_take_of_bags_equals_taking_elements_of_a_list(rows, data):
    positions = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    values = bags(rows)
    taken = values.take(torch.tensor(positions, dtype=torch.int64))
    assert lists(taken) == [rows[row] for row in positions]
    assert len(taken) == len(positions)
    assert taken.num_codes == 6
    assert lists(values) == rows  # the argument stays


@given(st.lists(st.integers(0, 3), max_size=8))
def test_take_of_codes_and_numbers(positions):
    table = [[1, 2], [3, 4], [5, 6], [0, 7]]
    rows = torch.tensor(positions, dtype=torch.int64)
    codes = Codes(torch.tensor(table), 8).take(rows)
    numbers = Numbers(torch.tensor(table, dtype=torch.float32)).take(rows)
    assert codes.ids.tolist() == [table[row] for row in positions]
    assert numbers.values.tolist() == [table[row] for row in positions]
    assert codes.num_codes == 8


def test_to_keeps_values():
    for values in (bags([[1], []]), Codes(torch.ones(2, 1, dtype=torch.int64), 2)):
        moved = values.to(torch.device("cpu"))
        assert len(moved) == 2
        assert moved.num_codes == values.num_codes
        assert torch.equal(moved.ids, values.ids)
