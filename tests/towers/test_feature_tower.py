"""The feature towers of both sides, and the ranking of new items."""

import dataclasses

import pytest
import torch

from candid.batches import Queries
from candid.errors import ConfigError
from candid.features import Codes, FeatureTable
from candid.losses import full_softmax
from candid.towers import ItemFeatures, ModelConfig, TowerContext, UserEmbedding, UserFeatures
from candid.training.checkpoint import Checkpoint, load_model, model_tensors

NEUTRAL = {
    "field_dim": 32,
    "unknown_rate": 0.0,
    "interaction": "none",
    "cross_layers": 2,
    "attention_layers": 1,
    "attention_heads": 2,
    "hidden": (128,),
    "activation": "gelu",
    "dropout": 0.0,
    "id_mode": "residual",
    "id_dropout": 0.0,
}
"""Settings without randomness in training."""

CONTEXT = TowerContext(num_users=6, num_items=9, max_length=5)


def test_config_builds_the_encoders(table_of):
    is_trained = torch.arange(9) > 2
    context = dataclasses.replace(
        CONTEXT,
        item_features=table_of(9),
        item_is_trained=is_trained,
        user_features=table_of(6),
        user_is_trained=torch.arange(6) > 4,
    )
    items = ItemFeatures.Config(
        dim=5, field_dim=6, id_mode="field", id_dropout=0.3, interaction="cross", cross_layers=3
    ).build(context)
    assert items.dim == 5
    assert items.num_items == 9
    assert items.encoder.hidden_ids.rate == 0.3
    assert len(items.encoder.mixer.cross.layers) == 3
    assert items.encoder.mixer.width == 5 * 6  # four features and the id
    assert items.encoder.id_codes.tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 9, 0]
    users = UserFeatures.Config(dim=5, interaction="attention", attention_heads=4).build(context)
    assert users.encoder.mixer.attention.num_heads == 4
    assert users.encoder.id_codes.tolist() == [0, 0, 0, 0, 0, 6, 0]
    assert not users.needs_history


def test_unknown_user_has_a_vector(table_of):
    tower = UserFeatures(table_of(6).values, dim=4, **NEUTRAL).eval()
    vectors = tower(Queries(user_ids=torch.tensor([2, -1, 2, 5])))
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.equal(vectors[0], vectors[1])
    assert vectors.isfinite().all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"item_tower": "item_features"}, r"'item_features' has no features.*\[features\.item\."),
        ({"query_tower": "user_features"}, r"'user_features' has no features.*\[features\.user\."),
        (
            {"query_tower": {"type": "joined", "towers": ["user_features"]}},
            r"\[features\.user\.NAME\] for each to the recipe",
        ),
    ],
)
def test_tower_without_features_is_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.model_validate(model).build(CONTEXT)


def test_features_of_another_dataset_are_refused(table_of):
    context = dataclasses.replace(CONTEXT, item_features=table_of(8))
    with pytest.raises(ConfigError, match="has 8 rows, but the dataset has 9 items"):
        ItemFeatures.Config().build(context)


def test_checkpoint_restores_a_tied_model(table_of, tmp_path):
    context = dataclasses.replace(CONTEXT, item_features=table_of(9))
    config = ModelConfig.model_validate({"item_tower": "item_features"})
    torch.manual_seed(0)
    model, fresh = config.build(context).eval(), config.build(context).eval()
    tensors = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    assert not any("id_codes" in name or "stored" in name for name in tensors)
    assert len(tensors) == len(list(model.parameters())) + 1  # plus the temperature
    load_model(fresh, Checkpoint(tensors, {}), tmp_path)
    assert torch.equal(fresh.encode_catalog(), model.encode_catalog())


def test_new_items_are_encoded_as_items_of_the_catalog(table_of):
    context = dataclasses.replace(
        CONTEXT, item_features=table_of(9), item_is_trained=torch.zeros(9, dtype=torch.bool)
    )
    config = ModelConfig.model_validate({"item_tower": "item_features", "similarity": "cosine"})
    model = config.build(context).eval()
    new = model.encode_item_values(table_of(9).values)
    torch.testing.assert_close(new, model.encode_catalog())
    torch.testing.assert_close(new.norm(dim=1), torch.ones(9))
    with pytest.raises(ConfigError, match="has no features of items"):
        ModelConfig().build(CONTEXT).encode_item_values(table_of(9).values)


@pytest.mark.parametrize("mode", ["none", "field", "residual", "override"])
def test_cold_item_is_ranked_by_its_features(mode):
    """Users prefer one pair of (colour, shape); one item of every pair is untrained."""
    num_colours, num_shapes, copies = 4, 3, 5
    pairs = torch.cartesian_prod(torch.arange(num_colours), torch.arange(num_shapes))
    items = pairs.repeat_interleave(copies, dim=0)
    values = {
        "colour": Codes(items[:, :1] + 1, num_colours + 1),
        "shape": Codes(items[:, 1:] + 1, num_shapes + 1),
    }
    likes = torch.cartesian_prod(torch.arange(num_colours), torch.arange(num_shapes))
    # A user likes a colour and a shape; an item with both is best.
    relevance = (items[None] == likes[:, None]).sum(-1).float() * 3
    is_cold = torch.arange(len(items)) % copies == 0
    torch.manual_seed(0)
    settings = NEUTRAL | {"id_mode": mode, "id_dropout": 0.2, "hidden": (16,)}
    tower = ItemFeatures(values, ~is_cold, dim=8, **settings)
    users = UserEmbedding(len(likes), dim=8)
    optimizer = torch.optim.Adam([*tower.parameters(), *users.parameters()], lr=0.02)
    user_ids = torch.arange(len(likes))
    truth = relevance.masked_fill(is_cold, -torch.inf).softmax(1)
    for _ in range(80):
        positives = torch.multinomial(truth, 8, replacement=True)
        query = users(Queries(user_ids=user_ids.repeat_interleave(8)))
        loss = full_softmax(query, tower.catalog(), positives.flatten()).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tower.eval()
    scores = users(Queries(user_ids=user_ids)) @ tower.catalog()[is_cold].T
    assert torch.equal(scores.argmax(1), relevance[:, is_cold].argmax(1))
    new = tower.encode_values(
        {name: value.take(is_cold.nonzero()[:, 0]) for name, value in values.items()}
    )
    torch.testing.assert_close(new, tower.catalog()[is_cold])


def test_tower_can_be_built_from_a_table_alone():
    table = FeatureTable({}, {}, {"type": Codes(torch.tensor([[1], [2]]), 3)})
    assert ItemFeatures(table.values, dim=3, **NEUTRAL).catalog().shape == (2, 3)
