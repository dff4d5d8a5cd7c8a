"""Row tables of the towers, and their gradients when training by row."""

import pytest
import torch
from torch import nn

from candid.features import Bags, FeatureTable
from candid.towers import (
    CausalTransformer,
    ItemEmbedding,
    ItemFeatures,
    RowTable,
    TowerContext,
    UserEmbedding,
    row_tables,
)
from candid.towers.embedding import embedding_table
from candid.towers.fields import MANY_CODES, BagField, code_table


def names(module):
    return [name for name, _ in row_tables(module)]


def transformer(items=None):
    return CausalTransformer(
        num_items=9,
        dim=4,
        num_blocks=1,
        num_heads=1,
        max_length=5,
        hidden=None,
        feed_forward="gelu",
        gated_residual=False,
        dropout=0.0,
        attention_dropout=0.0,
        positions="learned",
        num_event_types=2,
        input_items=items,
    )


def test_row_tables_of_the_towers(values_of):
    assert names(ItemEmbedding(9, dim=4)) == names(UserEmbedding(9, dim=4)) == ["embedding"]
    assert names(transformer()) == ["items"]
    context = TowerContext(1, 9, 5, item_features=FeatureTable({}, {}, values_of(9)))
    features = ItemFeatures.Config(dim=4, id_mode="residual").build(context)
    assert names(features) == ["encoder.ids"]


def test_shared_table_occurs_once():
    items = ItemEmbedding(9, dim=4)
    both = nn.ModuleList([transformer(items.embedding), items])
    assert names(both) == ["0.items"]


def test_large_code_tables_are_row_tables():
    assert not isinstance(code_table(MANY_CODES - 1, 2), RowTable)
    assert isinstance(code_table(MANY_CODES, 2), RowTable)


def test_initial_values_equal_those_of_an_embedding_table():
    torch.manual_seed(3)
    table = RowTable(7, 5)
    torch.manual_seed(3)
    assert torch.equal(table.weight, embedding_table(7, 5).weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_gradient_equals_the_dense_one(dtype):
    table = RowTable(7, 5)
    ids = torch.tensor([[1, 6], [6, 6]])
    table.weight.data = table.weight.data.bfloat16().float()
    table(ids).pow(2).sum().backward()
    dense = table.weight.grad
    assert not dense.is_sparse
    assert table.every_row() is table.weight
    table.weight.grad = None
    table.train_by_row(dtype)
    vectors = table(ids)
    assert vectors.dtype == table.every_row().dtype == torch.float32
    vectors.pow(2).sum().backward()
    gradient = table.weight.grad
    assert gradient.is_sparse
    assert gradient._nnz() == 4
    tolerance = {"rtol": 1e-2, "atol": 1e-6} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(gradient.to_dense().float(), dense, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bag_field_has_a_sparse_gradient(dtype):
    field = BagField(MANY_CODES, dim=4, unknown_rate=0.0)
    bags = Bags(torch.tensor([5, 8, 8]), torch.tensor([0, 2, 2, 3]), MANY_CODES)
    before = field(bags)
    field.table.train_by_row(dtype)
    vectors = field(bags)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, before, rtol=1e-2, atol=1e-3)
    vectors.sum().backward()
    assert sorted(field.table.weight.grad._indices()[0].tolist()) == [5, 8, 8]
