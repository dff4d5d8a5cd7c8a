"""Rotary positions."""

import math

import pytest
import torch

from candid.batches import History, Queries
from candid.errors import ConfigError
from candid.towers import CausalTransformer
from candid.towers.rotary import rotate, rotation_factors


def test_each_pair_is_rotated_by_position_times_angle():
    qkv = torch.randn(4, 3 * 12, dtype=torch.float64)
    positions = torch.tensor([0, 1, 7, 199])
    rotated = rotate(qkv, rotation_factors(positions, 6), 2).view(4, 3, 2, 3, 2)
    for t, position in enumerate(positions.tolist()):
        for part, head, pair in [(0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 2), (2, 1, 1)]:
            x, y = qkv.view(4, 3, 2, 3, 2)[t, part, head, pair].tolist()
            angle = 0.0 if part == 2 else position * 10_000 ** (-2 * pair / 6)
            expected = [
                x * math.cos(angle) - y * math.sin(angle),
                x * math.sin(angle) + y * math.cos(angle),
            ]
            assert rotated[t, part, head, pair].tolist() == pytest.approx(expected, abs=1e-4)


def test_products_depend_on_the_difference_of_positions():
    qkv = torch.randn(2, 3 * 8)

    def product(first, second):
        rotated = rotate(qkv, rotation_factors(torch.tensor([first, second]), 8), 1).view(2, 3, 8)
        return float(rotated[0, 0] @ rotated[1, 1])

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert product(9, 4) != pytest.approx(product(4, 9), abs=1e-2)


def make(**settings):
    torch.manual_seed(0)
    defaults = {
        "num_items": 20,
        "dim": 8,
        "num_blocks": 2,
        "num_heads": 2,
        "max_length": 12,
        "hidden": None,
        "feed_forward": "gelu",
        "gated_residual": False,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "positions": "rotary",
    }
    return CausalTransformer(**defaults | settings).eval()


def pack(sequences):
    lengths = torch.tensor([0, *map(len, sequences)])
    ids = torch.tensor([item for sequence in sequences for item in sequence])
    history = History(ids, lengths.cumsum(0), torch.arange(len(ids)))
    return Queries(user_ids=torch.zeros(len(ids), dtype=torch.int64), history=history)


def test_packed_equals_one_sequence_at_a_time():
    tower = make()
    with torch.no_grad():  # attention is nearly uniform with the small initial weights
        for block in tower.blocks:
            block.qkv.weight.mul_(8)
    sequences = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [1], [3, 1, 4]]
    alone = torch.cat([tower(pack([sequence])) for sequence in sequences])
    torch.testing.assert_close(tower(pack(sequences)), alone)
    # The order of earlier items changes the last state, although no position has a vector.
    swapped = tower(pack([[1, 3, 4, 1, 5]]))
    assert not torch.allclose(swapped[-1], alone[4], atol=1e-3)


def test_rotary_positions_have_no_parameters():
    assert not any("positions" in name for name, _ in make().named_parameters())


def test_rotate_keeps_bfloat16():
    qkv = torch.randn(3, 12, dtype=torch.bfloat16)
    rotated = rotate(qkv, rotation_factors(torch.arange(3), 4), 1)
    assert rotated.dtype == torch.bfloat16
    exact = rotate(qkv.double(), rotation_factors(torch.arange(3), 4), 1)
    torch.testing.assert_close(rotated.double(), exact, rtol=0.02, atol=0.02)


def test_odd_width_of_heads_is_refused():
    with pytest.raises(ConfigError, match="even width of heads, got dim 9 / num_heads 3"):
        make(dim=9, num_heads=3)
