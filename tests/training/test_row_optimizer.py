"""Row-wise optimizers against their definitions, written as loops over dense gradients."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from candid.errors import ConfigError
from candid.training import RowAdagrad, RowAdam, row_optimizer
from candid.training.optimizer import ModelOptimizer
from candid.training.row_optimizer import round_stochastically

V, D = 12, 4
STEPS = [[3, 3, 7], [0, 7, 7, 7], [3], [], [11, 3, 0], [3, 3, 3, 3], [5]]


def adagrad(values, state, gradient, lr):
    """Update one row, in Python numbers."""
    state["sum"] = state.get("sum", 0.0) + sum(g * g for g in gradient) / len(gradient)
    return [
        v - lr * g / (math.sqrt(state["sum"]) + 1e-10)
        for v, g in zip(values, gradient, strict=True)
    ]


def adam(beta):
    """As ``adagrad``, with and without a first moment."""

    def rule(values, state, gradient, lr):
        k = state["k"] = state.get("k", 0) + 1
        mean_square = sum(g * g for g in gradient) / len(gradient)
        state["v"] = 0.99 * state.get("v", 0.0) + 0.01 * mean_square
        old = state.get("m", [0.0] * len(gradient))
        state["m"] = [beta * m + (1 - beta) * g for m, g in zip(old, gradient, strict=True)]
        root = math.sqrt(state["v"] / (1 - 0.99**k))
        return [
            v - lr * m / (1 - beta**k) / (root + 1e-8)
            for v, m in zip(values, state["m"], strict=True)
        ]

    return rule


RULES = {
    "adagrad": (adagrad, lambda p, **s: RowAdagrad(p, **s)),
    "adam": (adam(0.0), lambda p, **s: RowAdam(p, betas=(0.0, 0.99), **s)),
    "adam with a first moment": (adam(0.9), lambda p, **s: RowAdam(p, betas=(0.9, 0.99), **s)),
}


def read(table, target, ids):
    """Return a loss whose gradient of a row is a multiple of its occurrences."""
    ids = torch.tensor(ids, dtype=torch.int64)
    return ((table(ids) - target[ids]) ** 2).sum()


def sparse_table(rows=V, dim=D, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    table = nn.Embedding(rows, dim, sparse=True)
    table.weight.data = torch.randn(rows, dim, generator=generator).to(dtype)
    return table


@pytest.fixture(params=["distinct", "padded"])
def distinct_ids(request, monkeypatch):
    """The distinct ids of a step: as on the CPU, and padded as on an accelerator."""
    if request.param == "padded":
        monkeypatch.setattr(row_optimizer, "_distinct", row_optimizer._padded_distinct)


@pytest.mark.usefixtures("distinct_ids")
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("name", RULES)
def test_rule_matches_its_definition(name, decay):
    rule, make = RULES[name]
    table, target = sparse_table(), torch.linspace(-1, 1, V * D).view(V, D)
    expected, states = table.weight.tolist(), [{} for _ in range(V)]
    optimizer = make([table.weight], lr=0.1, weight_decay=decay)
    for ids in STEPS:
        optimizer.zero_grad()
        read(table, target, ids).backward()
        optimizer.step()
        for row in set(ids):
            gradient = [
                2 * ids.count(row) * (v - t)
                for v, t in zip(expected[row], target[row].tolist(), strict=True)
            ]
            decayed = [v * (1 - 0.1 * decay) for v in expected[row]]
            expected[row] = rule(decayed, states[row], gradient, 0.1)
        torch.testing.assert_close(table.weight.detach(), torch.tensor(expected))


@pytest.mark.usefixtures("distinct_ids")
@pytest.mark.parametrize("name", RULES)
def test_rows_that_are_not_read_do_not_change(name):
    table, target = sparse_table(), torch.zeros(V, D)
    before = table.weight.detach().clone()
    optimizer = RULES[name][1]([table.weight], lr=0.1, weight_decay=0.3)
    for ids in STEPS:
        optimizer.zero_grad()
        read(table, target, ids).backward()
        optimizer.step()
    moved = (table.weight != before).any(dim=1).nonzero()[:, 0].tolist()
    assert moved == sorted({row for ids in STEPS for row in ids})


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_first_step_of_a_row_does_not_depend_on_the_step_of_the_run(beta):
    table, target = sparse_table(), torch.zeros(V, D)
    table.weight.data[:] = 1.0
    optimizer = RowAdam([table.weight], lr=0.1, betas=(beta, 0.999))
    for ids in [[2], *[[5]] * 50, [9]]:
        optimizer.zero_grad()
        read(table, target, ids).backward()
        optimizer.step()
    torch.testing.assert_close(table.weight[9], table.weight[2], rtol=1e-5, atol=0)
    torch.testing.assert_close(table.weight[9], torch.full((D,), 0.9))


def test_two_reads_of_a_table_in_a_step_sum_their_gradients():
    table, target = sparse_table(), torch.zeros(V, D)
    other = sparse_table()
    for one, parts in ((table, [[1, 2], [2, 4]]), (other, [[1, 2, 2, 4]])):
        optimizer = RowAdam([one.weight], lr=0.1)
        sum(read(one, target, ids) for ids in parts).backward()
        optimizer.step()
    assert torch.equal(table.weight, other.weight)


def test_padded_ids_write_the_same_rounded_numbers(monkeypatch):
    monkeypatch.setattr(row_optimizer, "_distinct", row_optimizer._padded_distinct)
    table = sparse_table(dtype=torch.bfloat16)
    optimizer = RowAdagrad([table.weight], lr=0.1)
    written = []
    index_copy = torch.Tensor.index_copy_

    def record(self, dim, index, source):
        if source.dtype == torch.bfloat16:
            written.append((index, source))
        return index_copy(self, dim, index, source)

    monkeypatch.setattr(torch.Tensor, "index_copy_", record)
    read(table, torch.zeros(V, D), [7, 3, 7, 7, 3]).backward()
    optimizer.step()
    ((ids, rows),) = written
    assert ids.tolist() == [3, 7, 3, 3, 3]
    assert all(torch.equal(row, rows[0]) for row in rows[2:])


def test_stochastic_rounding_is_unbiased_and_keeps_exact_values():
    torch.manual_seed(0)
    low, high = torch.tensor([1.0, 1.0 + 2**-7])
    value = low + 0.3 * (high - low)
    rounded = round_stochastically(value.expand(20_000)).float()
    assert set(rounded.unique().tolist()) == {low.item(), high.item()}
    share = (rounded == high).float().mean().item()
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 20_000))
    exact = torch.tensor([0.0, -1.5, 3.0, 2.0**-100])
    assert torch.equal(round_stochastically(exact).float(), exact)


def test_bfloat16_table_follows_updates_far_below_its_spacing():
    torch.manual_seed(0)
    table = sparse_table(1, 512, torch.bfloat16)
    table.weight.data[:] = 1.0
    optimizer = RowAdam([table.weight], lr=1e-4)
    for _ in range(200):
        optimizer.zero_grad()
        table(torch.tensor([0])).float().sum().backward()
        optimizer.step()
    # Constant gradient: 200 steps of 1e-4 each, where neighbours of 1 are 1/256 apart.
    assert table.weight.float().mean().item() == pytest.approx(1 - 0.02, abs=1e-3)


class Allocations(TorchDispatchMode):
    """Counts the bytes that operations return, without those of known tensors."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            is_plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
            if is_plain and tensor.untyped_storage().data_ptr() not in self.known:
                self.bytes += tensor.untyped_storage().nbytes()
        return result


