"""The learning rate against its definition, and weight decay."""

import math

import pytest
import torch
from torch import nn

from candid.errors import ConfigError
from candid.towers import TOWERS, RowTable, TowerContext
from candid.training import TrainingConfig, row_optimizer
from candid.training.optimizer import SPARSE_ROWS, learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [
        ("constant", 2.0, 2.0),
        ("linear", 2.0 * (0.1 + 0.9 * 0.5), 0.2),
        ("cosine", 2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2), 0.2),
    ],
)
def test_warm_up_then_decay(schedule, middle, end):
    config = TrainingConfig(lr=2.0, warmup_steps=10, schedule=schedule, final_lr=0.1)
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(middle)
    assert rates[110] == pytest.approx(end)
    assert learning_rate(config, 500, 110) == pytest.approx(end)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_only_matrices_are_decayed(optimizer):
    model = nn.Linear(3, 2)
    config = TrainingConfig(optimizer=optimizer, weight_decay=0.5, warmup_steps=0, lr=0.1)
    made = make_optimizer(model, config)
    decayed = {
        id(p): group["weight_decay"] for group in made.dense.param_groups for p in group["params"]
    }
    assert decayed == {id(model.weight): 0.5, id(model.bias): 0.0}


def test_bias_of_time_by_head_is_not_decayed():
    """It is a matrix, but 0 is no better a value of it than another."""
    context = TowerContext(num_users=3, num_items=9, max_length=4, has_times=True)
    config = {"dim": 8, "num_heads": 2, "time_bias": True, "input_items": "separate"}
    model = TOWERS["causal_transformer"].Config(**config).build(context)
    made = make_optimizer(model, TrainingConfig(weight_decay=0.5))
    decay = {
        id(p): group["weight_decay"] for group in made.dense.param_groups for p in group["params"]
    }
    assert model.time_bias.ndim == 2
    assert decay.keys() == {id(p) for p in model.parameters()}
    assert {name for name, p in model.named_parameters() if p.ndim > 1 and not decay[id(p)]} == {
        "time_bias"
    }


def test_adamw_shrinks_by_the_rate_alone():
    weight = nn.Parameter(torch.ones(2, 2))
    model = nn.Module()
    model.weight = weight
    made = make_optimizer(model, TrainingConfig(weight_decay=0.5, lr=0.1))
    weight.grad = torch.zeros(2, 2)
    made.step(0.1)
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))


class TableAndLinear(nn.Module):
    """A table and a linear layer."""

    def __init__(self, rows=5):
        super().__init__()
        torch.manual_seed(0)
        self.table = RowTable(rows, 3)
        self.out = nn.Linear(3, 2)

    def loss(self, ids):
        return self.out(self.table(torch.tensor(ids))).square().sum() * 100


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded as on an accelerator"])
def test_clipping_treats_sparse_gradients_as_dense_ones(padded, monkeypatch):
    if padded:
        monkeypatch.setattr(row_optimizer, "_distinct", row_optimizer._padded_distinct)
    ids = [4, 1, 1, 4, 4]
    dense, by_row = TableAndLinear(), TableAndLinear()
    dense.loss(ids).backward()
    norm = torch.cat([p.grad.flatten() for p in dense.parameters()]).norm()
    optimizer = make_optimizer(by_row, TrainingConfig(tables="row_adagrad"))
    by_row.loss(ids).backward()
    seen = []
    optimizer.rows.step = lambda: seen.extend(optimizer.rows.gradients())
    torch.testing.assert_close(optimizer.step(0.1, 0.5), norm)
    assert norm > 0.5
    (gradient,) = seen
    assert gradient.ids.tolist() == ([1, 4, 1, 1, 1] if padded else [1, 4])
    assert not gradient.rows[2:].any()
    torch.testing.assert_close(gradient.rows[:2], dense.table.weight.grad[[1, 4]] * 0.5 / norm)
    torch.testing.assert_close(by_row.out.weight.grad, dense.out.weight.grad * 0.5 / norm)


def test_tables_have_their_own_learning_rate():
    optimizer = make_optimizer(
        TableAndLinear(), TrainingConfig(lr=0.1, tables="row_adam", table_lr=0.4)
    )
    optimizer.step(0.05)
    assert optimizer.lr == optimizer.dense.param_groups[0]["lr"] == 0.05
    assert optimizer.rows.param_groups[0]["lr"] == pytest.approx(0.2)


def test_other_parameters_train_as_without_row_tables():
    ids = [0, 3, 3]
    one, other = TableAndLinear(), TableAndLinear()
    for model, tables in ((one, "dense"), (other, "row_adam")):
        optimizer = make_optimizer(model, TrainingConfig(tables=tables))
        model.loss(ids).backward()
        optimizer.step(0.1)
    assert torch.equal(one.out.weight, other.out.weight)
    assert torch.equal(one.out.bias, other.out.bias)
    assert not torch.equal(one.table.weight, other.table.weight)


def test_model_with_tables_only_needs_no_dense_optimizer():
    model = nn.ModuleList([RowTable(4, 2)])
    optimizer = make_optimizer(model, TrainingConfig(tables="row_adam", table_lr=0.5))
    assert optimizer.dense is None
    model[0](torch.tensor([1])).sum().backward()
    optimizer.step(0.25)
    assert optimizer.lr == 0.25


def test_model_without_tables_is_refused():
    with pytest.raises(ConfigError, match="no table of users or items"):
        make_optimizer(nn.Linear(2, 2), TrainingConfig(tables="row_adam"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"table_lr": 0.1}, "table_lr needs tables"),
        ({"table_dtype": "bfloat16"}, "table_dtype needs tables"),
        ({"tables": "sharded_row_adam", "average": 0.9}, "cannot be combined"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TrainingConfig(**settings)


@pytest.mark.parametrize("reads_every_row", [False, True])
def test_large_dense_table_takes_the_steps_of_a_plain_embedding(reads_every_row):
    torch.manual_seed(0)
    table = RowTable(SPARSE_ROWS, 3)
    plain = nn.Embedding.from_pretrained(table.weight.detach().clone(), freeze=False)
    config = TrainingConfig(weight_decay=0.1)
    optimizer = make_optimizer(table, config)
    adam = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1, betas=config.betas)
    for step in range(3):
        first, second = torch.randint(50, (2, 40)) + step
        directions = torch.randn(2, 40, 3)
        for module in (table, plain):
            module.zero_grad()
            read = [module(first), module(second)]
            loss = sum((v * d).sum() for v, d in zip(read, directions, strict=True))
            (loss + module.weight[:60].sin().sum() if reads_every_row else loss).backward()
        assert table.weight.grad.is_sparse != reads_every_row
        expected_norm = nn.utils.clip_grad_norm_(plain.parameters(), 2.0)
        adam.step()
        norm = optimizer.step(0.01, clip_norm=2.0)
        assert float(norm) == pytest.approx(float(expected_norm), rel=1e-6)
        torch.testing.assert_close(table.weight.grad, plain.weight.grad)
        torch.testing.assert_close(table.weight, plain.weight)


def test_small_dense_table_keeps_dense_gradients():
    table = RowTable(SPARSE_ROWS - 1, 3)
    make_optimizer(table, TrainingConfig())
    table(torch.tensor([1])).sum().backward()
    assert not table.weight.grad.is_sparse
