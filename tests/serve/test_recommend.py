"""Recommendations for users of a dataset and for typed histories."""

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
from candid.serve import recommend


class LastItem:
    """A query is the vector of the last item of its history: neighbours score highest."""

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
    """User u's favourite is item u."""

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


def test_users_get_what_they_have_not_seen(dataset):
    found = recommend(LastItem(6), dataset, user_ids=[1, 0], k=3, max_length=9)
    assert found.item_ids.tolist() == [[1, 0, -1], [2, 3, 4]]
    assert np.isneginf(found.scores[0, 2])
    assert (np.diff(found.scores, axis=1) < 0).all()


def test_what_was_only_viewed_is_offered(dataset):
    kinds = np.array([0, 1, 1, 0, 1, 1], dtype=np.uint8)
    dataset = replace(
        dataset, event_types=kinds, event_type_names=("buy", "view"), target_event_types=("buy",)
    )
    found = recommend(LastItem(6), dataset, user_ids=[1, 0], k=6, max_length=9)
    # bob bought 4, ann bought 0; the rest they viewed or never met.
    assert [set(row) - {-1} for row in found.item_ids.tolist()] == [
        {0, 1, 2, 3, 5},
        {1, 2, 3, 4, 5},
    ]
    typed = recommend(LastItem(6), dataset, histories=[[5, 4, 3, 2]], k=6, max_length=9)
    assert set(typed.item_ids[0].tolist()) - {-1} == {0, 1}


def test_seen_items_can_be_shown(dataset):
    found = recommend(LastItem(6), dataset, user_ids=[0], k=2, max_length=9, filter_seen=False)
    assert found.item_ids[0, 0] == 1


def test_a_typed_history(dataset):
    found = recommend(LastItem(6), dataset, histories=[[0, 5], [3]], k=2, max_length=9)
    assert found.item_ids.tolist() == [[4, 3], [2, 4]]
    assert found.user_ids is None


def test_models_read_the_last_part_and_hide_the_whole(dataset):
    model = LastItem(6)
    found = recommend(model, dataset, user_ids=[1], k=6, max_length=2)
    assert model.lengths == [2]
    assert found.item_ids.tolist() == [[1, 0, -1, -1, -1, -1]]


def test_models_of_users_need_no_history(dataset):
    found = recommend(ByUser(), dataset, user_ids=[2, 0], k=1, max_length=9)
    assert found.item_ids[0].tolist() == [2]


def test_another_index_can_be_given(dataset):
    model = LastItem(6)
    index = ExactIndex(-model.items)
    found = recommend(model, dataset, histories=[[0]], k=1, max_length=9, index=index)
    assert found.item_ids.tolist() == [[5]]


def test_frame_and_json_speak_the_users_language(dataset):
    found = recommend(LastItem(6), dataset, user_ids=[1, 0], k=3, max_length=9)
    frame = found.to_frame()
    assert frame.columns == ["query", "user", "rank", "item", "title", "score"]
    assert frame["user"].to_list() == ["bob", "bob", "ann", "ann", "ann"]
    assert frame["rank"].to_list() == [1, 2, 1, 2, 3]
    assert frame["item"].to_list() == [11, 10, 12, 13, 14]
    assert frame["title"].to_list() == ["One", "Zero", None, "Three", "Four"]
    bob, ann = found.to_json()
    assert bob["user"] == "bob"
    assert [(one["rank"], one["item"], one["title"]) for one in bob["items"]] == [
        (1, 11, "One"),
        (2, 10, "Zero"),
    ]
    assert ann["items"][0]["score"] == pytest.approx(float(found.scores[1, 0]))
    typed = recommend(LastItem(6), dataset, histories=[list(range(6)), [0]], k=1, max_length=9)
    assert typed.to_json()[0] == {"items": []}
    assert [one["item"] for one in typed.to_json()[1]["items"]] == [11]


def test_table_shows_titles(dataset):
    found = recommend(LastItem(6), dataset, user_ids=[0], k=3, max_length=9)
    text = io.StringIO()
    Console(file=text, width=100).print(found.table())
    assert "ann" in text.getvalue()
    assert "Three" in text.getvalue()


def test_many_users_cross_batches(dataset, monkeypatch):
    module = importlib.import_module("candid.serve.recommend")
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    many = recommend(LastItem(6), dataset, user_ids=[0, 1, 0, 1, 1], k=2, max_length=9)
    assert many.item_ids.tolist() == [[2, 3], [1, 0], [2, 3], [1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"user_ids": [0], "k": 7}, "k 7 must be between 1 and the 6 items"),
        ({"user_ids": [0], "k": 0}, "k 0 must be between 1 and the 6 items"),
        ({"user_ids": [3], "k": 1}, "user id 3 is not one of the dataset's: 0 to 2"),
        ({"histories": [[1, -1]], "k": 1}, "item id -1 is not one of the dataset's: 0 to 5"),
        ({"user_ids": [0, 2], "k": 1}, "user 'cyd' has no history"),
        ({"histories": [[1], []], "k": 1}, "history 1 is empty"),
        ({"k": 1}, "either users or histories"),
        ({"user_ids": [0], "histories": [[1]], "k": 1}, "either users or histories"),
    ],
)
def test_errors_name_the_cause(dataset, arguments, message):
    with pytest.raises(ConfigError, match=message):
        recommend(LastItem(6), dataset, max_length=9, **arguments)


@pytest.mark.parametrize("also_needs_history", [False, True])
def test_models_of_users_refuse_histories(dataset, also_needs_history):
    model = ByUser()
    model.needs_history = also_needs_history
    with pytest.raises(ConfigError, match="not histories"):
        recommend(model, dataset, histories=[[1]], k=1, max_length=9)


def test_a_title_neither_breaks_lines_nor_steers_the_terminal(dataset):
    items = dataset.items.with_columns(title=pl.lit("Ol\u00e9 \x1b[31mred\nblue\u202e"))
    found = recommend(
        LastItem(6), replace(dataset, items=items), histories=[[0]], k=2, max_length=9
    )
    text = io.StringIO()
    Console(file=text, width=100).print(found.table())
    assert text.getvalue().count("Ol\u00e9  [31mred blue ") == 2
    assert "\x1b" not in text.getvalue()
    assert found.to_json()[0]["items"][0]["title"].endswith("blue\u202e")


def test_an_index_over_other_items_is_refused(dataset):
    index = ExactIndex(torch.eye(7))
    with pytest.raises(ConfigError, match="index holds 7 items and there are 6 to recommend"):
        recommend(ByUser(), dataset, user_ids=[0], k=1, max_length=4, index=index)
