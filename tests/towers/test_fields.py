"""Field vectors against sums written out by hand."""

import pytest
import torch

from candid.errors import DataError
from candid.features import Bags, Codes, Numbers
from candid.towers.fields import FieldEncoder


def make(values, dim=3, **settings):
    torch.manual_seed(0)
    encoder = FieldEncoder(values, dim=dim, **{"unknown_rate": 0.0} | settings)
    with torch.no_grad():  # move zeros away from zero, so that a missing term changes the result
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    return encoder.eval()


def test_codes_are_the_mean_over_their_hashes():
    values = {"city": Codes(torch.tensor([[1, 2], [3, 3], [0, 1]]), 4)}
    encoder = make(values)
    table = encoder.fields[0].table.weight
    expected = torch.stack([(table[1] + table[2]) / 2, table[3], (table[0] + table[1]) / 2])
    torch.testing.assert_close(encoder(values)[:, 0], expected)


def test_bags_are_the_mean_over_their_codes_and_an_empty_bag_has_a_vector():
    values = {"genres": Bags(torch.tensor([1, 2, 2, 3]), torch.tensor([0, 3, 3, 4]), 4)}
    encoder = make(values)
    field = encoder.fields[0]
    table = field.table.weight
    expected = torch.stack([(table[1] + 2 * table[2]) / 3, field.empty, table[3]])
    torch.testing.assert_close(encoder(values)[:, 0], expected)
    encoder(values)[1].sum().backward()
    assert torch.equal(field.empty.grad, torch.ones(3))
    assert not field.table.weight.grad.any()


def test_bags_may_all_be_empty():
    values = {"genres": Bags(torch.zeros(0, dtype=torch.int64), torch.zeros(3).long(), 4)}
    encoder = make(values)
    assert torch.equal(encoder(values)[:, 0], encoder.fields[0].empty.expand(2, 3))


def test_numbers_are_mapped_affinely():
    values = {"age": Numbers(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))}
    encoder = make(values)
    linear = encoder.fields[0].linear
    columns = linear.weight.T
    expected = torch.stack([columns[0] + 2 * columns[1], -columns[1]]) + linear.bias
    torch.testing.assert_close(encoder(values)[:, 0], expected)


def test_order_of_fields_does_not_depend_on_the_order_of_values(values_of):
    values = values_of(7)
    encoder = make(values)
    fields = encoder(values)
    assert fields.shape == (7, 4, 3)
    assert fields.dtype == torch.float32
    assert torch.equal(encoder(dict(reversed(values.items()))), fields)


def test_rows_do_not_depend_on_other_rows(values_of):
    values = values_of(9)
    encoder = make(values)
    rows = torch.tensor([8, 0, 3, 3, 5])
    taken = encoder({name: value.take(rows) for name, value in values.items()})
    torch.testing.assert_close(taken, encoder(values)[rows])


def test_no_rows_give_no_vectors(values_of):
    values = values_of(4)
    empty = {name: value.take(torch.zeros(0).long()) for name, value in values.items()}
    assert make(values)(empty).shape == (0, 4, 3)


def test_unknown_values_are_initialised_to_zero(values_of):
    values = values_of(5)
    encoder = FieldEncoder(values, dim=3, unknown_rate=0.0)
    unknown = {
        "type": Codes(torch.zeros(1, 1).long(), 6),
        "a.b": Codes(torch.zeros(1, 3).long(), 9),
        "genres": Bags(torch.zeros(0).long(), torch.zeros(2).long(), 5),
    }
    without_numbers = FieldEncoder(
        {name: values[name] for name in unknown}, dim=3, unknown_rate=0.0
    )
    assert not without_numbers(unknown).any()
    deviation = torch.cat([field.table.weight[1:].flatten() for field in encoder.fields[:3]]).std()
    assert 0.01 < float(deviation.detach()) < 0.04


def test_unknown_rate_acts_in_training_only():
    numbers = Numbers(torch.tensor([[3.0, 0.0]]).repeat(2000, 1), (0.0, 1.0))
    values = {"type": Codes(torch.ones(2000, 1).long(), 2), "n": numbers}
    encoder = make(values, unknown_rate=0.25)
    table = encoder.fields[0].table.weight
    assert torch.equal(encoder(values)[:, 0], table[1].expand(2000, 3))
    encoder.train()
    types, numbers = encoder(values).unbind(1)
    is_unknown = (types == table[0]).all(1)
    assert 0.2 < float(is_unknown.float().mean()) < 0.3
    assert torch.equal(types[~is_unknown], table[1].expand(int((~is_unknown).sum()), 3))
    blank = encoder.fields[1].linear(torch.tensor([0.0, 1.0]))
    is_blank = torch.isclose(numbers, blank).all(1)
    assert 0.2 < float(is_blank.float().mean()) < 0.3
    assert not torch.equal(is_blank, is_unknown)
    types.sum().backward()
    assert encoder.fields[0].table.weight.grad[0].any()


def test_unknown_rate_replaces_single_codes_of_a_bag():
    values = {"genres": Bags(torch.ones(4000).long(), torch.tensor([0, 4000]), 2)}
    encoder = make(values, unknown_rate=0.25).train()
    table = encoder.fields[0].table.weight
    share = (encoder(values)[0, 0] - table[1]) / (table[0] - table[1])
    torch.testing.assert_close(share, share[:1].expand(3), rtol=1e-2, atol=1e-2)
    assert 0.2 < float(share[0].detach()) < 0.3


def test_missing_feature_is_named(values_of):
    values = values_of(3)
    encoder = make(values)
    del values["genres"]
    with pytest.raises(DataError, match=r"'genres', but the rows have only type, a\.b"):
        encoder(values)
