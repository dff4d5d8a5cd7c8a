"""Random numbers by row: the generator, and that a part of a batch has those of the whole."""

import pytest
import torch
from torch import nn

from candid.towers.dropout import Dropout
from candid.towers.row_noise import HiddenValues, RowNoise, rows_of, seed_noise

CPU = torch.device("cpu")
MASK = (1 << 64) - 1


def splitmix64(state):
    """Return one output of SplitMix64, in Python integers as published."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_generator_is_splitmix64():
    # The first outputs of the published generator with state 1234567.
    outputs = [splitmix64(1234567 + 0x9E3779B97F4A7C15 * n) for n in (1, 2)]
    assert outputs == [6457827717110365317, 3203168211198807973]
    noise = RowNoise()
    noise.noise_seed = 77
    with rows_of(torch.tensor([5, -3])):
        levels = noise.levels(2, 7, CPU)
    for row, key in zip(levels, (5, -3), strict=True):
        state = splitmix64(key * 0x9E3779B97F4A7C15 + 77)
        numbers = [splitmix64(state + 0x9E3779B97F4A7C15 * n) for n in (1, 2)]
        parts = [number >> shift & 0xFFFF for number in numbers for shift in (0, 16, 32, 48)]
        assert [part - 0x10000 if part >> 15 else part for part in parts][:7] == row.tolist()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_rows_and_columns_are_independent(p):
    torch.manual_seed(0)
    kept = (Dropout(p)(torch.ones(1 << 15, 64)) != 0).double()
    bound = 5 / len(kept) ** 0.5
    assert float((torch.corrcoef(kept.T) - torch.eye(64)).abs().max()) < bound
    rows = kept[:1000] - kept[:1000].mean()
    products = (rows @ rows.T / (64 * p * (1 - p))).fill_diagonal_(0)
    assert abs(float(products.mean())) < 5 / (64 * 1000**2) ** 0.5
    assert float(products.var()) == pytest.approx(1 / 64, rel=0.05)
    assert float(kept.sum(1).var()) == pytest.approx(64 * p * (1 - p), rel=0.05)


def test_part_of_the_rows_has_the_numbers_of_the_whole():
    noise = RowNoise()
    noise.noise_seed = 3
    whole = noise.levels(10, 6, CPU)
    rows = torch.tensor([7, 2, 2, 9])
    with rows_of(rows):
        assert torch.equal(noise.levels(4, 6, CPU), whole[rows])
    assert torch.equal(noise.levels(10, 3, CPU), whole[:, :3])


def test_each_module_and_each_seed_has_its_own_numbers():
    model = nn.Sequential(Dropout(0.5), nn.Linear(2, 2), Dropout(0.5))
    seed_noise(model, 1)
    first, second = (model[place].levels(50, 4, CPU) for place in (0, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, model[0].levels(50, 4, CPU))
    seed_noise(model, 2)
    assert not torch.equal(first, model[0].levels(50, 4, CPU))
    seed_noise(model, 1)
    assert torch.equal(first, model[0].levels(50, 4, CPU))


def test_without_a_seed_each_call_differs_and_follows_the_global_generator():
    noise = RowNoise()
    torch.manual_seed(4)
    first, second = noise.levels(9, 4, CPU), noise.levels(9, 4, CPU)
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(first, noise.levels(9, 4, CPU))


def test_wrong_number_of_keys_is_an_error():
    with rows_of(torch.arange(3)), pytest.raises(ValueError, match="4 rows have 3 keys"):
        RowNoise().levels(4, 1, CPU)


def test_hashes_of_a_value_are_hidden_together():
    torch.manual_seed(0)
    ids = torch.ones(1000, 3).long()
    hidden = HiddenValues(0.5)
    assert set(hidden.replace(ids).sum(1).tolist()) == {0, 3}
    assert ids.all()
    assert not HiddenValues(1.0).replace(ids).any()
    assert hidden.eval().replace(ids) is ids
    assert HiddenValues(0.0).replace(ids) is ids
    share = 1 - HiddenValues(0.2).replace(torch.ones(20_000)).mean()
    assert float(share) == pytest.approx(0.2, abs=5 * (0.16 / 20_000) ** 0.5)
