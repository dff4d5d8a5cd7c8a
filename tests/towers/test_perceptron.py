"""The sum of a linear map and a perceptron."""

import pytest
import torch

from candid.towers.perceptron import Perceptron


def test_perceptron_without_hidden_layers_is_linear():
    torch.manual_seed(0)
    perceptron = Perceptron(3, dim=2, hidden=(), activation="gelu", dropout=0.0)
    x, y = torch.randn(2, 4, 3)
    torch.testing.assert_close(
        perceptron(x + y) + perceptron(torch.zeros(4, 3)), perceptron(x) + perceptron(y)
    )


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_output_is_the_sum_of_both_paths(activation):
    torch.manual_seed(0)
    perceptron = Perceptron(3, dim=2, hidden=(5, 4), activation=activation, dropout=0.0)
    x = torch.randn(6, 3)
    act = {"gelu": lambda z: z * torch.special.ndtr(z), "relu": lambda z: z * (z > 0)}[activation]
    first, _, _, second, _, _, last = perceptron.deep
    hidden = act(act(x @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    linear = x @ perceptron.linear.weight.T + perceptron.linear.bias
    torch.testing.assert_close(perceptron(x), linear + hidden @ last.weight.T)


def test_dropout_acts_in_training_only():
    perceptron = Perceptron(3, dim=2, hidden=(50,), activation="gelu", dropout=0.5).eval()
    x = torch.randn(6, 3)
    assert torch.equal(perceptron(x), perceptron(x))
    perceptron.train()
    assert not torch.equal(perceptron(x), perceptron(x))
