"""The distribution of dropout, by counting."""

import pytest
import torch

from candid.errors import ConfigError
from candid.towers.dropout import Dropout


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
def test_values_are_dropped_with_probability_p_and_the_mean_stays(p):
    torch.manual_seed(0)
    values = torch.ones(999, 1001)
    out = Dropout(p)(values)
    rate = float((out == 0).float().mean())
    assert rate == pytest.approx(p, abs=5 * (p * (1 - p) / values.numel()) ** 0.5 + 2**-16)
    rest = out[out != 0]
    torch.testing.assert_close(rest, torch.full_like(rest, 1 / (1 - p)), rtol=1e-3, atol=0)


def test_values_from_one_random_number_are_independent():
    torch.manual_seed(0)
    dropped = (Dropout(0.3)(torch.ones(400_000)) == 0).float().view(-1, 4)
    pairs = torch.corrcoef(dropped.T) - torch.eye(4)
    assert float(pairs.abs().max()) < 5 / 100_000**0.5


def test_gradient_is_zero_where_the_value_is():
    torch.manual_seed(0)
    values = torch.ones(100, requires_grad=True)
    out = Dropout(0.5)(values)
    out.sum().backward()
    torch.testing.assert_close(values.grad, out.detach())


def test_dropout_is_the_identity_when_off():
    values = torch.ones(7, dtype=torch.bfloat16)
    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0)(values) is values
    assert Dropout(0.5)(values).dtype == torch.bfloat16


def test_seed_determines_the_mask():
    outs = []
    for _ in range(2):
        torch.manual_seed(3)
        outs.append(Dropout(0.5)(torch.ones(50)))
    assert torch.equal(*outs)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_invalid_probability_is_refused(p):
    with pytest.raises(ConfigError, match="dropout"):
        Dropout(p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("p", [0.001, 0.2, 0.9])
def test_values_and_gradients_equal_those_of_16_bits_for_each_value(p, dtype):
    values = torch.randn(37, 9).to(dtype).requires_grad_()
    dropout = Dropout(p)
    dropout.noise_seed = 5
    levels = dropout.levels(37, 9, values.device).long() + 32768
    stays = levels >= round(p * 65536)
    scale = torch.where(stays, 65536 / (65536 - round(p * 65536)), 0.0).float()
    out = dropout(values)
    out.sum().backward()
    wide = values.detach() if dtype == torch.float64 else values.detach().float()
    assert torch.equal(out, (wide * scale).to(dtype))
    assert torch.equal(values.grad, scale.to(dtype))


def test_no_rows_stay_no_rows():
    assert Dropout(0.5)(torch.ones(0, 4)).shape == (0, 4)
