"""Items and users by text."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from candid.data import PreparedDataset, item_ids_of, user_ids_of
from candid.errors import DataError


@pytest.fixture
def dataset():
    titles = ["Heat (1995)", "Toy Story (1995)", "Toy Story 2 (1999)", "heat (1972)", None]
    return PreparedDataset(
        item_ids=np.zeros(2, np.int32),
        user_offsets=np.array([0, 1, 2]),
        roles=np.zeros(2, np.uint8),
        users=pl.DataFrame({"source_id": ["ann", "bob"]}),
        items=pl.DataFrame({"source_id": [10, 20, 30, 40, 50], "title": titles}),
    )


@pytest.mark.parametrize(
    ("text", "item_id"),
    [
        ("30", 2),
        ("Toy Story (1995)", 1),
        ("toy story (1995)", 1),
        ("story 2", 2),
        ("heat (1972)", 3),
        ("HEAT (1995)", 0),
        ("50", 4),
    ],
)
def test_item_is_found_by_id_title_or_a_part_of_it(dataset, text, item_id):
    assert item_ids_of(dataset, [text]).tolist() == [item_id]


def test_texts_keep_their_order(dataset):
    ids = item_ids_of(dataset, ["30", "10", "30"])
    assert ids.tolist() == [2, 0, 2]
    assert ids.dtype == np.int64
    assert item_ids_of(dataset, []).tolist() == []


def test_ambiguous_text_lists_the_matches(dataset):
    with pytest.raises(
        DataError, match=r"'toy' matches several items: 'Toy Story \(1995\)' \(id 20\), 'Toy"
    ):
        item_ids_of(dataset, ["toy"])


def test_items_with_one_title_are_listed_with_their_ids(dataset):
    twins = dataset.items.with_columns(title=pl.lit("Babe (1995)"))
    with pytest.raises(DataError, match=r"'Babe \(1995\)' \(id 10\).*\(id 20\).*or the id"):
        item_ids_of(dataclasses.replace(dataset, items=twins), ["Babe (1995)"])


@pytest.mark.parametrize("text", ["", "  "])
def test_blank_text_is_refused(dataset, text):
    with pytest.raises(DataError, match="is blank; write an id or a title"):
        item_ids_of(dataset, [text])


def test_title_with_the_same_words_is_suggested(dataset):
    with pytest.raises(DataError, match=r"did you mean 'Toy Story 2 \(1999\)'"):
        item_ids_of(dataset, ["1999: 2, Story (Toy)"])


def test_unknown_title_suggests_similar_ones(dataset):
    with pytest.raises(DataError, match=r"no item 'Toy Stroy'.*'Toy Story \(1995\)'"):
        item_ids_of(dataset, ["Toy Stroy"])


def test_text_is_not_a_regular_expression(dataset):
    with pytest.raises(DataError, match="no item"):
        item_ids_of(dataset, ["H.at"])


def test_users_are_found_by_source_id(dataset):
    assert user_ids_of(dataset, ["bob", "ann"]).tolist() == [1, 0]
    with pytest.raises(DataError, match=r"no user 'bobb'.*'bob'"):
        user_ids_of(dataset, ["bobb"])
