"""The learning rate by its definition, and what is decayed."""

import math

import pytest
import torch
from torch import nn

from candid.training import TrainingConfig
from candid.training.optimizer import learning_rate, make_optimizer


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
    decayed = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert decayed == {id(model.weight): 0.5, id(model.bias): 0.0}


def test_adamw_shrinks_by_the_rate_alone():
    weight = nn.Parameter(torch.ones(2, 2))
    model = nn.Module()
    model.weight = weight
    made = make_optimizer(model, TrainingConfig(weight_decay=0.5, lr=0.1))
    weight.grad = torch.zeros(2, 2)
    made.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))
