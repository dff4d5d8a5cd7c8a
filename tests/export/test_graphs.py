"""Graphs on padded inputs against the model's own towers on packed ones."""

import pytest
import torch
from torch import nn

from candid.errors import ArtifactError, ConfigError
from candid.export.graphs import check_agrees, graphs_of
from candid.export.inputs import Input, merged
from candid.towers import TOWERS, QueryTower

HISTORIES = [[3], [1, 2, 3, 4, 5, 6], [16, 0], [5, 5, 5], [0, 9, 2, 7]]
FEATURES = {"dim": 8, "field_dim": 8, "hidden": [16]}
HISTORY = {"type": "causal_transformer", "dim": 8}
ITEMS = {"type": "item_embedding", "dim": 8}
# Settings of each tower; a new tower adds its line here, and a part in candid.export.padded.
QUERY_TOWERS = {
    "causal_transformer": [
        {"dim": 8, "num_heads": 2, "num_blocks": 2},
        {"dim": 8, "positions": "rotary", "read_event_types": True, "input_items": "separate"},
    ],
    "context_features": [FEATURES, {**FEATURES, "interaction": "attention", "hidden": []}],
    "joined": [{"dim": 8, "towers": [{"type": "user_embedding", "dim": 4}, HISTORY]}],
    "user_embedding": [{"dim": 8}],
    "user_features": [
        {**FEATURES, "id_mode": mode, "interaction": interaction}
        for mode, interaction in [
            ("none", "none"),
            ("field", "cross"),
            ("residual", "attention"),
            ("override", "none"),
        ]
    ],
}
ITEM_TOWERS = {
    "item_embedding": [{"dim": 8}],
    "item_features": QUERY_TOWERS["user_features"],
}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, equal_nan=True)


def named_graphs(made):
    return {graph.name: graph for graph in graphs_of(made.parts)}


def answer(made, graph, named):
    assert {one.name for one in graph.inputs} == set(named)
    with torch.no_grad():
        return graph.module(named)


def model_of(towers, similarity="cosine"):
    query, item = towers
    return {
        "query_tower": query,
        "item_tower": item,
        "similarity": similarity,
        "temperature": 0.2,
    }


CASES = [
    pytest.param({"type": name, **settings}, id=f"{name}-{number}")
    for name, listed in QUERY_TOWERS.items()
    for number, settings in enumerate(listed)
]


@pytest.mark.parametrize("tower", CASES)
def test_a_query_is_the_models_own(make_model, ask, tower):
    made = make_model(model_of((tower, ITEMS)))
    graphs, model = named_graphs(made), made.run.model
    asked = ask(made, histories=HISTORIES)
    with torch.no_grad():
        close(answer(made, graphs["query"], asked.named), model.encode_queries(asked.queries))
    assert ("query_by_features" in graphs) == (tower["type"] == "user_features")
    if "query_by_features" in graphs:
        asked = ask(made, histories=HISTORIES, by_features=True)
        found = answer(made, graphs["query_by_features"], asked.named)
        with torch.no_grad():
            close(found, model.encode_queries(asked.queries))


@pytest.mark.parametrize(
    "tower",
    [
        pytest.param({"type": name, **settings}, id=f"{name}-{number}")
        for name, listed in ITEM_TOWERS.items()
        for number, settings in enumerate(listed)
    ],
)
def test_an_item_is_the_models_own(make_model, item_rows, tower):
    made = make_model(model_of(({"type": "user_embedding", "dim": 8}, tower)))
    graphs, model = named_graphs(made), made.run.model
    ids = torch.tensor([16, 0, 3, 3])
    with torch.no_grad():
        close(answer(made, graphs["item"], {"item_id": ids}), model.encode_items(ids))
        assert answer(made, graphs["item"], {"item_id": torch.tensor([-1])}).isnan().all()
    assert ("item_by_features" in graphs) == (tower["type"] == "item_features")
    if "item_by_features" in graphs:
        values, named = item_rows(made, 4)
        if tower["id_mode"] == "none":
            with torch.no_grad():
                found = answer(made, graphs["item_by_features"], named)
                close(found, model.encode_item_values(values, ids))
            return
        for known in (ids, None):
            given = torch.full((4,), -1) if known is None else known
            found = answer(made, graphs["item_by_features"], {**named, "item_id": given})
            with torch.no_grad():
                close(found, model.encode_item_values(values, known))


