"""What every registered tower, and the model of any two, must do."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

import candid.towers
from candid.batches import Queries, pack_histories
from candid.errors import ConfigError, UnknownNameError
from candid.towers import TOWERS, ItemTower, ModelConfig, QueryTower, TowerConfig, TowerContext

NUM_USERS, NUM_ITEMS, MAX_LENGTH = 7, 11, 5


def queries_of(*histories):
    lengths = np.array([len(h) for h in histories])
    items = np.concatenate([np.array(h, dtype=np.int64) for h in histories])
    return pack_histories(np.arange(len(histories), dtype=np.int64), items, lengths)


def build(name) -> Any:
    context = TowerContext(NUM_USERS, NUM_ITEMS, MAX_LENGTH)
    items = TOWERS["item_embedding"].Config(dim=8).build(context)
    context = TowerContext(NUM_USERS, NUM_ITEMS, MAX_LENGTH, items)
    torch.manual_seed(0)
    return TOWERS[name].Config(dim=8).build(context).eval()


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_every_tower(name):
    tower = build(name)
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


def one_by_one(*histories):
    for user, history in enumerate(histories):
        yield pack_histories(
            np.array([user]), np.array(history, dtype=np.int64), np.array([len(history)])
        )


def test_cosine_and_temperature_are_folded_into_the_vectors():
    model = ModelConfig(similarity="cosine", temperature=0.1).build(NUM_USERS, NUM_ITEMS, 5)
    model.eval()
    items = model.encode_catalog()
    torch.testing.assert_close(items.norm(dim=1), torch.ones(NUM_ITEMS))
    queries = model.encode_queries(queries_of([1, 2], [3]))
    torch.testing.assert_close(queries.norm(dim=1), torch.full((2,), 10.0))
    torch.testing.assert_close(model.encode_items(torch.tensor([4])), items[[4]])


@pytest.mark.parametrize("learn", [True, False])
def test_the_temperature_learns_only_when_asked(learn):
    model = ModelConfig(temperature=0.5, learn_temperature=learn).build(NUM_USERS, NUM_ITEMS, 5)
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
        config.build(NUM_USERS, NUM_ITEMS, MAX_LENGTH)


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
    model = config.build(NUM_USERS, NUM_ITEMS, MAX_LENGTH)
    assert model.encode_queries(queries_of([1, 2], [3])).shape == (2, 6)
    assert config.model_dump()["query_tower"] == {"type": "mean_of_history", "dim": 6}
