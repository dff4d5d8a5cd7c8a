"""What every registered tower, and the model of any two, must do."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

import candid.towers
from candid.batches import Queries, pack_histories
from candid.errors import ConfigError, UnknownNameError
from candid.features import FeatureTable, Numbers
from candid.towers import TOWERS, ItemTower, ModelConfig, QueryTower, TowerConfig, TowerContext

NUM_USERS, NUM_ITEMS, MAX_LENGTH = 7, 11, 5
PLAIN = TowerContext(NUM_USERS, NUM_ITEMS, MAX_LENGTH)


def queries_of(*histories, rows=slice(None)):
    """Queries of users 0, 1, …, each with a moment of its own; ``rows`` of them."""
    chosen = list(enumerate(histories))[rows]
    lengths = np.array([len(history) for _, history in chosen])
    items = np.concatenate([np.array(history, dtype=np.int64) for _, history in chosen])
    users = np.array([user for user, _ in chosen], dtype=np.int64)
    moments = {"gap": Numbers(torch.from_numpy(np.stack([users % 3, users], axis=1)).float())}
    return pack_histories(users, items, lengths, context=moments)


@pytest.fixture
def context(table_of):
    return TowerContext(
        NUM_USERS,
        NUM_ITEMS,
        MAX_LENGTH,
        item_features=table_of(NUM_ITEMS),
        user_features=table_of(NUM_USERS),
        context_features=FeatureTable({}, {}, {"gap": Numbers(torch.zeros(0, 2))}),
        item_is_trained=torch.arange(NUM_ITEMS) != 3,
    )


SETTINGS = {"joined": {"towers": ["user_features", {"type": "user_embedding", "dim": 3}]}}
"""What has no default."""


def build(name, context, item_tower="item_embedding") -> Any:
    items: Any = TOWERS[item_tower].Config(dim=8).build(context)
    torch.manual_seed(0)
    settings = SETTINGS.get(name, {}) | {"dim": 8}
    return TOWERS[name].Config(**settings).build(replace(context, item_tower=items)).eval()


@pytest.mark.parametrize("item_tower", ["item_embedding", "item_features"])
@pytest.mark.parametrize("name", sorted(TOWERS))
def test_every_tower(name, item_tower, context):
    tower = build(name, context, item_tower)
    if isinstance(tower, ItemTower):
        ids = torch.tensor([3, 0, 3, 10])
        vectors = tower(ids)
        assert vectors.shape == (4, 8)
        assert tower.catalog().shape == (NUM_ITEMS, 8)
        torch.testing.assert_close(vectors, tower.catalog()[ids])
    else:
        vectors = tower(queries_of([1, 2, 3], [4], [5, 6]))
        assert vectors.shape == (3, 8)
        alone = torch.cat([tower(one) for one in one_by_one([1, 2, 3], [4], [5, 6])])
        torch.testing.assert_close(vectors, alone)
    assert vectors.dtype == torch.float32
    vectors.sum().backward()
    touched = [p for p in tower.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert touched


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_every_tower_comes_back_from_its_weights(name, context):
    tower, other = build(name, context), build(name, context)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    other.load_state_dict(tower.state_dict())
    if isinstance(tower, ItemTower):
        assert torch.equal(other.catalog(), tower.catalog())
    else:
        queries = queries_of([1, 2, 3], [4], [5, 6])
        assert torch.equal(other(queries), tower(queries))


def one_by_one(*histories):
    for user in range(len(histories)):
        yield queries_of(*histories, rows=slice(user, user + 1))


def test_cosine_and_temperature_are_folded_into_the_vectors():
    model = ModelConfig(similarity="cosine", temperature=0.1).build(PLAIN)
    model.eval()
    items = model.encode_catalog()
    torch.testing.assert_close(items.norm(dim=1), torch.ones(NUM_ITEMS))
    queries = model.encode_queries(queries_of([1, 2], [3]))
    torch.testing.assert_close(queries.norm(dim=1), torch.full((2,), 10.0))
    torch.testing.assert_close(model.encode_items(torch.tensor([4])), items[[4]])


@pytest.mark.parametrize("learn", [True, False])
def test_the_temperature_learns_only_when_asked(learn):
    model = ModelConfig(temperature=0.5, learn_temperature=learn).build(PLAIN)
    (model.encode_queries(queries_of([1])) ** 2).sum().backward()
    learned = dict(model.named_parameters()).get("log_temperature")
    assert (learned is not None and learned.grad is not None) == learn
    assert "log_temperature" in model.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"query_tower": {"type": "user_embedding", "dim": 4}},
            "model.query_tower has dim 4 and model.item_tower 64",
        ),
        ({"query_tower": "item_embedding"}, "model.query_tower must be a tower over users"),
        ({"item_tower": "user_embedding"}, "model.item_tower must be a tower over items"),
    ],
)
def test_towers_that_do_not_fit_are_refused(settings, message):
    config = ModelConfig.model_validate(settings)
    with pytest.raises(ConfigError, match=message):
        config.build(PLAIN)


def test_an_unknown_tower_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'user_embedding'"):
        ModelConfig.model_validate({"query_tower": "user_embeding"})


class MeanOfHistory(QueryTower):
    """The mean of the items' vectors: a whole new tower in a few lines."""

    needs_history = True

    class Config(TowerConfig):
        dim: int = Field(8, description="width")

        def build(self, context: TowerContext) -> "MeanOfHistory":
            return MeanOfHistory(context.num_items, self.dim)

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.table = nn.EmbeddingBag(num_items, dim, mode="mean")

    def forward(self, queries: Queries) -> Tensor:
        return self.table(queries.history.item_ids, queries.history.offsets[:-1])


def test_a_new_tower_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setitem(candid.towers.TOWERS, "mean_of_history", MeanOfHistory)
    config = ModelConfig.model_validate(
        {
            "query_tower": {"type": "mean_of_history", "dim": 6},
            "item_tower": {"type": "item_embedding", "dim": 6},
        }
    )
    model = config.build(PLAIN)
    assert model.encode_queries(queries_of([1, 2], [3])).shape == (2, 6)
    assert config.model_dump()["query_tower"] == {"type": "mean_of_history", "dim": 6}