def test_a_model_that_reads_everything(everything, ask):
    graphs, model = named_graphs(everything), everything.run.model
    assert set(graphs) == {"query", "query_by_features", "item", "item_by_features"}
    for by_features in (False, True):
        asked = ask(everything, histories=[[], *HISTORIES, []], by_features=by_features)
        graph = graphs["query_by_features" if by_features else "query"]
        found = answer(everything, graph, asked.named)
        with torch.no_grad():
            close(found, model.encode_queries(asked.queries))
        assert len(found.unique(dim=0)) == len(HISTORIES) + 2


def test_more_padding_changes_nothing(everything, ask):
    graph = named_graphs(everything)["query"]
    short = ask(everything, histories=[[2], [3, 4]])
    long = ask(everything, histories=[[2], [3, 4]], width=6)
    assert long.named["history"].shape == (2, 6)
    close(answer(everything, graph, long.named), answer(everything, graph, short.named))


def test_somebody_unknown(everything, factors, ask):
    model = everything.run.model
    asked = ask(everything, histories=[[4, 2]])
    asked.named["user_id"][0] = -1
    asked.queries.user_ids[0] = -1
    found = answer(everything, named_graphs(everything)["query"], asked.named)
    with torch.no_grad():
        close(found, model.encode_queries(asked.queries))
    nobody = {"user_id": torch.tensor([-1, 3])}
    found = answer(factors, named_graphs(factors)["query"], nobody)
    assert found.isnan().all(dim=1).tolist() == [True, False]


def test_an_empty_history_without_an_answer_has_none(plain, ask):
    asked = ask(plain, histories=[[], [3]])
    found = answer(plain, named_graphs(plain)["query"], asked.named)
    assert found.isnan().all(dim=1).tolist() == [True, False]


def test_every_registered_tower_has_settings_here():
    assert set(QUERY_TOWERS) | set(ITEM_TOWERS) == set(TOWERS)


def test_a_tower_without_a_part_is_refused(make_model):
    class Other(QueryTower):
        dim = 8
        needs_history = False

        def forward(self, queries):
            return torch.zeros(len(queries), 8)

    made = make_model(model_of((HISTORY, ITEMS)))
    made.run.model.query_tower = Other()
    with pytest.raises(ConfigError, match="class Other cannot be exported"):
        graphs_of(made.parts)


def test_a_graph_that_disagrees_is_refused():
    expected = torch.tensor([[1.0, 2.0]])
    assert check_agrees(expected + 1e-6, expected, "x") == pytest.approx(1e-6, rel=0.1)
    for wrong in (expected + 1e-4, expected * torch.nan):
        with pytest.raises(ArtifactError, match=r"x gives vectors that differ by"):
            check_agrees(wrong, expected, "x")


def test_two_inputs_of_one_name_are_refused():
    one, other = Input("user_id", "id", 3), Input("user_id", "id", 4)
    assert merged([(one,), (one,)]) == (one,)
    with pytest.raises(ConfigError, match="'user_id'"):
        merged([(one,), (other,)])


def test_weights_are_shared_not_copied(plain):
    """A large model is not held twice, and exporting leaves it as it was."""
    before = {name: value.clone() for name, value in plain.run.model.state_dict().items()}
    graph = named_graphs(plain)["query"]
    shared = {id(p) for p in plain.run.model.parameters()}
    blocks = [m for m in graph.module.modules() if isinstance(m, nn.Linear)]
    assert blocks
    assert all(id(m.weight) in shared for m in blocks)
    for name, value in plain.run.model.state_dict().items():
        assert torch.equal(value, before[name])