def bytes_of_a_step(num_rows, make, is_sparse=True):
    table = nn.Embedding(num_rows, 8, sparse=is_sparse)
    optimizer = make([table.weight])
    ids = torch.arange(100).repeat(2)

    def step():
        optimizer.zero_grad()
        table(ids).square().sum().backward()
        optimizer.step()

    step()
    with Allocations([table.weight, *optimizer.state[table.weight].values()]) as allocations:
        step()
    return allocations.bytes


@pytest.mark.parametrize("name", RULES)
def test_memory_of_a_step_does_not_grow_with_the_table(name):
    make = RULES[name][1]
    small, large = (
        bytes_of_a_step(n, lambda p: make(p, lr=0.1, weight_decay=0.1)) for n in (1_000, 100_000)
    )
    assert 0 < small == large < 200_000  # the table: 3.2 MB


def test_memory_measure_detects_a_dense_gradient():
    small, large = (
        bytes_of_a_step(n, lambda p: torch.optim.AdamW(p, fused=True), is_sparse=False)
        for n in (1_000, 100_000)
    )
    assert large > 50 * small


@pytest.mark.parametrize("name", RULES)
def test_state_is_a_few_numbers_per_row(name):
    table = sparse_table(1_000, 64)
    optimizer = RULES[name][1]([table.weight], lr=0.1)
    table(torch.tensor([5])).sum().backward()
    optimizer.step()
    state = optimizer.state[table.weight]
    assert set(state) == optimizer.state_names
    scalars = [t for t in state.values() if t.ndim == 1]
    assert sum(t.nbytes for t in scalars) == 1_000 * (4 if name == "adagrad" else 8)
    assert len(state) - len(scalars) == (name == "adam with a first moment")


def test_dense_gradient_is_refused():
    table = nn.Embedding(V, D)
    table.weight.sum().backward()
    with pytest.raises(ConfigError, match=r"has a gradient for every row.*training\.tables"):
        RowAdam([table.weight]).step()


def test_closure_is_refused():
    with pytest.raises(ConfigError, match="no closure"):
        RowAdam([sparse_table().weight]).step(lambda: 0.0)


@pytest.mark.parametrize(("clip_norm", "factor"), [(None, 1.0), (100.0, 1.0), (0.25, None)])
def test_clipping_scales_large_row_gradients_down_and_never_small_ones_up(clip_norm, factor):
    table = sparse_table()
    optimizer = ModelOptimizer(None, RowAdagrad([table.weight], lr=0.1))
    gradient = torch.tensor([0.3, -0.4, 0.0, 0.0])
    (table(torch.tensor([5])) * gradient).sum().backward()
    norm = optimizer.step(0.1, clip_norm)
    assert norm.item() == pytest.approx(0.5)
    factor = 0.25 / 0.5 if factor is None else factor
    # The state of row-wise Adagrad after one step: the mean square of the gradient that was used.
    square_sum = optimizer.rows.state[table.weight]["square_sum"][5].item()
    assert square_sum == pytest.approx(factor**2 * 0.25 / 4, rel=1e-4)
