"""Recommendations for users of a dataset and for given histories."""

from __future__ import annotations

import importlib
import io
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console

from candid.data import PreparedDataset, Role
from candid.errors import ConfigError
from candid.index import ExactIndex
from candid.inference import NewItems, recommend


class LastItem:
    """The query vector is that of the last item of the history: neighbouring ids score highest."""

    reads_history = True
    needs_history = True
    needs_user = False

    def __init__(self, num_items):
        angles = torch.arange(num_items) * (1.5 / num_items)
        self.items = torch.stack([angles.cos(), angles.sin()], 1)
        self.lengths = []

    def encode_queries(self, queries):
        self.lengths += queries.history.offsets.diff().tolist()
        return self.items[queries.history.item_ids[queries.history.query_positions]]

    def encode_catalog(self, progress=None):
        return self.items


class ByUser:
    """The best item of user u is item u."""

    reads_history = False
    needs_history = False
    needs_user = True

    def encode_queries(self, queries):
        return torch.eye(6)[queries.user_ids]

    def encode_catalog(self, progress=None):
        return torch.eye(6)


@pytest.fixture(name="dataset")
def _dataset():
    items = [0, 1, 5, 4, 3, 2]
    return PreparedDataset(
        item_ids=np.array(items, dtype=np.int32),
        user_offsets=np.array([0, 2, 6, 6], dtype=np.int64),
        roles=np.full(6, Role.TRAIN, dtype=np.uint8),
        users=pl.DataFrame({"source_id": ["ann", "bob", "cyd"]}),
        items=pl.DataFrame(
            {
                "source_id": [10, 11, 12, 13, 14, 15],
                "title": ["Zero", "One", None, "Three", "Four", "Five"],
            }
        ),
    )


def test_users_get_items_they_have_not_seen(dataset):
    result = recommend(LastItem(6), dataset, user_ids=[1, 0], k=3, max_length=9)
    assert result.item_ids.tolist() == [[1, 0, -1], [2, 3, 4]]
    assert np.isneginf(result.scores[0, 2])
    assert (np.diff(result.scores, axis=1) < 0).all()


def test_items_only_viewed_are_recommended(dataset):
    codes = np.array([0, 1, 1, 0, 1, 1], dtype=np.uint8)
    dataset = replace(
        dataset, event_types=codes, event_type_names=("buy", "view"), target_event_types=("buy",)
    )
    result = recommend(LastItem(6), dataset, user_ids=[1, 0], k=6, max_length=9)
    # bob bought 4, ann bought 0; they viewed the rest or did not interact with it.
    assert [set(row) - {-1} for row in result.item_ids.tolist()] == [
        {0, 1, 2, 3, 5},
        {1, 2, 3, 4, 5},
    ]
    anonymous = recommend(LastItem(6), dataset, histories=[[5, 4, 3, 2]], k=6, max_length=9)
    assert set(anonymous.item_ids[0].tolist()) - {-1} == {0, 1}


def test_seen_items_are_recommended_without_filter_seen(dataset):
    result = recommend(LastItem(6), dataset, user_ids=[0], k=2, max_length=9, filter_seen=False)
    assert result.item_ids[0, 0] == 1


def test_recommend_for_histories(dataset):
    result = recommend(LastItem(6), dataset, histories=[[0, 5], [3]], k=2, max_length=9)
    assert result.item_ids.tolist() == [[4, 3], [2, 4]]
    assert result.user_ids is None


def test_model_reads_the_last_part_and_the_whole_history_is_left_out(dataset):
    model = LastItem(6)
    result = recommend(model, dataset, user_ids=[1], k=6, max_length=2)
    assert model.lengths == [2]
    assert result.item_ids.tolist() == [[1, 0, -1, -1, -1, -1]]


def test_model_of_users_needs_no_history(dataset):
    result = recommend(ByUser(), dataset, user_ids=[2, 0], k=1, max_length=9)
    assert result.item_ids[0].tolist() == [2]


def test_recommend_with_a_given_index(dataset):
    model = LastItem(6)
    index = ExactIndex(-model.items)
    result = recommend(model, dataset, histories=[[0]], k=1, max_length=9, index=index)
    assert result.item_ids.tolist() == [[5]]


def test_frame_and_json_have_source_ids(dataset):
    result = recommend(LastItem(6), dataset, user_ids=[1, 0], k=3, max_length=9)
    frame = result.to_frame()
    assert frame.columns == ["query", "rank", "item", "score", "title"]
    assert frame["query"].to_list() == ["bob", "bob", "ann", "ann", "ann"]
    assert frame["rank"].to_list() == [1, 2, 1, 2, 3]
    assert frame["item"].to_list() == [11, 10, 12, 13, 14]
    assert frame["title"].to_list() == ["One", "Zero", None, "Three", "Four"]
    bob, ann = result.to_json()
    assert bob["user"] == "bob"
    assert [(one["rank"], one["item"], one["title"]) for one in bob["items"]] == [
        (1, 11, "One"),
        (2, 10, "Zero"),
    ]
    assert ann["items"][0]["score"] == pytest.approx(float(result.scores[1, 0]))
    anonymous = recommend(LastItem(6), dataset, histories=[list(range(6)), [0]], k=1, max_length=9)
    assert anonymous.to_json()[0] == {"items": []}
    assert [one["item"] for one in anonymous.to_json()[1]["items"]] == [11]


def test_table_has_users_and_titles(dataset):
    result = recommend(LastItem(6), dataset, user_ids=[0], k=3, max_length=9)
    text = io.StringIO()
    Console(file=text, width=100).print(result.table())
    assert "ann" in text.getvalue()
    assert "Three" in text.getvalue()


