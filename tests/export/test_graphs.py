"""Graphs on padded inputs, compared with the model's own towers on packed ones."""

import pytest
import torch
from torch import nn

from candid.errors import ArtifactError, ConfigError
from candid.export.graphs import build_graphs, check_agreement
from candid.towers import PaddedInput, QueryTower, merge_inputs

HISTORIES = [[3], [1, 2, 3, 4, 5, 6], [16, 0], [5, 5, 5], [0, 9, 2, 7]]
FEATURES = {"dim": 8, "field_dim": 8, "hidden": [16]}
HISTORY = {"type": "causal_transformer", "dim": 8}
ITEMS = {"type": "item_embedding", "dim": 8}
# Settings of the towers of candid. A tower without `to_padded` has no graph and needs no line here.
QUERY_TOWERS = {
    "causal_transformer": [
        {"dim": 8, "num_heads": 2, "num_blocks": 2},
        {"dim": 8, "positions": "rotary", "read_event_types": True, "input_items": "separate"},
        {"dim": 8, "feed_forward": "swiglu", "gated_residual": True, "hidden": 12},
        {"dim": 8, "num_heads": 2, "read_time_gaps": True},
        {"dim": 8, "num_heads": 2, "time_bias": True, "positions": "rotary"},
        {"dim": 8, "read_query_gap": True},
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


def check_close(vectors, expected):
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5, equal_nan=True)


def graphs_by_name(made):
    return {graph.name: graph for graph in build_graphs(made.export_input)}


def encode(graph, tensors):
    assert {padded_input.name for padded_input in graph.inputs} == set(tensors)
    with torch.no_grad():
        return graph.module(tensors)


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
def test_query_graph_equals_the_model(make_model, queries_of, tower):
    made = make_model(model_of((tower, ITEMS)))
    graphs, model = graphs_by_name(made), made.run.model
    queries = queries_of(made, histories=HISTORIES)
    with torch.no_grad():
        check_close(encode(graphs["query"], queries.tensors), model.encode_queries(queries.queries))
    assert ("query_by_features" in graphs) == (tower["type"] == "user_features")
    if "query_by_features" in graphs:
        queries = queries_of(made, histories=HISTORIES, by_features=True)
        vectors = encode(graphs["query_by_features"], queries.tensors)
        with torch.no_grad():
            check_close(vectors, model.encode_queries(queries.queries))


@pytest.mark.parametrize(
    "tower",
    [
        pytest.param({"type": name, **settings}, id=f"{name}-{number}")
        for name, listed in ITEM_TOWERS.items()
        for number, settings in enumerate(listed)
    ],
)
def test_item_graph_equals_the_model(make_model, item_rows, tower):
    made = make_model(model_of(({"type": "user_embedding", "dim": 8}, tower)))
    graphs, model = graphs_by_name(made), made.run.model
    ids = torch.tensor([16, 0, 3, 3])
    with torch.no_grad():
        check_close(encode(graphs["item"], {"item_id": ids}), model.encode_items(ids))
        assert encode(graphs["item"], {"item_id": torch.tensor([-1])}).isnan().all()
    assert ("item_by_features" in graphs) == (tower["type"] == "item_features")
    if "item_by_features" in graphs:
        values, tensors = item_rows(made, 4)
        if tower["id_mode"] == "none":
            with torch.no_grad():
                vectors = encode(graphs["item_by_features"], tensors)
                check_close(vectors, model.encode_item_values(values, ids))
            return
        for known in (ids, None):
            given = torch.full((4,), -1) if known is None else known
            vectors = encode(graphs["item_by_features"], {**tensors, "item_id": given})
            with torch.no_grad():
                check_close(vectors, model.encode_item_values(values, known))


def test_graphs_of_a_model_that_reads_everything_equal_the_model(everything, queries_of):
    graphs, model = graphs_by_name(everything), everything.run.model
    assert set(graphs) == {"query", "query_by_features", "item", "item_by_features"}
    for by_features in (False, True):
        queries = queries_of(everything, histories=[[], *HISTORIES, []], by_features=by_features)
        graph = graphs["query_by_features" if by_features else "query"]
        vectors = encode(graph, queries.tensors)
        with torch.no_grad():
            check_close(vectors, model.encode_queries(queries.queries))
        assert len(vectors.unique(dim=0)) == len(HISTORIES) + 2


def test_query_graph_with_more_padding_gives_the_same_vectors(everything, queries_of):
    graph = graphs_by_name(everything)["query"]
    short = queries_of(everything, histories=[[2], [3, 4]])
    long = queries_of(everything, histories=[[2], [3, 4]], width=6)
    assert long.tensors["history"].shape == (2, 6)
    check_close(encode(graph, long.tensors), encode(graph, short.tensors))


def test_query_graph_of_an_unknown_user(everything, factors, queries_of):
    model = everything.run.model
    queries = queries_of(everything, histories=[[4, 2]])
    queries.tensors["user_id"][0] = -1
    queries.queries.user_ids[0] = -1
    vectors = encode(graphs_by_name(everything)["query"], queries.tensors)
    with torch.no_grad():
        check_close(vectors, model.encode_queries(queries.queries))
    tensors = {"user_id": torch.tensor([-1, 3])}
    vectors = encode(graphs_by_name(factors)["query"], tensors)
    assert vectors.isnan().all(dim=1).tolist() == [True, False]


def test_query_graph_of_an_empty_history_without_an_answer_is_nan(plain, queries_of):
    queries = queries_of(plain, histories=[[], [3]])
    vectors = encode(graphs_by_name(plain)["query"], queries.tensors)
    assert vectors.isnan().all(dim=1).tolist() == [True, False]


WRONG_HISTORIES = {
    "padded before its items": [-1, -1, 3, 4],
    "a hole": [3, -1, 4, -1],
    "a hole before the last item": [3, 4, -1, 5],
    "one item at the end": [-1, -1, -1, 6],
    "an id below -1": [3, -2, 4, 5],
    "an id below -1 at the end": [3, 4, 5, -7],
    "only ids below -1": [-2, -2, -2, -2],
}


@pytest.mark.parametrize("history", WRONG_HISTORIES.values(), ids=list(WRONG_HISTORIES))
@pytest.mark.parametrize("tower", [c for c in CASES if "causal" in c.id or "joined" in c.id])
def test_query_graph_of_a_history_with_misplaced_padding_is_nan(
    make_model, queries_of, tower, history
):
    made = make_model(model_of((tower, ITEMS)))
    graph = graphs_by_name(made)["query"]
    queries = queries_of(made, histories=[[3, 4, 5, 6], [7], [3, 4, 5]], width=4)
    sound = encode(graph, queries.tensors)
    tensors = {**queries.tensors, "history": queries.tensors["history"].clone()}
    tensors["history"][1] = torch.tensor(history)
    vectors = encode(graph, tensors)
    assert vectors.isnan().all(dim=1).tolist() == [False, True, False]
    check_close(vectors[[0, 2]], sound[[0, 2]])


def test_misplaced_padding_is_nan_where_an_empty_history_has_a_vector(everything, queries_of):
    graph = graphs_by_name(everything)["query"]
    queries = queries_of(everything, histories=[[], [3, 4, 5]])
    queries.tensors["history"][1] = torch.tensor([-1, 3, 4])
    assert encode(graph, queries.tensors).isnan().all(dim=1).tolist() == [False, True]


def test_tower_without_to_padded_is_refused(make_model):
    class Other(QueryTower):
        dim = 8
        needs_history = False

        def forward(self, queries):
            return torch.zeros(len(queries), 8)

    made = make_model(model_of((HISTORY, ITEMS)))
    made.run.model.query_tower = Other()
    with pytest.raises(
        ConfigError, match=r"the tower Other cannot be exported .* to_padded\(context\)"
    ):
        build_graphs(made.export_input)


def test_graph_with_other_vectors_is_refused():
    expected = torch.tensor([[1.0, 2.0]])
    assert check_agreement(expected + 1e-6, expected, "x") == pytest.approx(1e-6, rel=0.1)
    for wrong in (expected + 1e-4, expected * torch.nan):
        with pytest.raises(ArtifactError, match=r"x gives vectors that differ by"):
            check_agreement(wrong, expected, "x")


def test_two_inputs_with_one_name_are_refused():
    one, other = PaddedInput("user_id", "id", 3), PaddedInput("user_id", "id", 4)
    assert merge_inputs([(one,), (one,)]) == (one,)
    with pytest.raises(ConfigError, match="'user_id'"):
        merge_inputs([(one,), (other,)])


def test_graphs_share_the_weights_of_the_model(plain):
    """Exporting needs no second copy of a large model and does not change it."""
    before = {name: value.clone() for name, value in plain.run.model.state_dict().items()}
    graph = graphs_by_name(plain)["query"]
    shared = {id(p) for p in plain.run.model.parameters()}
    blocks = [m for m in graph.module.modules() if isinstance(m, nn.Linear)]
    assert blocks
    assert all(id(m.weight) in shared for m in blocks)
    for name, value in plain.run.model.state_dict().items():
        assert torch.equal(value, before[name])
