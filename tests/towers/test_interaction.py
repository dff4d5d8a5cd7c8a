"""Interactions against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from candid.errors import ConfigError
from candid.towers.interaction import CrossLayers, FieldAttention, FieldMixer

LAYERS = {"cross_layers": 2, "attention_layers": 1, "attention_heads": 2}


def test_one_cross_layer_by_hand():
    cross = CrossLayers(2, num_layers=1)
    with torch.no_grad():
        cross.layers[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        cross.layers[0].bias.copy_(torch.tensor([0.5, -0.5]))
    # W x = (5, 11); + b = (5.5, 10.5); x ⊙ that = (5.5, 21); + x.
    assert torch.equal(cross(torch.tensor([[1.0, 2.0]])), torch.tensor([[6.5, 23.0]]))


def test_later_cross_layers_multiply_by_the_first_input():
    torch.manual_seed(0)
    cross = CrossLayers(4, num_layers=3).double()
    x0 = torch.randn(5, 4, dtype=torch.float64)
    rows = []
    for row in x0:
        x = row
        for layer in cross.layers:
            x = torch.stack(
                [row[i] * (layer.weight[i] @ x + layer.bias[i]) + x[i] for i in range(4)]
            )
        rows.append(x)
    torch.testing.assert_close(cross(x0), torch.stack(rows))


def test_attention_equals_one_row_and_head_at_a_time():
    torch.manual_seed(0)
    attention = FieldAttention(6, num_layers=2, num_heads=2).double()
    fields = torch.randn(4, 3, 6, dtype=torch.float64)
    rows = []
    for row in fields:
        x = row
        for layer in attention.layers:
            q, k, v, itself = (x @ w.T for w in layer.weight.split(6))
            heads = []
            for part in (slice(0, 3), slice(3, 6)):
                weights = (q[:, part] @ k[:, part].T / math.sqrt(3)).exp()
                heads.append(weights / weights.sum(1, keepdim=True) @ v[:, part])
            x = torch.cat(heads, dim=1).add(itself).clamp(min=0)
        rows.append(x)
    # Scores are computed in float32.
    torch.testing.assert_close(attention(fields), torch.stack(rows), rtol=1e-5, atol=1e-6)


def test_attention_is_equivariant_to_the_order_of_fields():
    torch.manual_seed(0)
    attention = FieldAttention(4, num_layers=1, num_heads=2)
    fields = torch.randn(2, 3, 4)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(attention(fields[:, order]), attention(fields)[:, order])


@pytest.mark.parametrize("interaction", ["none", "cross", "attention"])
def test_mixer_normalises_the_row_before_the_interaction(interaction):
    torch.manual_seed(0)
    mixer = FieldMixer(3, 4, interaction=interaction, **LAYERS)
    fields = 0.02 * torch.randn(5, 3, 4)
    row = F.layer_norm(fields.flatten(1), (12,))
    expected = {
        "none": lambda: row,
        "cross": lambda: mixer.cross(row),
        "attention": lambda: mixer.attention(row.view(5, 3, 4)).flatten(1),
    }[interaction]()
    torch.testing.assert_close(mixer(fields), expected)
    assert mixer.width == 12


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="attention_heads must divide field_dim 4, got 3"):
        FieldMixer(2, 4, interaction="attention", **LAYERS | {"attention_heads": 3})