def test_recommend_in_several_batches(dataset, monkeypatch):
    module = importlib.import_module("candid.inference.query_set")
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    many = recommend(LastItem(6), dataset, user_ids=[0, 1, 0, 1, 1], k=2, max_length=9)
    assert many.item_ids.tolist() == [[2, 3], [1, 0], [2, 3], [1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"user_ids": [0], "k": 7}, "k 7 must be between 1 and the 6 items"),
        ({"user_ids": [0], "k": 0}, "k 0 must be between 1 and the 6 items"),
        ({"user_ids": [3], "k": 1}, "user id 3 is not in the dataset: ids are 0 to 2"),
        ({"histories": [[1, -1]], "k": 1}, "item id -1 is not in the dataset: ids are 0 to 5"),
        ({"user_ids": [0, 2], "k": 1}, "user 'cyd' has no history"),
        ({"histories": [[1], []], "k": 1}, "history 1 is empty"),
        ({"k": 1}, "either users or histories"),
        ({"user_ids": [0], "histories": [[1]], "k": 1}, "either users or histories"),
    ],
)
def test_recommend_refuses_impossible_requests(dataset, arguments, message):
    with pytest.raises(ConfigError, match=message):
        recommend(LastItem(6), dataset, max_length=9, **arguments)


@pytest.mark.parametrize("also_needs_history", [False, True])
def test_model_of_users_refuses_histories(dataset, also_needs_history):
    model = ByUser()
    model.needs_history = also_needs_history
    with pytest.raises(ConfigError, match="not histories"):
        recommend(model, dataset, histories=[[1]], k=1, max_length=9)


def test_control_characters_of_titles_do_not_reach_the_terminal(dataset):
    items = dataset.items.with_columns(title=pl.lit("Ol\u00e9 \x1b[31mred\nblue\u202e"))
    result = recommend(
        LastItem(6), replace(dataset, items=items), histories=[[0]], k=2, max_length=9
    )
    text = io.StringIO()
    Console(file=text, width=100).print(result.table())
    assert text.getvalue().count("Ol\u00e9  [31mred blue ") == 2
    assert "\x1b" not in text.getvalue()
    assert result.to_json()[0]["items"][0]["title"].endswith("blue\u202e")


def test_index_over_other_items_is_refused(dataset):
    index = ExactIndex(torch.eye(7))
    with pytest.raises(ConfigError, match="index holds 7 items and there are 6 to recommend"):
        recommend(ByUser(), dataset, user_ids=[0], k=1, max_length=4, index=index)


def test_only_allowed_items_are_recommended(dataset):
    allowed = np.array([True, False, False, True, True, False])
    result = recommend(LastItem(6), dataset, user_ids=[1, 0], k=3, max_length=9, is_allowed=allowed)
    # bob has seen 3 and 4; ann has seen 0.
    assert result.item_ids.tolist() == [[0, -1, -1], [3, 4, -1]]
    whole = recommend(LastItem(6), dataset, user_ids=[1, 0], k=6, max_length=9)
    score_of = dict(zip(whole.item_ids[1].tolist(), whole.scores[1].tolist(), strict=True))
    assert result.scores[1].tolist()[:2] == [score_of[3], score_of[4]]
    assert np.isneginf(result.scores[0, 1:]).all()
    with pytest.raises(ConfigError, match="is_allowed has 2 entries for 6 items"):
        recommend(LastItem(6), dataset, user_ids=[0], k=1, max_length=9, is_allowed=allowed[:2])
    with pytest.raises(ConfigError, match="no item is left to recommend"):
        recommend(LastItem(6), dataset, user_ids=[0], k=1, max_length=9, is_allowed=allowed & False)


def test_probabilities_are_the_softmax_over_the_catalog(dataset):
    model = LastItem(6)
    allowed = np.array([True, True, False, True, True, True])
    result = recommend(
        model,
        dataset,
        histories=[[3], [0, 5]],
        k=5,
        max_length=9,
        is_allowed=allowed,
        with_probabilities=True,
    )
    scores = (model.items[[3, 5]].double() @ model.items.double().T).numpy()
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    for row, (ids, values) in enumerate(zip(result.item_ids, result.probabilities, strict=True)):
        present = ids >= 0
        assert values[present] == pytest.approx(expected[row, ids[present]], rel=1e-5)
        assert (values[~present] == 0).all()
    assert result.to_frame().columns == ["query", "rank", "item", "score", "title", "probability"]


def test_new_items_are_recommended_beside_the_catalog(dataset):
    model = LastItem(6)
    new = NewItems(pl.DataFrame({"source_id": [99], "title": ["New"]}), 2 * model.items[3:4])
    result = recommend(model, dataset, histories=[[3]], k=2, max_length=9, new_items=new)
    assert result.to_frame()["item"].to_list() == [99, 12]
    assert result.to_frame()["title"].to_list() == ["New", None]
    for other, message in (
        (NewItems(pl.DataFrame({"source_id": [12]}), model.items[:1]), "in the catalog or listed"),
        (NewItems(pl.DataFrame({"source_id": ["a"]}), model.items[:1]), "type String and those"),
        (NewItems(pl.DataFrame({"source_id": [99]}), model.items[:2]), "2 vectors for 1 new items"),
    ):
        with pytest.raises(ConfigError, match=message):
            recommend(model, dataset, histories=[[3]], k=2, max_length=9, new_items=other)


def test_given_item_vectors_are_not_encoded_again(dataset):
    class Refusing(LastItem):
        def encode_catalog(self, progress=None):
            raise AssertionError

    model = Refusing(6)
    result = recommend(model, dataset, histories=[[0]], k=1, max_length=9, item_vectors=model.items)
    assert result.item_ids.tolist() == [[1]]
