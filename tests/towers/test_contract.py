"""The contract suite over all registered towers, the model of two, and a new tower."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from candid.batches import Queries, pack_histories
from candid.errors import ConfigError, UnknownNameError
from candid.testing import check_tower
from candid.towers import TOWERS, ModelConfig, QueryTower, TowerConfig, TowerContext

NUM_USERS, NUM_ITEMS, MAX_LENGTH = 7, 11, 5
PLAIN = TowerContext(NUM_USERS, NUM_ITEMS, MAX_LENGTH)


def queries_of(*histories):
    """Queries of users 0, 1, … with these histories."""
    lengths = np.array([len(history) for history in histories])
    items = np.concatenate([np.array(history, dtype=np.int64) for history in histories])
    return pack_histories(np.arange(len(histories)), items, lengths)


SETTINGS = {"joined": {"towers": ["user_features", {"type": "user_embedding", "dim": 3}]}}
"""Settings without a default."""


@pytest.mark.parametrize("name", sorted(TOWERS))
def test_registered_tower_keeps_the_contract(name):
    check_tower(TOWERS[name], **SETTINGS.get(name, {}))


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "causal_transformer", "positions": "rotary", "read_event_types": True},
        {"type": "causal_transformer", "input_items": "separate", "num_heads": 2},
        {"type": "causal_transformer", "feed_forward": "swiglu", "gated_residual": True},
        {"type": "causal_transformer", "read_time_gaps": True, "time_bias": True},
        {"type": "causal_transformer", "read_query_gap": True},
        {"type": "item_features", "id_mode": "override", "interaction": "cross"},
        {"type": "user_features", "id_mode": "field", "interaction": "attention"},
        {
            "type": "joined",
            "towers": ["context_features", {"type": "causal_transformer", "dim": 8}],
            "hidden": [8],
        },
    ],
    ids=lambda settings: settings["type"],
)
def test_other_settings_keep_the_contract(settings):
    settings = dict(settings)
    if settings["type"] == "joined":
        settings["towers"] = [
            {"type": "context_features"},
            {"type": "causal_transformer", "dim": 8},
        ]
    check_tower(TOWERS[settings.pop("type")], **settings)


def test_vectors_include_cosine_and_temperature():
    model = ModelConfig(similarity="cosine", temperature=0.1).build(PLAIN)
    model.eval()
    items = model.encode_catalog()
    torch.testing.assert_close(items.norm(dim=1), torch.ones(NUM_ITEMS))
    queries = model.encode_queries(queries_of([1, 2], [3]))
    torch.testing.assert_close(queries.norm(dim=1), torch.full((2,), 10.0))
    torch.testing.assert_close(model.encode_items(torch.tensor([4])), items[[4]])


def test_first_gradient_of_an_empty_history_is_as_large_as_the_others_with_the_cosine():
    context = dataclasses.replace(PLAIN, empty_histories=True)
    model = ModelConfig(query_tower="causal_transformer", similarity="cosine").build(context)
    scores = model.encode_queries(queries_of([1, 2], [])) @ model.encode_catalog().T
    torch.logsumexp(scores, dim=1).sum().backward()
    assert 0 < model.query_tower.empty_history.grad.norm() < 100


@pytest.mark.parametrize("learn", [True, False])
def test_temperature_is_trained_only_if_configured(learn):
    model = ModelConfig(temperature=0.5, learn_temperature=learn).build(PLAIN)
    (model.encode_queries(queries_of([1])) ** 2).sum().backward()
    parameter = dict(model.named_parameters()).get("log_temperature")
    assert (parameter is not None and parameter.grad is not None) == learn
    assert "log_temperature" in model.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"query_tower": {"type": "user_embedding", "dim": 4}},
            "model.query_tower.dim 4 must equal model.item_tower.dim 64",
        ),
        ({"query_tower": "item_embedding"}, "model.query_tower must be a query tower"),
        ({"item_tower": "user_embedding"}, "model.item_tower must be an item tower"),
    ],
)
def test_towers_that_do_not_fit_are_refused(settings, message):
    config = ModelConfig.model_validate(settings)
    with pytest.raises(ConfigError, match=message):
        config.build(PLAIN)


def test_unknown_tower_error_suggests_a_known_one():
    with pytest.raises(UnknownNameError, match="did you mean 'user_embedding'"):
        ModelConfig.model_validate({"query_tower": "user_embeding"})


class MeanOfHistory(QueryTower):
    """The mean of the vectors of the items of the history."""

    reads_history = True
    needs_history = True

    class Config(TowerConfig):
        dim: int = Field(8, description="width of the vectors")

        def build(self, context: TowerContext) -> "MeanOfHistory":
            return MeanOfHistory(context.num_items, self.dim)

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.table = nn.Embedding(num_items, dim)

    def forward(self, queries: Queries) -> Tensor:
        history = queries.history
        stops = history.query_positions + 1
        starts = history.offsets[(torch.searchsorted(history.offsets, stops) - 1).clamp(min=0)]
        sums = F.pad(self.table(history.item_ids).cumsum(0), (0, 0, 1, 0))
        return (sums[stops] - sums[starts]) / (stops - starts)[:, None]


def test_new_tower_keeps_the_contract():
    check_tower(MeanOfHistory, is_registered=False)


def test_contract_reports_a_look_into_the_future(monkeypatch):
    def forward(self, queries):
        history = queries.history
        sequences = torch.searchsorted(history.offsets, history.query_positions, right=True) - 1
        means = F.embedding_bag(history.item_ids, self.table.weight, history.offsets[:-1])
        return means[sequences]

    monkeypatch.setattr(MeanOfHistory, "forward", forward)
    with pytest.raises(AssertionError, match="and no later interaction"):
        check_tower(MeanOfHistory, is_registered=False)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"reads_history": False}, "reads_history is False, but the vectors depend"),
        ({"reads_context": True}, "reads_context is True, but the vectors do not depend"),
        ({"reads_user_features": True}, "reads_user_features is True, but"),
        ({"needs_history": False}, "needs_history is False: accept an empty history"),
    ],
)
def test_contract_reports_a_wrong_flag(monkeypatch, attributes, message):
    for name, value in attributes.items():
        monkeypatch.setattr(MeanOfHistory, name, value)
    with pytest.raises(AssertionError, match=message):
        check_tower(MeanOfHistory, is_registered=False)


def test_new_tower_is_one_class_and_one_registry_line(monkeypatch):
    monkeypatch.setitem(TOWERS, "mean_of_history", MeanOfHistory)
    check_tower(MeanOfHistory)
    config = ModelConfig.model_validate(
        {
            "query_tower": {"type": "mean_of_history", "dim": 6},
            "item_tower": {"type": "item_embedding", "dim": 6},
        }
    )
    model = config.build(PLAIN)
    assert model.encode_queries(queries_of([1, 2], [3])).shape == (2, 6)
    assert config.model_dump()["query_tower"] == {"type": "mean_of_history", "dim": 6}
