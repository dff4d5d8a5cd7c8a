"""Search over rows of scores, compared with a full sort, and recommendations from scores."""

import numpy as np
import polars as pl
import pytest
import torch

from candid.data import PreparedDataset, Role
from candid.errors import ArtifactError, ConfigError
from candid.index import Exclusions
from candid.inference import ScoreRows, recommend, score_rows, tie_ranks

NUM_ITEMS = 40


def sorted_ids(scores, excluded, k):
    """Return the k best ids of one row by a full sort; -1 beyond the last one."""
    ids = [i for i in np.argsort(-scores, kind="stable").tolist() if i not in excluded]
    return [*ids[:k], *[-1] * (k - len(ids))]


def exclusions(lists):
    flat = torch.tensor([i for one in lists for i in one], dtype=torch.int64)
    return Exclusions(flat, torch.tensor([0, *np.cumsum([len(one) for one in lists])]))


@pytest.mark.parametrize("num_included", [NUM_ITEMS, 25, 3])
def test_results_equal_a_full_sort(num_included):
    rng = np.random.default_rng(num_included)
    scores = rng.normal(size=(6, NUM_ITEMS)).astype(np.float32)
    included = np.zeros(NUM_ITEMS, dtype=bool)
    included[rng.permutation(NUM_ITEMS)[:num_included]] = True
    seen = [rng.choice(NUM_ITEMS, n, replace=False).tolist() for n in (0, 5, 39, 40, 1, 12)]
    rows = ScoreRows(NUM_ITEMS, included)
    assert rows.num_items == num_included
    k = min(8, num_included)
    before = scores.copy()
    result = rows.search(torch.from_numpy(scores), k, exclusions(seen))
    for row in range(6):
        left_out = {*seen[row], *np.flatnonzero(~included).tolist()}
        expected = sorted_ids(scores[row], left_out, k)
        assert result.item_ids[row].tolist() == expected
        for item, score in zip(expected, result.scores[row].tolist(), strict=True):
            assert score == (-np.inf if item < 0 else scores[row, item])
    np.testing.assert_array_equal(scores, before)


def test_rows_that_share_memory_are_not_changed():
    row = torch.arange(5.0)
    result = ScoreRows(5).search(row.expand(2, -1), 2, exclusions([[4], [0]]))
    assert result.item_ids.tolist() == [[3, 2], [4, 3]]
    assert row.tolist() == [0, 1, 2, 3, 4]


class _Fixed:
    """A model with the same scores for every query."""

    reads_history = needs_history = needs_user = estimates_probability = False

    def __init__(self, scores):
        self.scores = torch.tensor(scores, dtype=torch.float32)

    def score_catalog(self, queries):
        return self.scores.expand(len(queries), -1)


def films(num_items=6):
    item_ids = np.array([0, 1, 2, 3, 4, 0, 1, 1], dtype=np.int32)
    return PreparedDataset(
        item_ids=item_ids,
        user_offsets=np.array([0, 5, 7, 8]),
        roles=np.full(len(item_ids), Role.TRAIN, dtype=np.uint8),
        users=pl.DataFrame({"source_id": ["a", "b", "c"]}),
        items=pl.DataFrame({"source_id": np.arange(num_items) + 10}),
    )


def test_equal_scores_are_listed_by_popularity_then_by_a_hash():
    dataset = films()
    model = _Fixed([1, 1, 1, 1, 2, 1])
    result = recommend(model, dataset, histories=[[], [4, 1]], k=6, max_length=9)
    ranks = tie_ranks(dataset.train_counts, dataset.items["source_id"])
    tied = sorted([0, 1, 2, 3, 5], key=lambda item: ranks[item])
    assert tied[:2] == [1, 0]  # 3 and 2 training interactions
    assert result.item_ids[0].tolist() == [4, *tied]
    assert result.item_ids[1].tolist() == [*[i for i in tied if i != 1], -1, -1]
    assert result.user_ids is None


def test_users_allowed_items_and_seen_items():
    dataset = films()
    allowed = np.array([True, False, True, False, True, True])
    model = _Fixed([6, 5, 4, 3, 2, 1])
    result = recommend(model, dataset, user_ids=[1, 2], k=3, max_length=9, is_allowed=allowed)
    assert result.item_ids.tolist() == [[2, 4, 5], [0, 2, 4]]
    assert result.scores.tolist() == [[4, 2, 1], [6, 4, 2]]
    unfiltered = recommend(
        model, dataset, user_ids=[1], k=6, max_length=9, is_allowed=allowed, filter_seen=False
    )
    assert unfiltered.item_ids.tolist() == [[0, 2, 4, 5, -1, -1]]


@pytest.mark.parametrize("argument", ["item_vectors", "with_probabilities"])
def test_arguments_that_need_vectors_are_refused(argument):
    given = {"item_vectors": torch.zeros(6, 2), "with_probabilities": True}
    with pytest.raises(ConfigError, match="has no vectors: leave out"):
        recommend(
            _Fixed(range(6)),
            films(),
            user_ids=[0],
            k=1,
            max_length=9,
            **{argument: given[argument]},
        )


def test_wrong_scores_are_refused():
    with pytest.raises(ConfigError, match="the model has 5 items and the dataset has 6"):
        recommend(_Fixed(range(5)), films(), user_ids=[0], k=1, max_length=9)
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        score_rows(_Fixed([0, float("nan")]), [None], 2)
    none = np.zeros(6, dtype=bool)
    with pytest.raises(ConfigError, match="no item is left"):
        recommend(_Fixed(range(6)), films(), user_ids=[0], k=1, max_length=9, is_allowed=none)
