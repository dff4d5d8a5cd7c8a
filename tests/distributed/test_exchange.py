"""Sharded rows against an embedding that one process holds."""

import pytest
import torch
from torch.nn.functional import embedding

from candid.distributed.exchange import RowExchange, RowRanges, ShardedRows
from candid.errors import DataError

V, D = 11, 3


def whole_table(dtype=torch.float64):
    return torch.randn(V, D, generator=torch.Generator().manual_seed(0)).to(dtype)


def ids_of(rank, step):
    """Ids of a rank: repeats, ids of other ranks, and none on some ranks."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    size = (0, 17, 5, 1)[(rank + step) % 4]
    return torch.randint(0, V, (size,), generator=generator)


def weights_of(rank, step):
    generator = torch.Generator().manual_seed(1000 + 100 * step + rank)
    return torch.randn(len(ids_of(rank, step)), D, generator=generator, dtype=torch.float64)


def expected_gradient(num_ranks, steps):
    table = whole_table().requires_grad_()
    for rank in range(num_ranks):
        for step in steps:
            (embedding(ids_of(rank, step), table) * weights_of(rank, step)).sum().backward()
    return table.grad


def look_up_and_collect(rank, num_ranks):
    """All cases of one number of ranks."""
    rows = ShardedRows(V)
    local = whole_table()[rows.exchange.rows.start : rows.exchange.rows.stop].requires_grad_()
    for step in range(4):
        found = rows.look_up(local, ids_of(rank, step))
        assert torch.equal(found, whole_table()[ids_of(rank, step)])
    assert rows.look_up(local, torch.tensor([[0, V - 1], [3, 3]])).shape == (2, 2, D)
    # Several look-ups; the ranks run their backward passes in ananother order.
    rows.drop()
    values = [(rows.look_up(local, ids_of(rank, s)) * weights_of(rank, s)).sum() for s in range(4)]
    for value in values[:: 1 if rank % 2 else -1]:
        value.backward()
    gradient = rows.collect(local)
    assert gradient.is_sparse
    assert gradient.shape == local.shape
    assert local.grad is None
    expected = expected_gradient(num_ranks, range(4))
    own = expected[rows.exchange.rows.start : rows.exchange.rows.stop]
    torch.testing.assert_close(gradient.to_dense(), own, rtol=0, atol=1e-12)
    # Nothing is left for the next step.
    assert rows.collect(local)._nnz() == 0
    bits = [gradient.to_dense().tolist()]
    for _ in range(3):
        for value in range(4):
            (rows.look_up(local, ids_of(rank, value)) * weights_of(rank, value)).sum().backward()
        bits.append(rows.collect(local).to_dense().tolist())
    assert bits[1] == bits[2] == bits[3]
    # bfloat16 rows travel in bfloat16, and their gradients in float32.
    narrow = whole_table(torch.bfloat16)[rows.exchange.rows.start : rows.exchange.rows.stop]
    narrow.requires_grad_()
    found = rows.look_up(narrow, ids_of(rank, 1))
    assert found.dtype == torch.float32
    assert torch.equal(found, whole_table(torch.bfloat16)[ids_of(rank, 1)].float())
    found.sum().backward()
    assert rows.collect(narrow).dtype == torch.float32
    with torch.inference_mode():
        assert len(rows.look_up(local, ids_of(rank, 2))) == len(ids_of(rank, 2))
    check_traffic(rank, num_ranks)
    check_errors(rank, num_ranks)
    check_more_ranks_than_rows(rank, num_ranks)
    return True


def check_traffic(rank, num_ranks):
    """Count bytes from the distinct ids of each rank, with sets of Python."""
    rows = ShardedRows(V)
    rows.exchange.group.traffic.clear()
    local = whole_table()[rows.exchange.rows.start : rows.exchange.rows.stop].requires_grad_()
    asked = [set(ids_of(r, 1).tolist()) | set(ids_of(r, 2).tolist()) for r in range(num_ranks)]
    of_rank = [set(rows.exchange.ranges.of(r)) for r in range(num_ranks)]
    first, second = ids_of(rank, 1), ids_of(rank, 2)
    look_ups = 0
    for step in (1, 2):
        wanted = [set(ids_of(r, step).tolist()) for r in range(num_ranks)]
        num_ids = len(wanted[rank] - of_rank[rank])
        num_rows = sum(len(wanted[r] & of_rank[rank]) for r in range(num_ranks) if r != rank)
        look_ups += 8 * (num_ranks - 1) + 8 * num_ids + num_rows * D * 8
    (rows.look_up(local, first).sum() + rows.look_up(local, second).sum()).backward()
    assert sent(rows) == ((look_ups, 6) if num_ranks > 1 else (0, 0))
    rows.collect(local)
    num_rows = len(asked[rank] - of_rank[rank])
    gradients = 8 * (num_ranks - 1) + num_rows * (8 + D * 8)
    assert sent(rows) == ((look_ups + gradients, 9) if num_ranks > 1 else (0, 0))


def sent(rows):
    """Return the counted bytes and exchanges."""
    counted = rows.exchange.group.traffic.to_json().get("exchange", {"bytes": 0, "messages": 0})
    return counted["bytes"], counted["messages"]


def check_errors(rank, num_ranks):
    """One rank asks for a row that does not exist; all ranks fail and none waits."""
    rows = ShardedRows(V)
    local = whole_table()[rows.exchange.rows.start : rows.exchange.rows.stop]
    for bad in (-1, V):
        ids = torch.tensor([0, bad] if rank == num_ranks - 1 else [0, 1])
        with pytest.raises(DataError, match=rf"^process {num_ranks - 1} asked .* 0 to {V - 1}$"):
            rows.look_up(local, ids)


def check_more_ranks_than_rows(rank, num_ranks):
    rows = ShardedRows(2)
    table = torch.tensor([[1.0], [2.0]])
    local = table[rows.exchange.rows.start : rows.exchange.rows.stop].requires_grad_()
    rows.look_up(local, torch.tensor([1, 0, 1])).sum().backward()
    gradient = rows.collect(local).to_dense()
    expected = torch.tensor([[1.0], [2.0]]) * num_ranks
    assert torch.equal(gradient, expected[rows.exchange.rows.start : rows.exchange.rows.stop])


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_look_up_and_gradient_equal_a_whole_table(on_ranks, num_ranks):
    assert all(on_ranks(look_up_and_collect, num_ranks))


@pytest.mark.parametrize(("num_rows", "num_ranks"), [(10, 4), (2, 4), (0, 3), (7, 1), (9, 3)])
def test_ranges_cover_every_row_once_and_differ_by_one_row_at_most(num_rows, num_ranks):
    ranges = RowRanges(num_rows, num_ranks)
    every = [ranges.of(rank) for rank in range(num_ranks)]
    assert [row for rows in every for row in rows] == list(range(num_rows))
    assert max(map(len, every)) - min(map(len, every)) <= 1
    assert [rows.start for rows in every] + [num_rows] == ranges.starts


def test_one_process_without_a_group_sends_nothing():
    exchange = RowExchange(V)
    assert exchange.rows == range(V)
    assert repr(exchange) == f"RowExchange(rank=0, rows=0:{V})"
    table = whole_table()
    ids = torch.tensor([2, 5])
    assert torch.equal(exchange.fetch(table, ids), table[ids])
    assert not exchange.group.traffic.messages
