"""Several query towers in one."""

import numpy as np
import pytest
import torch

from candid.batches import Queries, pack_histories
from candid.errors import ConfigError
from candid.towers import Joined, ModelConfig, TowerContext, UserEmbedding

NUM_USERS, NUM_ITEMS = 6, 9
BOTH = [
    {"type": "causal_transformer", "dim": 8},
    {"type": "user_features", "dim": 4, "field_dim": 4},
]


def queries():
    return pack_histories(np.array([3, 1]), np.array([1, 2, 5]), np.array([2, 1]))


def context(table_of):
    return TowerContext(
        NUM_USERS, NUM_ITEMS, 5, item_features=table_of(9), user_features=table_of(6)
    )


def model_of(table_of, item_tower, **settings):
    config = ModelConfig.model_validate(
        {"query_tower": {"type": "joined", "dim": 8} | settings, "item_tower": item_tower}
    )
    torch.manual_seed(0)
    return config.build(context(table_of)).eval()


ITEM_TOWERS = [{"type": "item_embedding", "dim": 8}, {"type": "item_features", "dim": 8}]


@pytest.mark.parametrize("item_tower", ITEM_TOWERS, ids=lambda tower: tower["type"])
def test_joined_combines_history_and_user_features(table_of, item_tower):
    model = model_of(table_of, item_tower, towers=BOTH)
    query = queries()
    vectors = model.encode_queries(query)
    assert model.needs_history
    tower = model.query_tower
    history, user = (part(query) for part in tower.towers)
    weight, bias = tower.perceptron.linear.weight, tower.perceptron.linear.bias
    torch.testing.assert_close(vectors, history @ weight[:, :8].T + user @ weight[:, 8:].T + bias)
    (vectors * torch.randn(2, 8)).sum().backward()
    assert weight.grad.any(0).all()
    assert tower.towers[1].encoder.perceptron.linear.weight.grad.any()
    assert tower.towers[0].positions.weight.grad.any()


def test_towers_of_the_output_width_are_initialised_to_their_sum():
    torch.manual_seed(0)
    parts = [UserEmbedding(NUM_USERS, dim=dim) for dim in (8, 8)]
    joined = Joined(parts, dim=8, hidden=(), activation="gelu", dropout=0.0)
    query = Queries(user_ids=torch.tensor([3, 3, 0]))
    total = parts[0](query) + parts[1](query)
    torch.testing.assert_close(joined(query), total + joined.perceptron.linear.bias)
    assert not joined.needs_history
    assert joined.needs_user == any(tower.needs_user for tower in joined.towers)


def test_hidden_layers_combine_towers(table_of):
    model = model_of(table_of, ITEM_TOWERS[0], towers=BOTH, hidden=[16], dropout=0.1)
    assert model.encode_queries(queries()).shape == (2, 8)
    assert model.query_tower.perceptron.deep[0].weight.shape == (16, 12)


def test_config_survives_a_round_trip():
    table = {"query_tower": {"type": "joined", "towers": BOTH}}
    written = ModelConfig.model_validate(table).model_dump(exclude_unset=True)
    assert [dict(tower) for tower in written["query_tower"]["towers"]] == BOTH


def test_wrong_towers_are_refused(table_of):
    with pytest.raises(ConfigError, match=r"query_tower\.towers must be query towers"):
        model_of(table_of, ITEM_TOWERS[0], towers=["item_embedding"])
    with pytest.raises(ConfigError, match="name at least one query tower"):
        Joined([], dim=4, hidden=(), activation="gelu", dropout=0.0)


def test_hidden_layer_of_width_zero_is_refused():
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        Joined.Config(towers=["user_embedding"], hidden=[16, 0])
